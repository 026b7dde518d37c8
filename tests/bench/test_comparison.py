"""Contestants side by side: what is read off, and who is left out with which reason."""

import pytest
import torch

from patchform.bench.comparison import compare, random_inputs
from patchform.bench.contestants import Skipped
from patchform.descriptions import Preprocessing


class Made:
    """Takes `seconds` and `each` for every picture, on a clock of its own; may refuse batches."""

    bytes = 7

    def __init__(self, clock, name, seconds, each, refuses=(), fails=()):
        self.clock, self.name, self.seconds, self.each = clock, name, seconds, each
        self.refuses, self.fails = refuses, fails

    def prepare(self, images, sizes):
        if len(images) in self.refuses:
            raise Skipped("not so many")

        def call():
            if len(images) in self.fails:
                raise torch.OutOfMemoryError("out of memory")
            self.clock.now += self.seconds + self.each * len(images)

        return call


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def inputs(batch):
    return random_inputs(Preprocessing(size=(8, 8)), (8, 8), batch)


def test_latency_is_of_one_and_throughput_of_the_best_batch():
    clock = Clock()
    made = [Made(clock, "eager", 0.4, 0.1), Made(clock, "file", 0.1, 0.15)]
    eager, file = compare(made, (1, 8, 32), inputs, 9.0, clock=clock)
    assert (eager.latency.median, file.latency.median) == (pytest.approx(0.5), pytest.approx(0.25))
    assert (eager.ratio.median, file.ratio.median) == (1.0, pytest.approx(2.0))
    assert eager.per_second == pytest.approx({1: 2.0, 8: 8 / 1.2, 32: 32 / 3.6})
    assert eager.best == (32, pytest.approx(32 / 3.6))
    assert file.per_second == pytest.approx({1: 4.0, 8: 8 / 1.3, 32: 32 / 4.9})


def test_latency_is_measured_whatever_batch_is_asked_for():
    clock = Clock()
    (row,) = compare([Made(clock, "a", 0.0, 0.5)], (4,), inputs, 9.0, clock=clock)
    assert list(row.per_second) == [1, 4]
    assert row.latency is not None


def test_who_does_not_take_a_batch_is_left_out_of_that_one():
    clock = Clock()
    made = [
        Made(clock, "one", 0.1, 0.1, refuses=(1,)),
        Made(clock, "two", 0.1, 0.1, fails=(8,)),
        Made(clock, "three", 0.1, 0.3),
    ]
    one, two, three = compare(made, (1, 8), inputs, 9.0, clock=clock)
    assert (one.latency, one.ratio) == (None, None)
    assert one.skipped == ("batch 1: not so many",)
    assert list(one.per_second) == [8]
    assert two.skipped == ("batch 8: out of memory",)
    assert list(two.per_second) == [1]
    assert three.ratio.median == pytest.approx(0.5)  # of the first that ran
    assert [row.as_json()["times_as_fast"] is None for row in (one, two, three)] == [True, False, False]


def test_nobody_runs():
    clock = Clock()
    (row,) = compare([Made(clock, "a", 1.0, 1.0, refuses=(1,))], (1,), inputs, 1.0, clock=clock)
    assert (row.latency, row.ratio, row.per_second, row.best) == (None, None, {}, None)


def test_other_faults_are_not_hidden():
    class Broken(Made):
        def prepare(self, images, sizes):
            def call():
                raise RuntimeError("shapes do not fit")

            return call

    with pytest.raises(RuntimeError, match="shapes"):
        compare([Broken(Clock(), "a", 1.0, 1.0)], (1,), inputs, 1.0)


def test_inputs_are_as_files_take_them():
    images, sizes = random_inputs(Preprocessing(size=(8, 8), channels=4), (5, 7), 3)
    assert (images.shape, images.dtype) == ((3, 4, 5, 7), torch.uint8)
    assert sizes.tolist() == [[5, 7]] * 3
    clips, _ = random_inputs(Preprocessing(size=(8, 8), frames=2, bits=16), (5, 7), 3)
    assert (clips.shape, clips.dtype) == ((3, 2, 3, 5, 7), torch.float32)
    assert 0 <= clips.min() <= clips.max() <= 1
