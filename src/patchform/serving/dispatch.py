"""From requests to batches: decoded apart, waiting in a bounded queue, answered together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from patchform.data.preparing import Preparation
from patchform.errors import PatchformError
from patchform.serving import decoding, engine
from patchform.serving.jobs import Answer, Card, Job, Prepared, Refusal, Wishes
from patchform.serving.limits import Limits
from patchform.serving.processes import GoneError, Helper

RETRIES = 5
"""Times that a model is opened again one after the other before the server gives up."""
BUSY = Refusal("busy", "too many requests wait; try again soon")
LATE = Refusal("late", "there was no answer in time")
AWAY = Refusal("away", "the model is being started again; try again soon")
LOST = Refusal("away", "this request ended the process that decoded it")


class Counts:
    """What happened since the server began."""

    def __init__(self) -> None:
        self.answered = self.batches = self.left = self.restarts = 0
        self.refused: dict[str, int] = {}


class _Waiting(NamedTuple):
    """A request that waits for the model."""

    job: Job
    answer: asyncio.Future[Answer | Refusal]

    def pixels(self) -> int:
        """As the model takes them."""
        return self.job.picture.pixels.size


class Dispatcher:
    """The processes of a server and the queue between them.

    Args:
        opening: of the model.
        limits: what it takes.
        decoders: processes that decode.

    Attributes:
        card: what the model is.
        counts: what happened.
    """

    def __init__(self, opening: engine.Opening, limits: Limits, decoders: int) -> None:
        self.limits, self.counts = limits, Counts()
        self.card: Card | None = None
        self._model = Helper(engine.work, opening, "patchform-model")
        self._decoders, self._idle = decoders, asyncio.Queue[Helper]()
        self._all: list[Helper] = [self._model]
        self._queue: deque[_Waiting] = deque()
        self._arrived, self._preparing = asyncio.Event(), 0
        self._task: asyncio.Task[None] | None = None
        self.failed: PatchformError | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._model.ready

    @property
    def waiting(self) -> int:
        """Requests that wait for the model."""
        return len(self._queue)

    async def open(self) -> None:
        """Start all processes. Raises PatchformError where the model cannot be opened, GoneError."""
        preparation = await self._open_model()
        for number in range(self._decoders):
            helper = Helper(decoding.work, preparation, f"patchform-decoder-{number}")
            self._all.append(helper)
            await helper.start(self.limits.opening)
            self._idle.put_nowait(helper)
        self._task = asyncio.create_task(self._work())

    async def _open_model(self) -> Preparation:
        self.card, preparation = await self._model.start(self.limits.opening)
        return preparation

    async def close(self) -> None:
        """End all processes."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        for helper in self._all:
            helper.close()

    async def ask(self, data: bytes, wishes: Wishes, seconds: float) -> Answer | Refusal:
        """The answer for the content of a file, or why there is none. Who cancels it leaves the queue.

        Args:
            data: of a picture, or of a film where the model looks at films.
            wishes: what is asked for.
            seconds: until it is late.
        """
        try:
            async with asyncio.timeout(seconds):
                said = await self._ask(data, wishes, seconds)
        except TimeoutError:
            said = LATE
        except asyncio.CancelledError:
            self.counts.left += 1
            raise
        if isinstance(said, Refusal):
            self.counts.refused[said.kind] = self.counts.refused.get(said.kind, 0) + 1
        else:
            self.counts.answered += 1
        return said

    async def _ask(self, data: bytes, wishes: Wishes, seconds: float) -> Answer | Refusal:
        if not self.ready:
            return AWAY
        if len(self._queue) + self._preparing >= self.limits.waiting:
            return BUSY
        self._preparing += 1
        try:
            prepared = await self._prepared(data, seconds)
        finally:
            self._preparing -= 1
        if isinstance(prepared, Refusal):
            return prepared
        future: asyncio.Future[Answer | Refusal] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(Job(prepared, wishes), future))
        self._arrived.set()
        return await future

    async def _prepared(self, data: bytes, seconds: float) -> Prepared | Refusal:
        """By a process that has nothing to do; one that is lost is replaced. Who leaves does not cut its work short."""
        helper = await self._idle.get()
        task = asyncio.ensure_future(self._decoded(helper, data, seconds))
        return await asyncio.shield(task)

    async def _decoded(self, helper: Helper, data: bytes, seconds: float) -> Prepared | Refusal:
        try:
            return await helper.ask(data, seconds)
        except GoneError as gone:
            self.counts.restarts += 1
            with suppress(GoneError):
                await helper.start(self.limits.opening)
            return LATE if gone.late else LOST
        finally:
            self._idle.put_nowait(helper)

    async def _work(self) -> None:
        """Batch after batch, for as long as the server runs."""
        while True:
            batch = await self._batch()
            try:
                said = await self._model.ask([one.job for one in batch], self.limits.answer)
            except GoneError:
                said = [AWAY] * len(batch)
            self.counts.batches += 1
            for one, answer in zip(batch, said, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)
            if not self._model.ready:
                await self._open_again()

    async def _open_again(self) -> None:
        for waiting in self._queue:
            if not waiting.answer.done():
                waiting.answer.set_result(AWAY)
        self._queue.clear()
        for attempt in range(RETRIES):
            self.counts.restarts += 1
            try:
                await self._open_model()
                return
            except (GoneError, PatchformError):
                await asyncio.sleep(2**attempt / 10)
        raise RuntimeError("the model cannot be opened any more")

    async def _batch(self) -> Sequence[_Waiting]:
        """The next requests that are answered together: as many as there are, and those that are about to come."""
        first = await self._next()
        batch, pixels = [first], first.pixels()
        end = asyncio.get_running_loop().time() + self.limits.wait
        while len(batch) < self.limits.batch:
            if not self._queue:
                left = end - asyncio.get_running_loop().time()
                if not self._preparing or left <= 0:
                    break
                self._arrived.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), left)
                continue
            if pixels + self._queue[0].pixels() > self.limits.batch_pixels:
                break
            one = self._queue.popleft()
            if not one.answer.done():  # who left is not worked for
                batch.append(one)
                pixels += one.pixels()
        return batch

    async def _next(self) -> _Waiting:
        while True:
            while self._queue:
                if not (one := self._queue.popleft()).answer.done():
                    return one
            self._arrived.clear()
            await self._arrived.wait()
