import pytest
import torch

from patchform.errors import DataError
from patchform.metrics.intersection import Intersection
from patchform.records import Regions


def masks(seed, ids, size=(9, 7)):
    return torch.randint(ids, size, generator=torch.Generator().manual_seed(seed))


def test_equals_the_definition_over_sets_of_pixels():
    truths = [masks(seed, 3) for seed in range(4)]  # class 3 never occurs
    guesses = [torch.where(masks(seed + 50, 3) > 0, truth, masks(seed + 90, 4)) for seed, truth in enumerate(truths)]
    truths[1][:4] = 255
    metric = Intersection("abcd")
    metric.update([Regions(guess) for guess in guesses], [Regions(truth) for truth in truths])
    found = metric.compute()
    wanted = []
    for index in range(3):
        true = {(n, y, x) for n, mask in enumerate(truths) for y, x in (mask == index).nonzero().tolist()}
        counted = {(n, y, x) for n, mask in enumerate(truths) for y, x in (mask != 255).nonzero().tolist()}
        guess = {(n, y, x) for n, mask in enumerate(guesses) for y, x in (mask == index).nonzero().tolist()} & counted
        wanted.append(len(true & guess) / len(true | guess))
    assert [row[0] for row in found.tables["classes"].values] == pytest.approx([*wanted, None])
    assert found.numbers["mean_iou"] == pytest.approx(sum(wanted) / 3)
    right = sum(int((guess == truth).sum()) for guess, truth in zip(guesses, truths))
    assert found.numbers["pixel_accuracy"] == right / sum(int((truth != 255).sum()) for truth in truths)
    assert found.samples == 4
    assert found.numbers["mean_iou"] != 1


def test_truth_against_itself_scores_one_and_nothing_but_ignored_pixels_is_none():
    truth = Regions(masks(0, 4))
    metric = Intersection("abcd")
    metric.update([truth], [truth])
    assert metric.compute().numbers == {"mean_iou": 1.0, "pixel_accuracy": 1.0}
    metric = Intersection("abcd")
    metric.update([truth], [Regions(torch.full((9, 7), 255))])
    assert metric.compute().numbers == {"mean_iou": None, "pixel_accuracy": None}


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="pixels for a mask"):
        Intersection("ab").update([Regions(masks(0, 2))], [Regions(masks(0, 2, (3, 3)))])
    with pytest.raises(DataError, match="beyond the 2 classes"):
        Intersection("ab").update([Regions(masks(0, 2))], [Regions(masks(0, 2) + 1)])
