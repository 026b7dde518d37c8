"""The arithmetic of timing, by a clock that goes as it is told. No test waits, and none decides by real time."""

import pytest

from patchform.bench.timing import ROUNDS, WARM_UP, Timing, quantile, race


class Clock:
    """Tells seconds; calls of contestants move it on."""

    def __init__(self):
        self.now, self.log, self.slower = 100.0, [], 1.0

    def __call__(self):
        return self.now

    def call(self, name, seconds):
        def run():
            self.log.append(name)
            self.now += seconds * self.slower

        return run


def test_quantiles_lie_between_neighbours():
    assert quantile([3.0], 0.9) == 3.0
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile(list(range(11)), 0.9) == 9
    assert quantile([0.0, 1.0], 0.25) == 0.25
    assert (quantile([5.0, 7.0, 9.0], 0), quantile([5.0, 7.0, 9.0], 1)) == (5.0, 9.0)


def test_each_has_its_time_whatever_a_call_takes():
    clock = Clock()
    found = race({"slow": clock.call("slow", 0.5), "quick": clock.call("quick", 0.25)}, 9.0, clock=clock)
    assert list(found) == ["slow", "quick"]
    assert [len(turn) for turn in found["slow"].rounds] == [2] * ROUNDS
    assert [len(turn) for turn in found["quick"].rounds] == [4] * ROUNDS
    assert (found["slow"].median, found["quick"].median) == (0.5, 0.25)
    assert clock.log[: 2 * WARM_UP] == ["slow"] * WARM_UP + ["quick"] * WARM_UP


def test_what_takes_longer_than_a_round_is_called_once_in_each():
    clock = Clock()
    found = race({"one": clock.call("one", 100.0)}, 1.0, rounds=4, clock=clock)
    assert found["one"].rounds == ((100.0,),) * 4


def test_turns_go_forwards_and_backwards():
    clock = Clock()
    calls = {name: clock.call(name, 1.0) for name in "abc"}
    race(calls, 4.0, rounds=4, clock=clock)
    assert clock.log[3 * WARM_UP :] == list("abccbaabccba")


def test_warm_up_does_not_count():
    clock = Clock()
    first = iter([9.0] * WARM_UP)

    def call():
        clock.now += next(first, 1.0)

    assert set(race({"a": call}, 9.0, clock=clock)["a"].calls) == {1.0}


def test_progress_is_told_round_by_round():
    clock, seen = Clock(), []
    race({"a": clock.call("a", 1.0)}, 3.0, rounds=3, clock=clock, progress=lambda *news: seen.append(news))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize("drift", [1.0, 1.3, 3.0])
def test_a_machine_that_slows_down_changes_no_ratio_much(drift):
    """Twice as fast stays twice as fast; one after the other it would be 2 / drift or worse."""
    clock = Clock()
    moving = {"first": clock.call("first", 0.02), "second": clock.call("second", 0.01)}

    def drifting(call):
        def run():
            clock.slower = 1 + (drift - 1) * (clock.now - 100) / 20
            call()

        return run

    found = race({name: drifting(call) for name, call in moving.items()}, 9.0, clock=clock)
    ratio = found["second"].ratio(found["first"])
    assert ratio.median == pytest.approx(2, rel=0.1)
    assert ratio.low <= ratio.median <= ratio.high
    assert ratio.high == pytest.approx(2, rel=0.25)


def test_ratios_are_of_rounds():
    first, second = Timing(((4.0, 4.0), (8.0,), (6.0,))), Timing(((2.0,), (2.0,), (2.0,)))
    ratio = second.ratio(first)
    assert (ratio.low, ratio.median, ratio.high) == (2.5, 3.0, 3.5)
    assert first.ratio(first) == (1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="zip"):
        second.ratio(Timing(((1.0,),)))
