"""Average precision of objects against the COCO tools themselves."""

import contextlib
import io
import json
import math

import numpy as np
import pytest
import torch

from patchform.errors import DataError, DivergedError
from patchform.geometry import masks
from patchform.metrics.objects import ObjectPrecision
from patchform.records import Instances

NAMES = ("cat", "dog", "owl", "bee")
SIZE = (160, 200)


def ellipses(boxes, size=SIZE):
    """(N, H, W) bool: a mask that fills its box as an ellipse does; a pixel where that would be nothing."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    found = np.zeros((len(boxes), *size), bool)
    for mask, (left, top, right, bottom) in zip(found, np.asarray(boxes, np.float64)):
        wide, high = max(right - left, 1) / 2, max(bottom - top, 1) / 2
        mask |= ((x - (left + right) / 2) / wide) ** 2 + ((y - (top + bottom) / 2) / high) ** 2 <= 1
        if not mask.any():
            mask[min(int(top), size[0] - 1), min(int(left), size[1] - 1)] = True
    return torch.from_numpy(found)


def some_boxes(dice, number):
    """(N, 4) float32: small, medium and large ones, inside the picture; some of exactly 32 x 32 and 96 x 96 pixels."""
    sides = dice.choice([4, 12, 32, 50, 96, 130], (number, 2)) * dice.choice([1, 1, 1.1], (number, 2))
    same = dice.random(number) < 0.3
    sides[same, 1] = sides[same, 0]
    corners = np.floor(dice.random((number, 2)) * (np.array(SIZE[::-1]) - sides))
    return np.concatenate([corners, corners + sides], 1).astype(np.float32)


def a_set(seed, with_masks):
    """(predictions, targets) of a few pictures: crowds, equal scores, empty pictures, empty answers, 150 answers."""
    dice = np.random.default_rng(seed)
    classes = int(dice.integers(1, 5))
    predictions, targets = [], []
    for picture in range(int(dice.integers(1, 7))):
        number = int(dice.choice([0, 1, 4, 9]))
        boxes, of = some_boxes(dice, number), dice.integers(0, classes, number)
        near = np.repeat(boxes, 2, 0) + dice.normal(0, 3, (2 * number, 4)).astype(np.float32) * dice.choice([0, 1, 3])
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        more = int(dice.choice([0, 3, 150])) if not (with_masks and picture) else 3
        guessed = np.concatenate([near, some_boxes(dice, more)])[dice.permutation(2 * number + more)]
        guessed = guessed[: 0 if dice.random() < 0.2 else None]
        guessed_of = dice.integers(0, classes, len(guessed))
        if dice.random() < 0.7 and len(guessed):
            guessed_of[:] = guessed_of[0]
        scores = dice.random(len(guessed))
        if dice.random() < 0.5:  # equal ones, in a picture and between pictures
            scores = np.round(scores, 1)
        scores = -np.sort(-scores)
        crowd = torch.tensor(dice.random(number) < 0.2)
        areas = torch.tensor((boxes[:, 2:] - boxes[:, :2]).prod(1) * dice.choice([0.7, 1], number).astype(np.float32))
        targets.append(
            Instances(
                torch.tensor(boxes),
                torch.tensor(of),
                masks=masks.from_dense(ellipses(boxes)) if with_masks else None,
                crowd=crowd if dice.random() < 0.8 else None,
                areas=areas if dice.random() < 0.8 else None,
            )
        )
        predictions.append(
            Instances(
                torch.tensor(guessed),
                torch.tensor(guessed_of),
                torch.tensor(scores, dtype=torch.float32),
                masks=masks.from_dense(ellipses(guessed)) if with_masks else None,
            )
        )
    return predictions, targets, classes


def by_pycocotools(predictions, targets, classes, kind):
    """(numbers by our names, precision, recall) of the reference implementation, from its own file formats."""
    coco, tool = pytest.importorskip("pycocotools.coco"), pytest.importorskip("pycocotools.cocoeval")
    runs = pytest.importorskip("pycocotools.mask")

    def segmentations(target):
        if target.masks is None:
            return [None] * len(target.boxes)
        dense = masks.to_dense(target.masks).numpy().astype(np.uint8)
        return [runs.encode(np.asfortranarray(one)) for one in dense]

    def xywh(box):
        left, top, right, bottom = box.double().tolist()
        return [left, top, right - left, bottom - top]

    truth, results = [], []
    for image, (guess, target) in enumerate(zip(predictions, targets)):
        for index, (box, outline) in enumerate(zip(target.boxes, segmentations(target))):
            area = xywh(box)[2] * xywh(box)[3] if outline is None else int(runs.area(outline))
            one = {"id": len(truth) + 1, "image_id": image, "category_id": int(target.classes[index])}
            one |= {"bbox": xywh(box), "area": area if target.areas is None else float(target.areas[index])}
            one |= {"iscrowd": int(target.crowd is not None and bool(target.crowd[index]))}
            truth.append(one | ({} if outline is None else {"segmentation": outline}))
        for index, (box, outline) in enumerate(zip(guess.boxes, segmentations(guess))):
            one = {"image_id": image, "category_id": int(guess.classes[index]), "score": float(guess.scores[index])}
            one |= {"bbox": xywh(box)} if outline is None else {"segmentation": outline}
            results.append(one)
    with contextlib.redirect_stdout(io.StringIO()):
        known = coco.COCO()
        known.dataset = {
            "images": [{"id": image, "height": SIZE[0], "width": SIZE[1]} for image in range(len(targets))],
            "categories": [{"id": index, "name": NAMES[index]} for index in range(classes)],
            "annotations": truth,
        }
        known.createIndex()
        if results:
            answers = known.loadRes(results)
        else:  # it cannot read an empty list of results
            answers = coco.COCO()
            answers.dataset = {**known.dataset, "annotations": []}
            answers.createIndex()
        judge = tool.COCOeval(known, answers, "segm" if kind == "masks" else "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "ar_1", "ar_10", "ar_100", "ar_small")
    names += ("ar_medium", "ar_large")
    return dict(zip(names, judge.stats)), judge.eval["precision"], judge.eval["recall"]


def compared(seed, kind):
    """The largest difference from the reference over all numbers and curves."""
    predictions, targets, classes = a_set(seed, kind == "masks")
    wanted, precision, recall = by_pycocotools(predictions, targets, classes, kind)
    metric = ObjectPrecision(NAMES[:classes], kinds=(kind,))
    for start in range(0, len(targets), 2):
        metric.update(predictions[start : start + 2], targets[start : start + 2])
    scores = metric.compute()
    pairs = [(scores.numbers[name], value) for name, value in wanted.items()]
    table = scores.tables["precision_recall"].values
    for index, row in enumerate(scores.tables["classes"].values):
        kept = [x[x > -1] for x in (precision[:, :, index, 0, 2], precision[0, :, index, 0, 2], recall[:, index, 0, 2])]
        pairs += list(zip(row[:3], [x.mean() if len(x) else -1 for x in kept]))
        pairs += list(zip(table[index], precision[0, :, index, 0, 2]))
    return max(abs((-1 if ours is None else ours) - theirs) for ours, theirs in pairs), scores


@pytest.mark.parametrize(("kind", "sets"), [("boxes", 30), ("masks", 10)])
def test_equal_to_pycocotools_on_random_sets(kind, sets):
    found = [compared(seed, kind) for seed in range(sets)]
    assert max(difference for difference, _ in found) < 1e-6
    values = [scores.numbers["ap"] for _, scores in found if scores.numbers["ap"] is not None]
    assert len({round(value, 3) for value in values}) > sets / 2  # the sets are not trivial


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["boxes", "masks"])
def test_equal_to_pycocotools_on_two_hundred_random_sets(kind):
    assert max(compared(seed, kind)[0] for seed in range(100, 300)) < 1e-6


def test_controls_of_the_comparison_differ():
    """The random sets would tell: crowds that count, other areas, other orders of equal scores, 50 answers."""
    spoilers = {
        "crowds": lambda guess, truth: (guess, truth._replace(crowd=None)),
        "areas": lambda guess, truth: (guess, truth._replace(areas=torch.full((len(truth.boxes),), 5000.0))),
        "order": lambda guess, truth: (
            Instances(*(x.flip(0) for x in guess[:2]), scores=guess.scores.flip(0)),
            truth,
        ),
        "most": lambda guess, truth: (Instances(*(x[:50] for x in guess[:3])), truth),
    }
    differences = dict.fromkeys(spoilers, 0.0)
    for seed in range(20):
        predictions, targets, classes = a_set(seed, False)
        wanted = judge(predictions, targets, classes).numbers
        for name, spoil in spoilers.items():
            found = judge(*zip(*map(spoil, predictions, targets)), classes).numbers
            gaps = [abs((a or 0) - (found[key] or 0)) for key, a in wanted.items() if key.startswith(("ap", "ar"))]
            differences[name] = max(differences[name], *gaps)
    assert min(differences.values()) > 1e-3, differences


def judge(predictions, targets, classes, **options):
    metric = ObjectPrecision(NAMES[:classes], **options)
    metric.update(list(predictions), list(targets))
    return metric.compute()


@pytest.mark.parametrize("kinds", [("boxes",), ("masks", "boxes")])
def test_a_truth_against_itself_is_one_and_what_does_not_occur_is_none(kinds):
    _, targets, classes = a_set(11, True)
    assert any(target.crowd is not None and target.crowd.any() for target in targets)
    said = [target._replace(scores=torch.ones(len(target.boxes)), crowd=None) for target in targets]
    scores = judge(said, targets, 4, kinds=kinds)
    assert scores.better == "ap"
    assert scores.samples == len(targets)
    assert {scores.numbers[name] for name in ("ap", "ap50", "ap75", "ar_100", "f1")} == {1.0}
    assert ("box_ap" in scores.numbers) == (len(kinds) == 2)
    for row, name in zip(scores.tables["classes"].values, NAMES):
        assert row[:3] == [1.0] * 3 if row[3] else row == [None, None, None, 0], name
    if classes < 4:
        assert scores.tables["precision_recall"].values[3] == [None] * 101
    json.dumps(scores.as_json(), allow_nan=False)


def test_order_and_batches_do_not_matter():
    predictions, targets, classes = a_set(3, False)
    dice = np.random.default_rng(0)
    predictions = [one._replace(scores=torch.tensor(-np.sort(-dice.random(len(one.boxes))))) for one in predictions]
    wanted = judge(predictions, targets, classes)
    metric = ObjectPrecision(NAMES[:classes])
    for index in dice.permutation(len(targets)):
        metric.update([predictions[index]], [targets[index]])
    found = metric.compute()
    for name, value in wanted.numbers.items():
        assert found.numbers[name] == pytest.approx(value, abs=1e-6), name
    assert found.tables["confusion"] == wanted.tables["confusion"]


def test_nothing_is_none_everywhere():
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    for batch in ([], [empty]):
        scores = judge(batch, [one._replace(scores=None) for one in batch], 2)
        assert set(scores.numbers.values()) == {None}
        json.dumps(scores.as_json(), allow_nan=False)
    there = Instances(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([1]))
    scores = judge([empty], [there], 2)
    assert (scores.numbers["ap"], scores.numbers["ar_100"], scores.numbers["ap_large"]) == (0.0, 0.0, None)
    scores = judge([there._replace(scores=torch.tensor([0.9]))], [empty._replace(scores=None)], 2)
    assert scores.numbers["ap"] is None
    assert scores.tables["confusion"].values[2][1] == 1


def test_wrong_predictions_are_refused():
    good = Instances(torch.tensor([[1.0, 2, 30, 40]]), torch.tensor([1]), torch.tensor([0.5]))
    wrong = {
        "without scores": good._replace(scores=None),
        "beyond the 2": good._replace(classes=torch.tensor([2])),
        "not finite": good._replace(scores=torch.tensor([math.nan])),
        "are not finite": good._replace(boxes=torch.full((1, 4), math.inf)),
    }
    for said, one in wrong.items():
        with pytest.raises((DataError, DivergedError), match=said):
            judge([one], [good._replace(scores=None)], 2)
    with pytest.raises(DataError, match="predictions for"):
        judge([], [good], 2)
    with pytest.raises(DataError, match="without masks"):
        judge([good], [good], 2, kinds=("masks",))
    small, large = (good._replace(masks=masks.from_dense(torch.ones(1, side, side))) for side in (8, 9))
    with pytest.raises(DataError, match=r"9, 9.*8, 8"):
        judge([large], [small], 2, kinds=("masks",))
