import pytest
import torch

from patchform.errors import DataError
from patchform.metrics.accuracy import Accuracy
from patchform.records import Label

NAMES = tuple("abcdefgh")


def by_definition(scores, truth):
    """The definitions in plain Python: classes sorted by score, equal ones in the order of the classes."""
    ranks = []
    confusion = [[0] * len(NAMES) for _ in NAMES]
    for row, label in zip(scores.tolist(), truth.tolist()):
        order = sorted(range(len(row)), key=lambda index: (-row[index], index))
        ranks.append(order.index(label))
        confusion[label][order[0]] += 1
    recalls = [row[index] / sum(row) if sum(row) else None for index, row in enumerate(confusion)]
    defined = [recall for recall in recalls if recall is not None]
    return {
        "top1": sum(rank < 1 for rank in ranks) / len(ranks),
        "top5": sum(rank < 5 for rank in ranks) / len(ranks),
        "mean_class_accuracy": sum(defined) / len(defined),
        "recalls": recalls,
        "confusion": confusion,
    }


def data(seed, images=60, *, ties):
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(images, len(NAMES), generator=draw)
    if ties:
        scores = (scores * 3).floor()  # only 0, 1, 2: nearly every row has equal best scores
    truth = torch.randint(len(NAMES) - 1, (images,), generator=draw)  # "h" never occurs
    return scores, truth


def score(scores, truth, batch):
    metric = Accuracy(NAMES)
    for rows, labels in zip(scores.split(batch), truth.split(batch)):
        metric.update([Label(row.argmax(0, keepdim=True), row) for row in rows], [Label(one[None]) for one in labels])
    return metric.compute()


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_equals_the_definition(seed, ties):
    scores, truth = data(seed, ties=ties)
    wanted, found = by_definition(scores, truth), score(scores, truth, 7)
    for name in ("top1", "top5", "mean_class_accuracy"):
        assert found.numbers[name] == pytest.approx(wanted[name], abs=1e-12)
    assert [row[0] for row in found.tables["classes"].values] == wanted["recalls"]
    assert found.tables["confusion"].values == wanted["confusion"]
    assert found.tables["classes"].values[-1] == [None, 0, sum(row[-1] for row in wanted["confusion"])]
    control = by_definition(scores, truth.roll(1))
    assert found.tables["confusion"].values != control["confusion"]


def test_log_loss():
    scores, truth = data(0, ties=False)
    probabilities = (scores * 4).softmax(1)
    wanted = torch.nn.functional.nll_loss(probabilities.log(), truth).item()
    assert score(probabilities, truth, 7).numbers["log_loss"] == pytest.approx(wanted, rel=1e-6)
    certain_and_wrong = torch.eye(len(NAMES))[(truth + 1) % len(NAMES)]
    assert score(certain_and_wrong, truth, 7).numbers["log_loss"] == pytest.approx(87.34, abs=0.01)  # finite


@pytest.mark.parametrize("batch", [1, 4, 16, 60])
def test_batch_size_and_order_do_not_matter(batch):
    scores, truth = data(3, ties=True)
    order = torch.randperm(len(truth), generator=torch.Generator().manual_seed(0))
    whole, other = score(scores, truth, 60), score(scores[order], truth[order], batch)
    assert other.tables == whole.tables
    assert other.numbers == pytest.approx(whole.numbers, abs=1e-9)


def test_a_constant_model_is_not_always_right():
    truth = torch.arange(len(NAMES))
    found = score(torch.full((len(NAMES), len(NAMES)), 0.125), truth, 8).numbers
    assert (found["top1"], found["top5"]) == (1 / 8, 5 / 8)


def test_top5_is_not_defined_below_six_classes():
    metric = Accuracy("abcde")
    metric.update([Label(torch.tensor([0]), torch.eye(5)[0])], [Label(torch.tensor([0]))])
    assert metric.compute().numbers["top5"] is None


def test_an_image_needs_exactly_one_class():
    guess = Label(torch.tensor([0]), torch.eye(8)[0])
    with pytest.raises(DataError, match="exactly one"):
        Accuracy(NAMES).update([guess], [Label(torch.tensor([0, 1]))])
    with pytest.raises(DataError, match="without scores"):
        Accuracy(NAMES).update([Label(torch.tensor([0]))], [Label(torch.tensor([0]))])
