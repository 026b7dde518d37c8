import numpy as np
import pytest
import torch

from patchform.errors import DataError
from patchform.metrics.intersection import BoundaryIntersection, Intersection, near_boundary
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
    assert set(metric.compute().numbers.values()) == {1.0}
    metric = Intersection("abcd")
    metric.update([truth], [Regions(torch.full((9, 7), 255))])
    assert set(metric.compute().numbers.values()) == {None}


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="pixels for a mask"):
        Intersection("ab").update([Regions(masks(0, 2))], [Regions(masks(0, 2, (3, 3)))])
    with pytest.raises(DataError, match="beyond the 2 classes"):
        Intersection("ab").update([Regions(masks(0, 2))], [Regions(masks(0, 2) + 1)])


def definition(guesses, truths, classes):
    """IoU by class, accuracy by class, share of the true pixels: None where a class has no true pixel."""
    truth = np.concatenate([truth.numpy().ravel() for truth in truths])
    guess = np.concatenate([guess.numpy().ravel() for guess in guesses])
    guess, truth = guess[truth != 255], truth[truth != 255]
    ious, accuracies, shares = [], [], []
    for c in range(classes):
        there = (truth == c).any()
        ious.append(((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum() if there else None)
        accuracies.append((guess[truth == c] == c).mean() if there else None)
        shares.append((truth == c).mean() if there else 0)
    return ious, accuracies, shares


def random_case(seed):
    """Up to 4 images of up to 12 classes, some of which never occur in the truth; with ignored pixels."""
    dice = np.random.default_rng(seed)
    classes = int(dice.integers(1, 13))
    present = dice.permutation(classes)[: dice.integers(1, classes + 1)]
    guesses, truths = [], []
    for _ in range(dice.integers(1, 5)):
        size = tuple(dice.integers(1, 20, 2))
        truth = dice.choice(present, size)
        guess = np.where(dice.random(size) < dice.random(), truth, dice.integers(0, classes, size))
        truth[dice.random(size) < dice.choice([0, 0.3, 0.95])] = 255
        guesses.append(torch.from_numpy(guess))
        truths.append(torch.from_numpy(truth))
    return guesses, truths, classes


def mean_of(values):
    return np.mean([value for value in values if value is not None])


def test_equals_twelve_lines_on_200_random_cases():
    absent, zeros = 0, 0
    for seed in range(200):
        guesses, truths, classes = random_case(seed)
        metric = Intersection([f"c{index}" for index in range(classes)])
        for guess, truth in zip(guesses, truths):  # one by one, in the types that a data set and a model give
            metric.update([Regions(guess)], [Regions(truth.to(torch.uint8))])
        found = metric.compute()
        ious, accuracies, shares = definition(guesses, truths, classes)
        table = [row[:2] for row in found.tables["classes"].values]
        assert [[a is None for a in row] for row in table] == [[a is None] * 2 for a in ious]
        wanted = np.array([ious, accuracies], float).T  # NaN for None
        np.testing.assert_allclose(np.array(table, float), wanted, rtol=1e-12)
        if not any(shares):
            assert set(found.numbers.values()) == {None}
            continue
        right = sum(share * (accuracy or 0) for share, accuracy in zip(shares, accuracies))
        assert found.numbers == pytest.approx(
            {
                "mean_iou": mean_of(ious),
                "pixel_accuracy": right,
                "class_accuracy": mean_of(accuracies),
                "frequency_iou": sum(share * (iou or 0) for share, iou in zip(shares, ious)),
            },
            rel=1e-12,
        )
        absent += None in ious
        zeros += None in ious and mean_of(ious) != pytest.approx(mean_of([iou or 0 for iou in ious]))
    assert absent > 50
    assert zeros > 50  # the control: an absent class counted as 0 gives another number


# ----------------------------------------------------------------------------------------------------------- boundaries


def near_by_definition(mask, distance):
    """(H, W) bool: a pixel of `mask` from which the outside of it is at most `distance` rows and columns away."""
    height, width = mask.shape
    near = np.zeros_like(mask)
    for y, x in zip(*mask.nonzero()):
        for v in range(y - distance, y + distance + 1):
            for u in range(x - distance, x + distance + 1):
                if not (0 <= v < height and 0 <= u < width and mask[v, u]):
                    near[y, x] = True
    return near


def blobs(seed, ids, size):
    coarse = masks(seed, ids, (-(-size[0] // 5), -(-size[1] // 5)))
    return coarse.repeat_interleave(5, 0).repeat_interleave(5, 1)[: size[0], : size[1]]


@pytest.mark.parametrize("distance", [1, 2, 3, 7])
def test_near_the_boundary_as_defined(distance):
    classes = blobs(distance, 3, (23, 17))
    classes[:9, :9] = 1
    found = near_boundary(classes, distance).numpy()
    wanted = np.zeros_like(found)
    for index in range(3):
        wanted |= near_by_definition((classes == index).numpy(), distance)
    assert (found == wanted).all()
    assert not (near_boundary(classes, distance + 1).numpy() == wanted).all() or wanted.all()  # control


def test_boundary_intersection_as_defined_over_a_set_of_images():
    sizes, share = [(20, 30), (33, 12), (25, 25)], 0.06  # distances of 2
    truths = [blobs(seed, 3, size) for seed, size in enumerate(sizes)]  # class 3 never occurs
    guesses = [
        torch.where(blobs(seed + 9, 2, size) > 0, truth, torch.roll(truth, 2, 1))
        for seed, (truth, size) in enumerate(zip(truths, sizes))
    ]
    guesses[0][:3] = 3
    truths[1][8:14, :7] = 255
    truths[2][:] = 255
    metric = BoundaryIntersection("abcd", share_of_diagonal=share)
    metric.update([Regions(guess) for guess in guesses], [Regions(truth.to(torch.uint8)) for truth in truths])
    found = metric.compute()
    wanted = []
    for index in range(3):
        both = either = 0
        for guess, truth in zip(guesses, truths):
            hidden = (truth == 255).numpy()
            one = near_by_definition((truth == index).numpy(), 2)
            two = near_by_definition((guess == index).numpy() & ~hidden, 2)
            both, either = both + (one & two).sum(), either + (one | two).sum()
        wanted.append(both / either)
    assert [row[0] for row in found.tables["boundary"].values] == pytest.approx([*wanted, None])
    assert found.numbers["boundary_iou"] == pytest.approx(np.mean(wanted))
    assert 0.1 < found.numbers["boundary_iou"] < 0.9
    whole = Intersection("abcd")
    whole.update([Regions(guess) for guess in guesses], [Regions(truth) for truth in truths])
    assert whole.compute().numbers["mean_iou"] != pytest.approx(found.numbers["boundary_iou"], abs=0.01)  # control


def test_boundaries_of_a_truth_against_itself_score_one_and_of_nothing_are_none():
    truth = blobs(0, 4, (40, 40))
    truth[10:20, 5:30] = 255
    guess = truth.clone()
    guess[truth == 255] = 2  # what is predicted there does not matter
    metric = BoundaryIntersection("abcd")
    metric.update([Regions(guess)], [Regions(truth)])
    assert metric.compute().numbers == {"boundary_iou": 1.0}
    metric = BoundaryIntersection("abcd")
    metric.update([Regions(guess)], [Regions(torch.full_like(truth, 255))])
    assert metric.compute().numbers == {"boundary_iou": None}
    with pytest.raises(DataError, match="beyond the 2 classes"):
        BoundaryIntersection("ab").update([Regions(truth)], [Regions(truth)])
    with pytest.raises(DataError, match="pixels for a mask"):
        BoundaryIntersection("ab").update([Regions(truth)], [Regions(truth[1:])])


def test_a_distance_is_two_per_cent_of_the_diagonal_but_a_pixel_at_least():
    for size, distance in (((3, 4), 1), ((60, 80), 2), ((300, 400), 10)):
        truth = torch.zeros(size, dtype=torch.int64)
        metric = BoundaryIntersection("a")
        metric.update([Regions(truth)], [Regions(truth)])
        inside = max(0, size[0] - 2 * distance) * max(0, size[1] - 2 * distance)
        assert metric.compute().tables["boundary"].values[0][1] == size[0] * size[1] - inside
