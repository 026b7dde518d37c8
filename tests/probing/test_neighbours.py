"""The votes of neighbours against their definition, written out one pair at a time."""

import math

import pytest
import torch

from patchform.errors import UsageError
from patchform.probing.frozen import Frozen
from patchform.probing.neighbours import vote

CLASSES = 5


def defined(train, labels, queries, k, temperature, *, later_first=False):
    """Wu et al. 2018, section 3.4, in float64; of equally near ones the earlier counts."""
    rows = []
    for query in queries.double():
        pairs = []
        for index, (row, label) in enumerate(zip(train.double(), labels.tolist())):
            lengths = math.sqrt(float(row @ row)) * math.sqrt(float(query @ query))
            pairs.append((-float(row @ query) / max(lengths, 1e-12), -index if later_first else index, label))
        votes = [0.0] * CLASSES
        for minus, _, label in sorted(pairs)[:k]:
            votes[label] += math.exp(-minus / temperature)
        rows.append([one / sum(votes) for one in votes])
    return torch.tensor(rows)


def made(count, width, seed, *, ties=False):
    """Random features; with ties, signs and zeros: norms are powers of two, so that cosines are exact in float32."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=draw)
    if not ties:
        return torch.randn(count, width, generator=draw), labels
    places = torch.rand(count, 16, generator=draw).argsort(1)[:, :4]
    signs = torch.randint(2, (count, 4), generator=draw) * 2.0 - 1
    return torch.zeros(count, 16).scatter_(1, places, signs), labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (5, 0.07), (20, 0.5), (200, 1.0)])
def test_votes_are_as_defined_for_any_block(ties, k, temperature):
    train, labels = made(90, 24, 0, ties=ties)
    queries, _ = made(31, 24, 1, ties=ties)
    frozen = Frozen(train, labels, ("",) * 90)
    wanted = defined(train, labels, queries, k, temperature)
    for block in ((1024, 16384), (7, 90), (31, 13), (1, 1)):
        found = vote(frozen, queries, classes=CLASSES, k=k, temperature=temperature, block=block)
        assert found.dtype == torch.float32
        # a cosine is right to 3e-7, a vote to 3e-7 / 0.07 of itself
        torch.testing.assert_close(found, wanted, rtol=0, atol=5e-5)


def test_another_order_among_equals_or_another_temperature_is_seen():
    """The control: what the tolerance above must not let pass."""
    train, labels = made(90, 24, 0, ties=True)
    queries, _ = made(31, 24, 1, ties=True)
    found = vote(Frozen(train, labels, ("",) * 90), queries, classes=CLASSES, k=5)
    assert (found - defined(train, labels, queries, 5, 0.07, later_first=True)).abs().max() > 0.1
    assert (found - defined(train, labels, queries, 5, 0.0701)).abs().max() > 5e-5
    assert (found - defined(train, labels, queries, 6, 0.07)).abs().max() > 0.1


def test_length_does_not_matter_and_nothing_overflows():
    train, labels = made(60, 8, 2)
    queries, _ = made(9, 8, 3)
    frozen = Frozen(train, labels, ("",) * 60)
    wanted = vote(frozen, queries, classes=CLASSES)
    torch.testing.assert_close(vote(frozen, queries * 1000, classes=CLASSES), wanted, rtol=0, atol=5e-5)
    cold = vote(frozen, queries, classes=CLASSES, temperature=1e-4)
    torch.testing.assert_close(cold.sum(1), torch.ones(9))
    nearest = torch.nn.functional.normalize(train) @ torch.nn.functional.normalize(queries).T
    assert torch.equal(cold.argmax(1), labels[nearest.argmax(0)])
    assert vote(frozen, torch.zeros(2, 8), classes=CLASSES).isfinite().all()
    assert vote(frozen, queries[:0], classes=CLASSES).shape == (0, CLASSES)


def test_the_similarities_in_memory_are_bounded(monkeypatch):
    train, labels = made(300, 8, 4)
    sizes, sorted_ = [], torch.Tensor.topk
    monkeypatch.setattr(torch.Tensor, "topk", lambda self, k: sizes.append(self.shape) or sorted_(self, k))
    vote(Frozen(train, labels, ("",) * 300), train, classes=CLASSES, block=(16, 32))
    assert len(sizes) == 19 * 10
    assert max(rows * columns for rows, columns in sizes) == 16 * 32


def test_what_is_refused():
    frozen = Frozen(*made(10, 8, 0), ("",) * 10)
    for wrong in ({"k": 0}, {"temperature": 0.0}, {"temperature": math.nan}):
        with pytest.raises(UsageError, match="above 0"):
            vote(frozen, torch.ones(1, 8), classes=CLASSES, **wrong)
    with pytest.raises(UsageError, match="width"):
        vote(frozen, torch.ones(1, 9), classes=CLASSES)
