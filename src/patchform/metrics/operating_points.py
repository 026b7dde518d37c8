"""What a detector is worth at a threshold on its scores, and whether they say how often it is right.

The threshold of a class lies between the scores that give the best F1 on validation data and the next lower one.
Calibration is that of Küppers et al.,
"Multivariate confidence calibration for object detection" (2020), of scores alone: they are held against the precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from patchform.metrics.base import Table, mean, share
from patchform.metrics.calibration import expected_calibration_error, reliability_table
from patchform.metrics.overlap import ENOUGH, RIGHT, UNJUDGED, Kind, Pair, count, judged, overlaps

UNKNOWN = 0.5
"""Threshold where nothing was found that could tell one."""
APART = 1e-5
"""Scores that are nearer than this may change places with the processor or the size of a batch: no threshold parts
them."""
FLOOR = 0.05
"""Scores below it are not in the calibration: some detectors give a hundred such answers to each picture."""
BACKGROUND = "background"
"""In a confusion matrix: what was missed, and what is not there."""


class Judgement(NamedTuple):
    """Part of `base.Scores`."""

    numbers: dict[str, float | None]
    tables: dict[str, Table]


def judge(
    pairs: Sequence[Pair], classes: Sequence[str], kind: Kind, thresholds: Sequence[float] | None = None
) -> Judgement:
    """Numbers and tables at one threshold a class.

    Numbers: `f1` (mean over the classes that occur), `ece`. Tables: `operating_points`, a row a class; `reliability`,
    a row a bin of scores; `confusion`, with a last row and column for `BACKGROUND`.

    Args:
        pairs: truths and answers of pictures.
        classes: names.
        kind: what must overlap by half.
        thresholds: one a class; None: the best on these data.
    """
    ious = [overlaps(both, kind) for both in pairs]
    verdicts = _joined([judged(both, overlap) for both, overlap in zip(pairs, ious)], np.int8)
    counted = verdicts != UNJUDGED
    right = verdicts[counted] == RIGHT
    scores = _joined([both.answer.scores for both in pairs], np.float64)[counted]
    class_of = _joined([both.answer.classes for both in pairs], np.int64)[counted]
    objects = count(pairs, len(classes))
    if thresholds is None:
        thresholds = best_thresholds(scores, class_of, right, objects)
    rows = []
    for index, (threshold, number) in enumerate(zip(thresholds, objects.tolist())):
        taken = right[(class_of == index) & (scores >= threshold)]
        hits = int(taken.sum())
        f1 = share(2 * hits, len(taken) + number) if number else None
        rows.append([threshold, f1, share(hits, len(taken)), share(hits, number)])
    confidence, correct = (torch.tensor(values[scores >= FLOOR]) for values in (scores, right))
    names = (*classes, BACKGROUND)
    return Judgement(
        {"f1": mean([row[1] for row in rows]), "ece": expected_calibration_error(confidence, correct)},
        {
            "operating_points": Table(("threshold", "f1", "precision", "recall"), tuple(classes), rows),
            "reliability": reliability_table(confidence, correct, ("confidence", "precision", "predictions")),
            "confusion": Table(names, names, confusion(pairs, ious, np.asarray(thresholds)).tolist()),
        },
    )


def best_thresholds(scores: np.ndarray, classes: np.ndarray, right: np.ndarray, objects: np.ndarray) -> list[float]:
    """The threshold of each class at which its answers have the best F1, the highest of equals.

    It lies in the middle between two neighbouring scores that are `APART`, so that no score lies on it, and below the
    last one in the middle between that and 0. It is a float32, as scores are: it is kept and compared as it is. A class
    of which nothing was found takes that of all classes together, and where nothing at all was, `UNKNOWN`.

    Args:
        scores: (N,) of all answers.
        classes: (N,) theirs.
        right: (N,) bool.
        objects: (C,) how many there are.
    """
    overall = _best(scores, right, int(objects.sum()))
    if overall is None:
        overall = UNKNOWN
    of_class = [classes == index for index in range(len(objects))]
    thresholds = [_best(scores[own], right[own], number) for own, number in zip(of_class, objects.tolist())]
    return [overall if threshold is None else threshold for threshold in thresholds]


def _best(scores: np.ndarray, right: np.ndarray, objects: int) -> float | None:
    """None where no answer is right."""
    if not right.any():
        return None
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], right[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(hits) + 1) + objects)
    lower = np.append(ranked[1:], 0)
    f1[:-1][ranked[:-1] - lower[:-1] < APART] = 0  # these are taken together or not at all
    last = f1.argmax()
    return float(np.float32((ranked[last] + lower[last]) / 2))


def confusion(pairs: Sequence[Pair], ious: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Counts of objects (rows, the last one: nothing is there) by what they are taken for (columns, the last: missed).

    Answers above their threshold and objects that overlap by half are joined one to one, those of the same class first,
    then those that overlap most. What is left over of answers is wrong, unless it lies in a crowd of its class.

    Args:
        pairs: truths and answers of P pictures.
        ious: their overlaps.
        thresholds: (C,).

    Returns:
        (C + 1, C + 1) int64.
    """
    nothing = len(thresholds)
    counts = np.zeros((nothing + 1, nothing + 1), np.int64)
    for (truth, answer), overlap in zip(pairs, ious):
        open_answers, open_truths = answer.scores >= thresholds[answer.classes], ~truth.crowd
        same = answer.classes[:, None] == truth.classes
        near = overlap >= ENOUGH
        rows, columns = np.nonzero(near & open_answers[:, None] & open_truths)
        for index in np.lexsort((-overlap[rows, columns], ~same[rows, columns])):
            row, column = rows[index], columns[index]
            if open_answers[row] and open_truths[column]:
                open_answers[row] = open_truths[column] = False
                counts[truth.classes[column], answer.classes[row]] += 1
        in_crowds = (near & same & truth.crowd).any(1)
        np.add.at(counts, (nothing, answer.classes[open_answers & ~in_crowds]), 1)
        np.add.at(counts, (truth.classes[open_truths], nothing), 1)
    return counts


def _joined(parts: Sequence[np.ndarray], kind: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, kind), *parts]).astype(kind)
