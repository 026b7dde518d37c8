"""How far two answers are apart, by kind: equal ones are equal, and each kind of difference is seen."""

import math

import pytest
import torch

from patchform.geometry import masks
from patchform.metrics.agreement import NOTHING, Count, of_embeddings, of_fields, of_labels, of_objects, of_regions
from patchform.records import Embedding, Instances, Label, Regions


def label(scores):
    scores = torch.tensor(scores)
    return Label(scores.argmax()[None], scores)


def objects(number=30, seed=0, *, masked=False):
    draw = torch.Generator().manual_seed(seed)
    low = torch.rand(number, 2, generator=draw) * 80
    boxes = torch.cat([low, low + 4 + torch.rand(number, 2, generator=draw) * 16], 1)
    scores = torch.rand(number, generator=draw).sort(descending=True).values
    dense = torch.rand(number, 100, 100, generator=draw) > 0.5
    bitmaps = masks.from_dense(dense) if masked else None
    return Instances(boxes, torch.randint(3, (number,), generator=draw), scores, bitmaps)


def test_equal_answers_are_not_apart():
    for same in (
        of_labels(label([0.2, 0.7, 0.1]), label([0.2, 0.7, 0.1])),
        of_objects(objects(masked=True), objects(masked=True), overlap=0.99),
        of_objects(objects(0), objects(0), overlap=0.99),
        of_embeddings(Embedding(torch.tensor([1.0, -2])), Embedding(torch.tensor([1.0, -2]))),
        of_regions(Regions(torch.ones(3, 4).long()), Regions(torch.ones(3, 4).long())),
        of_fields(label([0.2, 0.8]), label([0.2, 0.8])),
    ):
        assert same.worst < 1e-9
        assert same.different == 0


def test_another_class_is_another_decision():
    found = of_labels(label([0.6, 0.4]), label([0.4, 0.6]))
    assert found.decisions == {"images": Count(1, 1)}
    assert found.worst == pytest.approx(0.2 / 0.6)


def test_a_sure_model_shows_in_its_small_scores():
    """99.9999 % stays as it is when all logits are a tenth off; the millionth part of the other class does not."""
    logits = torch.tensor([14.0, 0])
    found = of_labels(label(logits.softmax(0).tolist()), label((logits * 0.99).softmax(0).tolist()))
    assert (logits.softmax(0) - (logits * 0.99).softmax(0)).abs().max() < 1e-6
    assert found.worst > 5e-4


def test_the_order_of_objects_does_not_count():
    first = objects(masked=True)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    second = Instances(first.boxes[order], first.classes[order], first.scores[order], masks.take(first.masks, order))
    found = of_objects(first, second, overlap=0.99)
    assert found.worst == 0
    assert found.different == 0
    assert found.decisions["objects"].all == 30
    assert found.decisions["mask pixels"].all > 1000


@pytest.mark.parametrize(
    ("change", "different"),
    [
        (lambda o: o._replace(boxes=o.boxes + torch.tensor([3.0, 0, 3, 0])), 60),
        (lambda o: o._replace(classes=(o.classes + 1) % 3), 60),
        (lambda o: Instances(o.boxes[1:], o.classes[1:], o.scores[1:]), 1),
        (lambda o: o._replace(boxes=o.boxes[:, [1, 0, 3, 2]]), 60),
        (lambda o: o._replace(boxes=o.boxes * 1.3), 60),
    ],
    ids=["moved", "other classes", "one less", "turned", "larger"],
)
def test_other_objects_are_other_decisions(change, different):
    found = of_objects(objects(), change(objects()), overlap=0.99)
    assert found.decisions["objects"].different == different


def test_numbers_of_objects_that_both_have_are_compared():
    first = objects()
    found = of_objects(first, first._replace(boxes=first.boxes + 0.01, scores=first.scores * 0.999), overlap=0.99)
    assert found.different == 0
    assert found.apart["boxes"] == pytest.approx(0.01 / float(first.boxes.max()), rel=1e-3)
    assert found.apart["scores"] == pytest.approx(0.001, rel=1e-2)


def test_thin_boxes_are_those_of_one_object():
    boxes = torch.tensor([[10.0, 10, 10, 60], [0, 0, 100, 0.001]])
    one = Instances(boxes, torch.tensor([0, 1]), torch.tensor([0.9, 0.8]))
    assert of_objects(one, one._replace(boxes=boxes + 1e-4), overlap=0.99).different == 0


def test_shapes_and_numbers_that_are_none_are_infinitely_apart():
    assert of_labels(label([0.2, 0.8]), label([0.2, 0.3, 0.5])).worst == math.inf
    assert of_labels(label([0.2, 0.8]), label([math.nan, 0.8])).worst == math.inf
    assert of_embeddings(Embedding(torch.ones(3)), Embedding(torch.ones(2))).worst == math.inf
    assert of_regions(Regions(torch.ones(3, 4).long()), Regions(torch.ones(4, 3).long())).different == 12
    assert of_objects(objects(masked=True), objects(), overlap=0.99).worst == math.inf


def test_pixels_of_masks_are_counted():
    first = objects(masked=True)
    dense = masks.to_dense(first.masks)
    dense[3, 50, 50] ^= True
    dense[7, 50, 50] ^= True
    found = of_objects(first, first._replace(masks=masks.from_dense(dense)), overlap=0.99)
    assert found.decisions["mask pixels"].different == 2


def test_together_the_worst_and_all_decisions_count():
    first = of_labels(label([0.6, 0.4]), label([0.6, 0.4]))
    both = first | of_labels(label([0.6, 0.4]), label([0.4, 0.6])) | NOTHING
    assert both.decisions == {"images": Count(2, 1)}
    assert both.worst == pytest.approx(1 / 3)
