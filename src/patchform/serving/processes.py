"""A process that answers one message at a time, and is started anew when it dies or does not answer."""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from patchform import signals
from patchform.errors import PatchformError


class GoneError(Exception):
    """The process ended, or was ended because it did not answer."""

    def __init__(self, *, late: bool) -> None:
        self.late = late
        super().__init__("no answer in time" if late else "the process ended")


class Helper:
    """One process.

    Args:
        work: runs in it: gets a connection and `given`, sends one message when it can begin (a `PatchformError`: it
            cannot), then one for each that it gets, and returns when the connection is closed.
        given: goes to `work`.
        name: of the process, for lists of processes.

    Attributes:
        ready: whether it can be asked.
        starts: how often it was started.
    """

    def __init__(self, work: Callable[..., None], given: Any, name: str) -> None:
        self._work, self._given, self._name = work, given, name
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)  # blocks on the connection, not the loop
        self._process: BaseProcess | None = None
        self._connection: Connection | None = None
        self.ready, self.starts = False, 0

    async def start(self, seconds: float) -> Any:
        """Start the process, and return the first that it says.

        Raises:
            PatchformError: what it says that it cannot do.
            GoneError: it ended, or says nothing for so many seconds.
        """
        self.starts += 1
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._process = context.Process(target=self._work, args=(theirs, self._given), name=self._name, daemon=True)
        with signals.blocked():  # what comes meanwhile is the server's
            self._process.start()
        theirs.close()  # so that its end is seen
        self._connection = ours
        said = await self._in_thread(self._received, ours, seconds)
        if isinstance(said, PatchformError):
            raise said
        self.ready = True
        return said

    async def ask(self, message: Any, seconds: float) -> Any:
        """The answer to a message. One at a time.

        Raises:
            GoneError: it ended, or was ended because it did not answer within so many seconds.
        """
        assert self._connection is not None
        return await self._in_thread(self._exchanged, self._connection, message, seconds)

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)
        except GoneError:
            self.end()
            raise

    @staticmethod
    def _exchanged(connection: Connection, message: Any, seconds: float) -> Any:
        try:
            connection.send(message)
        except OSError:
            raise GoneError(late=False) from None
        return Helper._received(connection, seconds)

    @staticmethod
    def _received(connection: Connection, seconds: float) -> Any:
        try:
            if not connection.poll(seconds):
                raise GoneError(late=True)
            return connection.recv()
        except (EOFError, OSError):
            raise GoneError(late=False) from None

    def end(self) -> None:
        """End the process at once."""
        self.ready = False
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            self._process.kill()
            self._process.join()
        self._connection = self._process = None

    def close(self) -> None:
        """End the process, for good."""
        self.end()
        self._thread.shutdown(wait=False)
