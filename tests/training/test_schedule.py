"""The multiplier of the learning rate against closed forms."""

import math

import pytest

from patchform.settings import ScheduleSettings
from patchform.training.schedule import RunLength, multiplier


def multipliers(steps=40, epoch=10, **settings):
    shape = ScheduleSettings(warmup_epochs=1.0, warmup_start=0.1, **settings)
    return [multiplier(shape, step, RunLength(epoch, steps)) for step in range(steps)]


@pytest.mark.parametrize("name", ["cosine", "polynomial", "steps", "constant"])
def test_the_warmup_is_a_line_from_its_start_to_one(name):
    assert multipliers(name=name)[:11] == pytest.approx([0.1 + 0.09 * step for step in range(11)], abs=1e-15)


def test_each_shape_runs_from_one_to_the_floor_at_the_last_step():
    p = [step / 29 for step in range(30)]
    assert multipliers(name="cosine")[10:] == pytest.approx([0.5 + 0.5 * math.cos(math.pi * x) for x in p], abs=1e-15)
    assert multipliers(name="cosine", floor=0.2)[10:] == pytest.approx([0.6 + 0.4 * math.cos(math.pi * x) for x in p])
    assert multipliers(name="polynomial", power=2.0)[10:] == pytest.approx([(1 - x) ** 2 for x in p])
    assert multipliers(name="constant", floor=0.2)[10:] == [1.0] * 30


def test_steps_are_taken_where_an_epoch_begins():
    found = multipliers(name="steps", milestones=(2.0, 3.5), gamma=0.5, floor=0.2)
    assert found[10:] == [1.0] * 10 + [0.5] * 15 + [0.25] * 5
    assert multipliers(name="steps", milestones=(3.5, 2.0, 4.0), gamma=0.5) == multipliers(
        name="steps", milestones=(2.0, 3.5), gamma=0.5
    )  # in any order; what lies beyond the run never comes
    assert multipliers(name="steps", milestones=(0.5,))[:11] == multipliers(name="constant")[:10] + [0.1]


def test_short_runs_stay_in_range():
    for steps in (1, 2, 10, 11):
        assert all(0 <= value <= 1 for value in multipliers(steps=steps))
    none = ScheduleSettings(warmup_epochs=0.0)
    assert [multiplier(none, step, RunLength(1, 1)) for step in range(1)] == [1.0]
