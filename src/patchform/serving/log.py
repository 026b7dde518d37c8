"""A log that never holds up a server: lines go through a bounded queue to a thread that writes them."""

from __future__ import annotations

import json
import queue
import threading
from contextlib import suppress
from typing import TextIO

LINES = 10_000
"""That wait while whoever reads the log does not; more are counted, and dropped."""
PATIENCE = 2.0
"""Seconds in which what waits at the end is still written."""


class Log:
    """Where lines go.

    Args:
        stream: takes them, each at once.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._lines = stream, queue.Queue[str | None](LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="patchform-log", daemon=True)
        self._thread.start()

    def __call__(self, line: str) -> None:
        """Take a line."""
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self._dropped += 1

    def close(self) -> None:
        """Write what waits, unless nobody reads it."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=PATIENCE)
            self._thread.join(PATIENCE)

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            with suppress(OSError, ValueError):  # nobody is there to read it
                if self._dropped:
                    dropped, self._dropped = self._dropped, 0
                    print(json.dumps({"dropped": dropped}), file=self._stream)
                print(line, file=self._stream, flush=True)
