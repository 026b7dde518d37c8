"""Thresholds, calibration and confusion against plain definitions and hand-made pictures."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch

from patchform.metrics.objects import ObjectPrecision
from patchform.metrics.operating_points import APART, BACKGROUND, UNKNOWN, best_thresholds, confusion
from patchform.metrics.overlap import RIGHT, UNJUDGED, WRONG, judged, overlaps, pair
from patchform.records import Instances
from patchform.tasks.detection import Detection

NAMES = ("cat", "dog", "owl")


def objects(*rows, crowd=None):
    """Rows of (class, left, top, right, bottom[, score])."""
    table = torch.tensor(rows, dtype=torch.float32).view(len(rows), -1)
    scores = table[:, 5] if table.shape[1] > 5 else None
    return Instances(table[:, 1:5], table[:, 0].long(), scores, crowd=crowd)


def scores_of(answers, truths, **options):
    metric = ObjectPrecision(NAMES, **options)
    metric.update(answers, truths)
    return metric.compute()


def test_the_surest_answer_takes_the_object_and_crowds_judge_nobody():
    truth = objects((0, 0, 0, 10, 10), (0, 50, 0, 90, 40), (1, 0, 0, 10, 10), crowd=torch.tensor([False, True, False]))
    answer = objects(
        (0, 0, 0, 10, 9, 0.9),  # right
        (0, 0, 0, 10, 10, 0.8),  # better placed, but too late
        (0, 55, 5, 60, 10, 0.7),  # in the crowd
        (0, 60, 5, 65, 10, 0.6),  # so is this one
        (2, 0, 0, 10, 10, 0.5),  # of another class
        (1, 0, 0, 10, 5, 0.4),  # overlap of exactly one half
        (1, 0, 0, 10, 4, 0.3),
    )
    both = pair(answer, truth, kinds=("boxes",))
    verdict = judged(both, overlaps(both, "boxes"))
    assert verdict.tolist() == [RIGHT, WRONG, UNJUDGED, UNJUDGED, WRONG, RIGHT, WRONG]


def best_by_trying(scores, right, objects):
    """The threshold: all middles tried, from above."""
    best, best_f1 = None, 0.0
    ladder = [*sorted(set(scores.tolist()), reverse=True), 0]
    for score, lower in pairwise(ladder):
        if lower and score - lower < APART:
            continue
        taken = right[scores >= score]
        f1 = 2 * taken.sum() / (len(taken) + objects)
        best, best_f1 = ((score + lower) / 2, f1) if f1 > best_f1 else (best, best_f1)
    return best


@pytest.mark.parametrize("digits", [1, 6])
def test_thresholds_are_those_of_the_best_f1(digits):
    dice = np.random.default_rng(0)
    for _ in range(50):
        number = int(dice.integers(1, 40))
        scores, classes = dice.random(number).round(digits), dice.integers(0, 3, number)
        right, objects_ = dice.random(number) < scores, np.array([0, 3, 20]) + np.bincount(classes, minlength=3)
        whole = best_by_trying(scores, right, objects_.sum())
        wanted = []
        for index in range(3):
            own = classes == index
            one = best_by_trying(scores[own], right[own], objects_[index])
            wanted.append(one if one is not None else UNKNOWN if whole is None else whole)
        assert best_thresholds(scores, classes, right, objects_) == np.float32(wanted).tolist()
    assert best_thresholds(np.zeros(0), np.zeros(0, int), np.zeros(0, bool), np.array([0, 1])) == [UNKNOWN] * 2


def decisions(scores, classes, thresholds):
    """As prediction decides, in float32."""
    task = Detection()
    given = torch.from_numpy(scores.astype(np.float32))
    numbers = torch.arange(len(scores))
    boxes = numbers[:, None].expand(-1, 4).float()
    kept = task.confident(Instances(boxes, torch.from_numpy(classes), given), thresholds)
    return kept.boxes[:, 0].long().tolist()


def test_a_small_change_of_scores_changes_no_decision():
    dice = np.random.default_rng(0)
    changed_on_scores = 0
    for _ in range(50):
        number = int(dice.integers(2, 60))
        scores = dice.random(number).round(int(dice.integers(1, 7)))  # many are equal, or nearly so
        scores[::3] = np.clip(scores[0] + dice.normal(0, 3e-7, len(scores[::3])), 0, 1)
        scores = scores.astype(np.float32).astype(np.float64)
        classes, right = dice.integers(0, 3, number), dice.random(number) < scores
        objects_ = np.bincount(classes, minlength=3) + 2
        thresholds = best_thresholds(scores, classes, right, objects_)
        near = np.clip(scores + dice.choice([-1e-6, 1e-6], number), 0, 1)
        again = best_thresholds(near, classes, right, objects_)
        assert np.allclose(thresholds, again, rtol=0, atol=2e-6)
        wanted = decisions(scores, classes, thresholds)
        assert decisions(near, classes, thresholds) == decisions(near, classes, again) == wanted
        least = [scores[(classes == index) & (scores >= cut)].min(initial=1) for index, cut in enumerate(thresholds)]
        assert wanted == np.flatnonzero(scores >= np.array(thresholds)[classes]).tolist()  # as evaluation decides
        changed_on_scores += decisions(near, classes, least) != wanted
    assert changed_on_scores > 25  # control: a threshold that is a score


def test_thresholds_are_kept_as_they_are_compared():
    scores = np.float32([0.9, 0.7, 0.4]).astype(np.float64)
    (cut,) = best_thresholds(scores, np.zeros(3, int), np.array([True, True, False]), np.array([2]))
    assert cut == json.loads(json.dumps(cut)) == float(torch.tensor(cut))
    assert cut == pytest.approx(0.55)
    (cut,) = best_thresholds(scores, np.zeros(3, int), np.array([True, True, True]), np.array([3]))
    assert cut == pytest.approx(0.2)  # nothing is lower: half way to 0


def test_scores_that_rounding_can_exchange_stay_together():
    scores, classes = np.array([0.8, 0.8 - 1e-7, 0.3]), np.zeros(3, int)
    for right in ([True, False, False], [False, True, False]):
        assert best_thresholds(scores, classes, np.array(right), np.array([1])) == [pytest.approx(0.55)]
    apart = best_thresholds(np.array([0.8, 0.79, 0.3]), classes, np.array([True, False, False]), np.array([1]))
    assert apart == [pytest.approx(0.795)]  # control


def test_f1_at_given_thresholds():
    truth = objects((0, 0, 0, 10, 10), (0, 20, 0, 30, 10), (1, 0, 20, 10, 30))
    answer = objects((0, 0, 0, 10, 10, 0.9), (0, 40, 40, 50, 50, 0.8), (0, 20, 0, 30, 10, 0.7), (1, 0, 20, 9, 30, 0.2))
    own = scores_of([answer], [truth])
    table = dict(zip(NAMES, own.tables["operating_points"].values))
    assert table["cat"] == pytest.approx([0.35, 0.8, 2 / 3, 1.0])
    assert table["dog"] == pytest.approx([0.1, 1.0, 1.0, 1.0])
    assert table["owl"][0] == pytest.approx(0.1)  # that of all classes together: 6 of 7
    assert table["owl"][1:] == [None, None, None]
    assert own.numbers["f1"] == pytest.approx(0.9)
    given = scores_of([answer], [truth], thresholds=(0.85, 0.3, 0.5))
    table = dict(zip(NAMES, given.tables["operating_points"].values))
    assert table["cat"] == pytest.approx([0.85, 2 / 3, 1.0, 0.5])
    assert table["dog"] == [0.3, 0.0, None, 0.0]
    assert given.numbers["ap"] == own.numbers["ap"]  # no threshold there


def test_confusion_has_every_object_and_every_answer_once():
    truth = objects(
        (0, 0, 0, 10, 10),  # found
        (1, 20, 0, 30, 10),  # taken for an owl
        (2, 40, 0, 50, 10),  # missed
        (0, 60, 0, 70, 10),  # found, though a surer dog lies on it
        (1, 0, 50, 60, 90),  # a crowd
        crowd=torch.tensor([False, False, False, False, True]),
    )
    answer = objects(
        (1, 60, 0, 70, 10, 0.95),
        (0, 0, 0, 10, 9, 0.9),
        (2, 20, 0, 30, 9, 0.8),
        (0, 60, 0, 70, 8, 0.7),
        (1, 5, 55, 15, 65, 0.6),  # in the crowd
        (2, 5, 55, 15, 65, 0.6),  # there too, but of another class
        (2, 40, 0, 50, 10, 0.2),  # below its threshold
    )
    scores = scores_of([answer], [truth], thresholds=(0.5, 0.5, 0.5))
    table = scores.tables["confusion"]
    assert table.columns == table.rows == (*NAMES, BACKGROUND)
    assert table.values == [[2, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 1, 1, 0]]


def test_confusion_counts_of_random_pictures_add_up():
    dice = np.random.default_rng(1)
    pairs, shared, objects_, said = [], [], np.zeros(3, int), np.zeros(3, int)
    thresholds = np.array([0.2, 0.5, 0.8])
    for _ in range(20):
        boxes = dice.integers(0, 20, (12, 2)).astype(np.float32)
        rows = [(int(dice.integers(3)), x, y, x + 10, y + 10, dice.random()) for x, y in boxes]
        both = pair(objects(*rows[:7]), objects(*rows[7:])._replace(scores=None), kinds=("boxes",))
        pairs.append(both)
        shared.append(overlaps(both, "boxes"))
        objects_ += np.bincount(both.truth.classes, minlength=3)
        sure = both.answer.scores >= thresholds[both.answer.classes]
        said += np.bincount(both.answer.classes[sure], minlength=3)
    counts = confusion(pairs, shared, thresholds)
    assert counts[:3].sum(1).tolist() == objects_.tolist()
    assert counts[:, :3].sum(0).tolist() == said.tolist()
    assert counts[3, 3] == 0
    assert 0 < counts[:3, :3].trace() < counts[:3, :3].sum()


def test_calibration_is_the_score_against_the_precision():
    dice = np.random.default_rng(2)
    answers, truths = [], []
    for _ in range(400):
        score = float(dice.random())
        answers.append(objects((0, 0, 0, 10, 10, score), (1, 30, 30, 40, 40, 0.04)))  # the second is below the floor
        there = dice.random() < score
        truths.append(objects((0, 0, 0, 10, 10)) if there else objects((1, 70, 70, 80, 80)))
    honest = scores_of(answers, truths)
    boasting = scores_of([one._replace(scores=one.scores**0.3) for one in answers], truths)
    assert honest.numbers["ece"] < 0.08
    assert boasting.numbers["ece"] > 0.15
    table = honest.tables["reliability"]
    assert sum(row[2] for row in table.values) == sum(float(one.scores[0]) >= 0.05 for one in answers)
