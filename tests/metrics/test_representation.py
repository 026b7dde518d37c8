import math

import pytest
import torch

from patchform.errors import DataError
from patchform.metrics.representation import Representation, effective_rank, left_out_accuracy
from patchform.probing.frozen import Frozen
from patchform.probing.neighbours import vote
from patchform.records import Embedding, Label

NONE = torch.empty(0, dtype=torch.int64)


def scores(vectors, classes=None, batch=7):
    metric = Representation()
    labels = [Label(NONE)] * len(vectors) if classes is None else [Label(row[None]) for row in classes]
    for start in range(0, len(vectors), batch):
        metric.update([Embedding(row) for row in vectors[start : start + batch]], labels[start : start + batch])
    return metric.compute()


def clusters(count=60, width=12, seed=0):
    draw = torch.Generator().manual_seed(seed)
    classes = torch.arange(count) % 3
    return torch.eye(3, width)[classes] + 0.6 * torch.randn(count, width, generator=draw), classes


def test_neighbours_vote_as_in_the_probe_with_each_image_left_out():
    vectors, classes = clusters()
    right = 0
    for index in range(len(vectors)):
        rest = torch.arange(len(vectors)) != index
        others = Frozen(vectors[rest], classes[rest], ())
        right += int(vote(others, vectors[index][None], classes=3).argmax() == classes[index])
    found = left_out_accuracy(vectors, classes)
    assert found == right / len(vectors)
    assert 0.4 < found < 1
    with_itself = vote(Frozen(vectors, classes, ()), vectors, classes=3)  # control
    assert (with_itself.argmax(1) == classes).float().mean() > found


def test_effective_rank_is_the_exponential_of_the_entropy():
    assert effective_rank(torch.eye(5, 8)) == pytest.approx(5)
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.zeros(3, 4)) == 1
    p, q = 0.75, 0.25
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(p**-p * q**-q)


def test_the_numbers_do_not_depend_on_batches_and_select_nothing():
    vectors, classes = clusters()
    first, second = scores(vectors, classes), scores(vectors, classes, batch=60)
    assert first == second
    assert first.best is None
    assert first.notes == ()
    assert first.numbers["knn"] == left_out_accuracy(vectors, classes)
    assert scores(vectors).numbers["knn"] is None
    assert scores(vectors).numbers["effective_rank"] == first.numbers["effective_rank"]


@pytest.mark.parametrize("kind", ["constant", "line"])
def test_a_collapse_is_said(kind):
    draw = torch.Generator().manual_seed(0)
    vectors = torch.ones(50, 8) + 1e-3 * torch.randn(50, 8, generator=draw)
    if kind == "line":
        vectors = torch.randn(50, 1, generator=draw) * torch.ones(8)
    found = scores(vectors)
    assert "has collapsed" in found.notes[0]


def test_spread_is_one_where_embeddings_point_everywhere():
    draw = torch.Generator().manual_seed(0)
    assert scores(torch.randn(4000, 6, generator=draw)).numbers["spread"] == pytest.approx(1, abs=0.01)
    assert scores(torch.ones(5, 6)).numbers["spread"] == pytest.approx(0, abs=1e-6)


def test_nothing_and_one_image():
    assert set(scores(torch.empty(0, 4)).numbers.values()) == {None}
    alone = scores(torch.randn(1, 4), torch.tensor([0]))
    assert alone.numbers["knn"] is None
    assert math.isclose(alone.numbers["effective_rank"], 1)
    with pytest.raises(DataError):
        left_out_accuracy(torch.randn(3, 4), torch.tensor([0]))
