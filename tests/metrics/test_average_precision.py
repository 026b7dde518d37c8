import pytest
import torch

from patchform.metrics.average_precision import AveragePrecision, average_precision
from patchform.records import Label


def by_definition(scores, present):
    """Mean precision over the images that have the class: among those that score no less, how many have it?"""
    precisions = []
    for score, has in zip(scores, present):
        if has:
            among = [other for value, other in zip(scores, present) if value >= score]
            precisions.append(sum(among) / len(among))
    return sum(precisions) / len(precisions) if precisions else None


def data(seed, *, ties, images=50, classes=6):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, classes, generator=draw)
    if ties:
        scores = (scores * 4).floor() / 4
    present = torch.rand(images, classes, generator=draw) > 0.7
    present[:, 2] = False  # a class that no image has
    return scores, present


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_the_definition(seed, ties):
    scores, present = data(seed, ties=ties)
    found = average_precision(scores, present)
    wanted = [by_definition(s.tolist(), p.tolist()) for s, p in zip(scores.T, present.T)]
    assert found[2].isnan()
    assert wanted[2] is None
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(found[kept], torch.tensor([wanted[i] for i in kept], dtype=torch.float64))
    assert not torch.allclose(average_precision(scores.flip(1), present)[kept], found[kept])  # control


@pytest.mark.parametrize("ties", [False, True])
def test_equals_scikit_learn(ties):
    metrics = pytest.importorskip("sklearn.metrics")
    scores, present = data(9, ties=ties)
    found = average_precision(scores, present)
    for index in (0, 1, 3, 4, 5):
        wanted = metrics.average_precision_score(present[:, index].numpy(), scores[:, index].numpy())
        assert found[index].item() == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 8, 50])
def test_metric(batch):
    scores, present = data(1, ties=True)
    metric = AveragePrecision("abcdef")
    guesses = [Label((row > 0.5).nonzero().flatten(), row) for row in scores]
    truths = [Label(row.nonzero().flatten()) for row in present]
    for start in range(0, 50, batch):
        metric.update(guesses[start : start + batch], truths[start : start + batch])
    found = metric.compute()
    wanted = [by_definition(s.tolist(), p.tolist()) for s, p in zip(scores.T, present.T)]
    defined = [value for value in wanted if value is not None]
    assert found.numbers["map"] == pytest.approx(sum(defined) / len(defined))
    assert found.numbers["exact"] == sum(bool(((s > 0.5) == p).all()) for s, p in zip(scores, present)) / 50
    assert found.tables["classes"].values[2] == [None, 0]
    assert found.best == found.numbers["map"]


def test_a_perfect_ranking_scores_one():
    _, present = data(3, ties=False)
    kept = [0, 1, 3, 4, 5]
    assert torch.equal(average_precision(present.float(), present)[kept], torch.ones(5, dtype=torch.float64))
