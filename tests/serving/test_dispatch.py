"""The queue between requests and the model; processes are stood in for by functions that answer when they are told."""

import asyncio
import random
from contextlib import suppress

import numpy as np
import pytest
from sent import picture

from patchform.data.preparing import Preparation
from patchform.errors import ModelFileError, ResourceError
from patchform.records import Preprocessing
from patchform.serving import decoder_process, dispatch
from patchform.serving.dispatch import AWAY, BUSY, LATE, LOST, SLOW, Dispatcher
from patchform.serving.jobs import Answer, Card, Prepared, Refusal, Wishes
from patchform.serving.limits import Limits
from patchform.serving.processes import GoneError

CARD = Card("classification", ("a",), (0.5,), ("#000000",), False, {})
PREPARATION = Preparation(Preprocessing(size=(8, 8)))
GO_ON = object()


class Stand:
    """In place of `processes.Helper`."""

    def __init__(self, work, given, name):
        self.name, self.given, self.ready, self.starts, self.asked = name, given, False, 0, []
        self.answers = asyncio.Queue()
        self.opens = []

    async def start(self, seconds):
        self.starts += 1
        if self.opens and (error := self.opens.pop(0)) is not None:
            raise error
        self.ready = True
        return (CARD, PREPARATION)

    async def ask(self, message, seconds):
        self.asked.append(message)
        told = GO_ON if self.name.startswith("patchform-decoder") and self.answers.empty() else await self.answers.get()
        if isinstance(told, Exception):
            self.ready = False
            raise told
        if self.name.startswith("patchform-decoder"):
            return Prepared(np.zeros((3, len(message), 1), dtype=np.uint8), (1, len(message)))
        return [Answer({"width": job.picture.size[1]}, {}, job.picture.size) for job in message]

    def close(self):
        self.ready = False


def trial(call, *, decoders=1, **limits):
    """Run a coroutine function on a dispatcher of stands: `call(dispatcher, model, decoders)`."""

    async def run():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(dispatch, "Helper", Stand)
            dispatcher = Dispatcher(None, Limits(**limits), decoders)
            await dispatcher.open()
            try:
                return await asyncio.wait_for(call(dispatcher, *dispatcher._all), 20)
            finally:
                await dispatcher.close()

    return asyncio.run(run())


async def asked(dispatcher, data):
    prepared = await dispatcher.prepare(data)
    return await dispatcher.answer(prepared, Wishes()) if isinstance(prepared, Prepared) else prepared


def ask(dispatcher, *lengths):
    return [asyncio.create_task(asked(dispatcher, bytes(length))) for length in lengths]


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


def test_decoders_know_the_limits():
    async def call(dispatcher, model, decoder):
        return decoder.given

    given = trial(call, pixels=39 * 50, body=12_345)
    assert (given.most_pixels, given.most_bytes) == (39 * 50, 12_345)
    refused = decoder_process.prepared(picture(size=(40, 50)), given)
    assert isinstance(refused, Refusal)
    assert "pixels" in refused.message
    assert isinstance(decoder_process.prepared(picture(size=(39, 50)), given), Prepared)


def test_each_gets_its_own_answer():
    async def call(dispatcher, model, _):
        tasks = ask(dispatcher, *range(1, 30))
        for _ in tasks:
            model.answers.put_nowait(GO_ON)
        return [answer.record["width"] for answer in await asyncio.gather(*tasks)], [len(one) for one in model.asked]

    widths, batches = trial(call, batch=8)
    assert widths == list(range(1, 30))
    assert sum(batches) == 29
    assert max(batches) <= 8


def test_what_waits_goes_together_but_not_more_pixels_than_fit():
    async def call(dispatcher, model, _):
        first = ask(dispatcher, 1)
        await asyncio.sleep(0.02)  # the model has it
        others = ask(dispatcher, 10, 10, 10, 10, 10)
        await asyncio.sleep(0.02)
        for _ in range(6):
            model.answers.put_nowait(GO_ON)
        await asyncio.gather(*first, *others)
        return [len(one) for one in model.asked]

    assert trial(call, batch=16) == [1, 5]
    assert trial(call, batch=3) == [1, 3, 2]
    assert trial(call, batch_pixels=3 * 10 * 2) == [1, 2, 2, 1]


def test_one_alone_does_not_wait():
    async def call(dispatcher, model, _):
        model.answers.put_nowait(GO_ON)
        await asyncio.gather(*ask(dispatcher, 1))
        return True

    assert trial(call, wait=1000.0)


def test_a_full_queue_refuses():
    async def call(dispatcher, model, _):
        tasks = ask(dispatcher, *range(1, 9))
        await asyncio.sleep(0.02)
        for _ in range(8):
            model.answers.put_nowait(GO_ON)
        return await asyncio.gather(*tasks), dispatcher.waiting

    said, waiting = trial(call, queue=4, batch=1)
    assert said.count(BUSY) == 4
    assert waiting == 0


def test_who_leaves_is_not_worked_for():
    async def call(dispatcher, model, _):
        tasks = ask(dispatcher, 1, 2, 3)
        await asyncio.sleep(0.02)
        tasks[1].cancel()
        await settle()
        for _ in range(3):
            model.answers.put_nowait(GO_ON)
        await asyncio.gather(tasks[0], tasks[2])
        computed = [job.picture.size[1] for jobs in model.asked for job in jobs]
        return computed, "patchform_left_total 1.0" in dispatcher.counters.as_text().decode()

    assert trial(call, batch=1) == ([1, 3], True)


def test_late_is_said():
    async def call(dispatcher, model, _):
        (said,) = await asyncio.gather(*ask(dispatcher, 1))
        return said

    assert trial(call, answer=0.05) == LATE


def test_a_model_that_ends_is_opened_again():
    async def call(dispatcher, model, _):
        begun, waiting = ask(dispatcher, 1)[0], None
        await asyncio.sleep(0.02)
        waiting = ask(dispatcher, 2)[0]
        await asyncio.sleep(0.02)
        model.opens = [GoneError(late=False), None]
        model.answers.put_nowait(GoneError(late=False))
        said = await asyncio.gather(begun, waiting)
        meanwhile = dispatcher.refusal(1)
        while not dispatcher.ready:
            await asyncio.sleep(0.01)
        model.answers.put_nowait(GO_ON)
        (after,) = await asyncio.gather(*ask(dispatcher, 3))
        return said, meanwhile, after.record, model.starts

    said, meanwhile, after, starts = trial(call, batch=1)
    assert said == [AWAY, AWAY]
    assert meanwhile == AWAY
    assert after == {"width": 3}
    assert starts == 3


def test_a_model_that_cannot_be_opened_again_ends_the_server(monkeypatch):
    monkeypatch.setattr(dispatch, "RETRIES", 2)

    async def call(dispatcher, model, _):
        model.opens = [ModelFileError("the file is gone")] * 9
        model.answers.put_nowait(GoneError(late=False))
        await asyncio.gather(*ask(dispatcher, 1))
        return await dispatcher.failed

    error = trial(call)
    assert isinstance(error, ResourceError)
    assert "the file is gone" in str(error)


def test_a_bug_between_queue_and_model_ends_the_server():
    async def call(dispatcher, model, _):
        async def too_few(message, seconds):
            return []

        model.ask = too_few
        asking = ask(dispatcher, 1)
        error = await dispatcher.failed
        asking[0].cancel()
        return error

    assert isinstance(trial(call), ValueError)


def test_a_picture_over_which_a_decoder_ends_is_tried_once_more():
    async def call(dispatcher, model, first, second):
        for _ in range(4):
            model.answers.put_nowait(GO_ON)
        first.answers.put_nowait(GoneError(late=False))
        (innocent,) = await asyncio.gather(*ask(dispatcher, 1))
        await asyncio.sleep(0.02)
        for decoder in (first, second):
            decoder.answers.put_nowait(GoneError(late=False))
        (culprit,) = await asyncio.gather(*ask(dispatcher, 2))
        await asyncio.sleep(0.02)
        first.answers.put_nowait(GoneError(late=True))
        second.answers.put_nowait(GoneError(late=True))
        (endless,) = await asyncio.gather(*ask(dispatcher, 3))
        await asyncio.sleep(0.02)
        return innocent.record, culprit, endless, first.starts + second.starts

    innocent, culprit, endless, starts = trial(call, decoders=2)
    assert innocent == {"width": 1}
    assert culprit == LOST
    assert endless == SLOW
    assert starts == 2 + 1 + 2 + 1


def test_cancelling_while_it_decodes_keeps_the_decoder():
    async def call(dispatcher, model, decoder):
        task = ask(dispatcher, 1)[0]
        await asyncio.sleep(0)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        model.answers.put_nowait(GO_ON)
        (said,) = await asyncio.gather(*ask(dispatcher, 2))
        return said.record, dispatcher.waiting

    assert trial(call) == ({"width": 2}, 0)


@pytest.mark.parametrize("seed", range(3))
def test_nobody_waits_for_ever(seed):
    """Hundreds who come, wait or leave, while decoders and the model end now and then."""
    draw = random.Random(seed)

    async def slowly(self, message, seconds):
        await asyncio.sleep(draw.random() / 1000)
        if draw.random() < 0.02:
            self.ready = False
            raise GoneError(late=draw.random() < 0.5)
        if self.name.startswith("patchform-decoder"):
            return Prepared(np.zeros((3, len(message), 1), dtype=np.uint8), (1, len(message)))
        return [Answer({"width": job.picture.size[1]}, {}, job.picture.size) for job in message]

    async def one(dispatcher, length):
        await asyncio.sleep(draw.random() / 50)
        task = asyncio.create_task(asked(dispatcher, bytes(length)))
        if draw.random() < 0.5:
            await asyncio.sleep(draw.random() / 200)
            task.cancel()
        (said,) = await asyncio.gather(task, return_exceptions=True)
        return length, said

    async def call(dispatcher, *helpers):
        for helper in helpers:
            helper.ask = slowly.__get__(helper)
        told = await asyncio.gather(*(one(dispatcher, length) for length in range(1, 400)))
        while not dispatcher.ready:
            await asyncio.sleep(0.01)
        return told, dispatcher.waiting, await asked(dispatcher, bytes(7))

    told, waiting, last = trial(call, decoders=1, batch=4, queue=32)
    assert waiting == 0
    kinds = {said if not isinstance(said, Answer | BaseException) else type(said) for _, said in told}
    assert {Answer, asyncio.CancelledError, BUSY} <= kinds <= {Answer, asyncio.CancelledError, BUSY, AWAY, SLOW, LOST}
    assert all(said.record == {"width": length} for length, said in told if isinstance(said, Answer))
    assert isinstance(last, Answer | Refusal)
