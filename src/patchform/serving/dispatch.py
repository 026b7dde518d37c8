"""From requests to batches: decoded apart, waiting in a bounded queue, answered together."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple, TypeVar

from patchform.data.preparing import Preparation
from patchform.errors import PatchformError, ResourceError
from patchform.serving import decoder_process, model_process
from patchform.serving.counters import Counters
from patchform.serving.jobs import Answer, Card, Job, Prepared, Refusal, Wishes
from patchform.serving.limits import Limits
from patchform.serving.processes import GoneError, Helper

RETRIES = 5
"""Times that a model is opened again, one after the other, before the server gives up."""
BUSY = Refusal("busy", "too many requests wait; try again soon")
LATE = Refusal("late", "there was no answer in time")
AWAY = Refusal("away", "the model is being started again; try again soon")
LOST = Refusal("picture", "processes that decoded this picture ended over it")
SLOW = Refusal("picture", "this picture takes too long to decode")
Said = TypeVar("Said")


class _Waiting(NamedTuple):
    """A picture that waits for the model."""

    job: Job
    answer: asyncio.Future[Answer | Refusal]

    @property
    def pixels(self) -> int:
        """Numbers that the model takes of it."""
        return self.job.picture.pixels.size


class Dispatcher:
    """The processes of a server and the queue between them.

    Args:
        opening: of the model.
        limits: what it takes.
        decoders: processes that decode.

    Attributes:
        card: what the model is.
        counters: of what happens.
        failed: why it gave up, once it has.
    """

    def __init__(self, opening: model_process.Opening, limits: Limits, decoders: int) -> None:
        self.limits, self.counters = limits, Counters(waiting=lambda: self.waiting)
        self.card: Card | None = None
        self._model = Helper(model_process.work, opening, "patchform-model")
        self._decoders, self._idle = decoders, asyncio.Queue[Helper]()
        self._all: list[Helper] = [self._model]
        self._queue: deque[_Waiting] = deque()
        self._arrived, self._decoding = asyncio.Event(), 0
        self._replacing: set[asyncio.Task[None]] = set()
        self._task: asyncio.Task[None] | None = None
        self.failed: asyncio.Future[BaseException] | None = None

    @property
    def ready(self) -> bool:
        """Whether requests are answered."""
        return self._model.ready

    @property
    def waiting(self) -> int:
        """Pictures that are decoded, or wait for the model."""
        return len(self._queue) + self._decoding

    async def open(self) -> None:
        """Start all processes. Raises PatchformError where the model cannot be opened, GoneError."""
        self.failed = asyncio.get_running_loop().create_future()
        preparation = replace(await self._open_model(), most_pixels=self.limits.pixels, most_bytes=self.limits.body)
        for number in range(self._decoders):
            self._all.append(Helper(decoder_process.work, preparation, f"patchform-decoder-{number}"))
        await asyncio.gather(*(helper.start(self.limits.opening) for helper in self._all[1:]))
        for helper in self._all[1:]:
            self._idle.put_nowait(helper)
        self._task = asyncio.create_task(self._work())
        self._task.add_done_callback(self._over)

    async def _open_model(self) -> Preparation:
        self.card, preparation = await self._model.start(self.limits.opening)
        return preparation

    async def close(self) -> None:
        """End all processes."""
        tasks = [*self._replacing, *([] if self._task is None else [self._task])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for helper in self._all:
            helper.close()

    # ------------------------------------------------------------------------------------------------------- requests

    def refusal(self, pictures: int) -> Refusal | None:
        """Why so many pictures more are not taken; None: they are."""
        if not self.ready:
            return AWAY
        return BUSY if self.waiting + pictures > self.limits.queue else None

    async def prepare(self, data: bytes) -> Prepared | Refusal:
        """A picture, or a film where the model looks at films, as the model takes it.

        Who cancels it while it is decoded waits no longer; the work goes on until its end.

        Args:
            data: the content of a file.
        """
        if (refusal := self.refusal(1)) is not None:
            return refusal
        self._decoding += 1
        try:
            return await self._in_time(self._prepared(data))
        finally:
            self._decoding -= 1
            self._arrived.set()  # nobody need wait for it

    async def answer(self, prepared: Prepared, wishes: Wishes) -> Answer | Refusal:
        """What the model says of a picture, or why it says nothing. Who cancels it leaves the queue."""
        if not self.ready:
            return AWAY
        future: asyncio.Future[Answer | Refusal] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(Job(prepared, wishes), future))
        self._arrived.set()
        return await self._in_time(future)

    async def _in_time(self, work: Awaitable[Said]) -> Said | Refusal:
        try:
            async with asyncio.timeout(self.limits.answer):
                return await work
        except TimeoutError:
            return LATE

    async def _prepared(self, data: bytes) -> Prepared | Refusal:
        """By a process that has nothing to do. A picture over which one ended is given to another: if that ends too, it
        was the picture.
        """
        for _ in range(2):
            helper = await self._idle.get()
            said = await asyncio.shield(asyncio.ensure_future(self._decoded(helper, data)))
            if said is not LOST:
                break
        return said

    async def _decoded(self, helper: Helper, data: bytes) -> Prepared | Refusal:
        try:
            said: Prepared | Refusal = await helper.ask(data, self.limits.answer / 2)
        except GoneError as gone:
            self._replacing.add(task := asyncio.create_task(self._replaced(helper)))
            task.add_done_callback(self._replacing.discard)
            return SLOW if gone.late else LOST
        self._idle.put_nowait(helper)
        return said

    async def _replaced(self, helper: Helper) -> None:
        self.counters.restarted("decoder")
        for attempt in range(RETRIES):
            try:
                await helper.start(self.limits.opening)
                break
            except GoneError:
                await asyncio.sleep(2**attempt / 10)
        self._idle.put_nowait(helper)

    # -------------------------------------------------------------------------------------------------------- batches

    async def _work(self) -> None:
        """Batch after batch, for as long as the server runs."""
        while True:
            batch = await self._batch()
            try:
                with self.counters.batch(len(batch)):
                    said = await self._model.ask([one.job for one in batch], self.limits.answer)
            except GoneError:
                said = [AWAY] * len(batch)
            for one, answer in zip(batch, said, strict=True):
                if not one.answer.done():
                    one.answer.set_result(answer)
            if not self._model.ready:
                await self._open_again()

    def _over(self, task: asyncio.Task[None]) -> None:
        """Without it nobody is answered: whoever serves has to end."""
        assert self.failed is not None
        if not task.cancelled() and (error := task.exception()) is not None:
            self.failed.set_result(error)

    async def _open_again(self) -> None:
        for waiting in self._queue:
            if not waiting.answer.done():
                waiting.answer.set_result(AWAY)
        self._queue.clear()
        why = "it ended"
        for attempt in range(RETRIES):
            self.counters.restarted("model")
            try:
                await self._open_model()
                return
            except (GoneError, PatchformError) as error:
                why = str(error)
                await asyncio.sleep(2**attempt / 10)
        raise ResourceError(f"the model cannot be opened any more ({why})")

    async def _batch(self) -> Sequence[_Waiting]:
        """The next pictures that are answered together: as many as there are, and those that are about to come."""
        first = await self._next()
        batch, numbers = [first], first.pixels
        end = asyncio.get_running_loop().time() + self.limits.wait
        while len(batch) < self.limits.batch:
            if not self._queue:
                left = end - asyncio.get_running_loop().time()
                if not self._decoding or left <= 0:
                    break
                self._arrived.clear()
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._arrived.wait(), left)
                continue
            if numbers + self._queue[0].pixels > self.limits.batch_pixels:
                break
            one = self._queue.popleft()
            if self._wanted(one):
                batch.append(one)
                numbers += one.pixels
        return batch

    async def _next(self) -> _Waiting:
        while True:
            while self._queue:
                if self._wanted(one := self._queue.popleft()):
                    return one
            self._arrived.clear()
            await self._arrived.wait()

    def _wanted(self, one: _Waiting) -> bool:
        """Who left is not worked for."""
        if one.answer.done():
            self.counters.left()
        return not one.answer.done()
