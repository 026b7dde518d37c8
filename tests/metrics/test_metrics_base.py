import json
import math

import pytest
import torch

from patchform.errors import DataError, DivergedError
from patchform.metrics.accuracy import Accuracy
from patchform.metrics.average_precision import AveragePrecision
from patchform.metrics.base import Scores, Table, mean, share
from patchform.metrics.calibration import Calibration
from patchform.metrics.intersection import Intersection
from patchform.records import Label, Regions


def test_share_and_mean_of_nothing_are_none():
    assert (share(1, 4), share(0, 0)) == (0.25, None)
    assert (mean([None, 0.0, 1.0]), mean([None]), mean([])) == (0.5, None, None)


def test_scores_are_json_without_nan():
    table = Table(("accuracy",), ("cat", "dog"), [[1.0], [None]])
    scores = Scores(3, "top1", {"top1": 0.5, "top5": None}, {"classes": table})
    back = json.loads(json.dumps(scores.as_json(), allow_nan=False))
    assert back["numbers"] == {"top1": 0.5, "top5": None}
    assert back["tables"]["classes"] == {"columns": ["accuracy"], "rows": ["cat", "dog"], "values": [[1.0], [None]]}
    assert scores.best == 0.5


ALL = [lambda: Accuracy("ab"), Calibration, lambda: AveragePrecision("ab"), lambda: Intersection("ab")]


@pytest.mark.parametrize("build", ALL)
def test_no_images_are_none_everywhere(build):
    metric = build()
    metric.update([], [])
    scores = metric.compute()
    assert scores.samples == 0
    assert set(scores.numbers.values()) == {None}
    json.dumps(scores.as_json(), allow_nan=False)


@pytest.mark.parametrize("build", ALL)
def test_one_prediction_for_each_target(build):
    target = Regions(torch.zeros(2, 2, dtype=torch.int64)) if build is ALL[3] else Label(torch.tensor([0]))
    with pytest.raises(DataError, match="predictions for"):
        build().update([], [target])


@pytest.mark.parametrize("build", ALL[:3])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_never_count_as_right(build, value):
    with pytest.raises(DivergedError):
        build().update([Label(torch.tensor([0]), torch.tensor([value, 0.0]))], [Label(torch.tensor([0]))])
