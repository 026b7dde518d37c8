import json

import pytest
import torch

from patchform import lookup
from patchform.heads.base import Head
from patchform.heads.linear import Linear
from patchform.records import FeatureInfo, Label
from patchform.tasks.base import Task
from patchform.tasks.classification import Classification

NAMES = tuple("abcdefg")


def test_the_file_name_is_the_entry():
    assert lookup.the_class("tasks", "classification", Task) is Classification
    assert Classification.name in lookup.the_class("heads", Classification.head, Head).tasks


@pytest.mark.parametrize("labels", ["single", "multi"])
def test_a_target_against_itself_scores_one(labels):
    task = Classification.of(Linear(FeatureInfo((4,), (1,), 4), classes=7, labels=labels))
    assert task.labels == labels
    targets = [Label(torch.tensor([index])) for index in (0, 3, 3, 6)]
    predictions = [Label(target.classes, torch.eye(7)[target.classes[0]]) for target in targets]
    for metric in (task.metric(NAMES), task.full_metric(NAMES)):
        metric.update(predictions, targets)
        scores = metric.compute()
        assert scores.better == task.better
        assert scores.best == 1.0
        assert scores.samples == 4
        json.dumps(scores.as_json(), allow_nan=False)
    assert ("ece" in scores.numbers) == (labels == "single")


def test_record_of_a_single_label():
    scores = torch.tensor([0.1, 0.05, 0.4, 0.05, 0.1, 0.2, 0.1])
    record = Classification().record(Label(torch.tensor([2]), scores), NAMES)
    assert record["label"] == "c"
    assert record["score"] == 0.4
    assert [entry["label"] for entry in record["top"]] == ["c", "f", "a", "e", "g"]  # equal ones in order
    assert Classification().record(Label(torch.tensor([2])), NAMES) == {"label": "c"}


def test_record_of_multiple_labels():
    task = Classification("multi")
    scores = torch.tensor([0.6, 0.05, 0.9, 0.1, 0.1, 0.1, 0.1])
    record = task.record(Label(torch.tensor([0, 2]), scores), NAMES)
    assert record["labels"] == ["c", "a"]
    assert record["top"][0] == {"label": "c", "score": 0.9}
    nothing = task.record(Label(torch.tensor([], dtype=torch.int64), scores / 10), NAMES)
    assert nothing["labels"] == []
    assert len(nothing["top"]) == 5


def test_few_classes_have_a_short_top():
    assert len(Classification().record(Label(torch.tensor([0]), torch.tensor([0.9, 0.1])), "ab")["top"]) == 2


@pytest.mark.parametrize("size", [(1, 1), (32, 32), (50, 300)])
def test_draw_predictions_truths_and_nothing(size):
    image = torch.zeros(3, *size, dtype=torch.uint8)
    task = Classification("multi")
    none = torch.tensor([], dtype=torch.int64)
    for label in (Label(torch.tensor([1]), torch.rand(7)), Label(torch.tensor([1, 2])), Label(none)):
        assert task.draw(image, label, NAMES).mode == "RGB"
