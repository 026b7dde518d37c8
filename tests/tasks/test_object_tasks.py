"""Detection and instance segmentation: what their targets mean to a metric, a picture and a line."""

import json

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco

from patchform import lookup
from patchform.geometry import masks
from patchform.heads.base import Head
from patchform.records import Instances
from patchform.tasks.base import Task
from patchform.tasks.detection import Detection
from patchform.tasks.instance_segmentation import InstanceSegmentation

NAMES = ("cat", "dog", "owl")
BOTH = pytest.mark.parametrize("task", [Detection(), InstanceSegmentation()])


def truth(number=5, size=(60, 80), seed=0):
    dice = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=dice) * torch.tensor([50.0, 30.0])
    boxes = torch.cat([corners, corners + 5 + 20 * torch.rand(number, 2, generator=dice)], 1)
    y, x = torch.meshgrid(torch.arange(size[0]) + 0.5, torch.arange(size[1]) + 0.5, indexing="ij")
    inside = [(x > left) & (x < right) & (y > top) & (y < bottom) for left, top, right, bottom in boxes]
    dense = torch.stack(inside) if number else torch.zeros(0, *size)
    return Instances(boxes, torch.randint(3, (number,), generator=dice), None, masks.from_dense(dense))


def certain(target):
    return target._replace(scores=torch.linspace(0.9, 0.5, len(target.boxes)))


@BOTH
def test_the_file_name_is_the_entry_and_the_head_serves_it(task):
    assert lookup.the_class("tasks", task.name, Task) is type(task)
    if task.head not in lookup.names("heads"):
        pytest.skip("its head is not there yet")
    assert task.name in lookup.the_class("heads", task.head, Head).tasks


@BOTH
def test_a_target_against_itself_scores_one(task):
    targets = [truth(number, seed=number) for number in (5, 3, 0)]
    for metric in (task.metric(NAMES), task.full_metric(NAMES, thresholds=(0.1, 0.1, 0.1))):
        metric.update([certain(target) for target in targets], targets)
        scores = metric.compute()
        assert scores.better == task.better == "ap"
        assert scores.best == scores.numbers["f1"] == 1.0
        assert scores.samples == 3
        json.dumps(scores.as_json(), allow_nan=False)
    assert (scores.numbers.get("box_ap") == 1.0) == (task.name == "instance_segmentation")
    assert task.thresholds(scores) == (0.1, 0.1, 0.1)
    names = {"classes", "precision_recall", "operating_points", "reliability", "confusion"}
    assert set(scores.tables) == names


@BOTH
def test_a_task_finds_a_threshold_for_each_class(task):
    target, metric = truth(6), task.metric(NAMES)
    metric.update([certain(target)], [target])
    found = task.thresholds(metric.compute())
    for index, threshold in enumerate(found):
        own = certain(target).scores[target.classes == index]
        assert threshold == pytest.approx(float(own.min()) / 2 if len(own) else 0.5)


@BOTH
def test_a_record_reads_back(task):
    target = truth()
    record = task.record(certain(target), NAMES)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert task.record(truth(0), NAMES) == {"objects": []}
    assert "score" not in task.record(target, NAMES)["objects"][0]
    for index, one in enumerate(record["objects"]):
        assert one["name"] == NAMES[one["class_id"]] == NAMES[target.classes[index]]
        left, top, width, height = one["box"]
        assert np.allclose([left, top, left + width, top + height], target.boxes[index], atol=0.02)
        assert ("segmentation" in one) == (task.name == "instance_segmentation")
        if "segmentation" in one:
            dense = coco.decode({**one["segmentation"], "counts": one["segmentation"]["counts"].encode()})
            assert np.array_equal(dense.reshape(60, 80) > 0, masks.to_dense(target.masks)[index])


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (60, 80), (700, 900)])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_drawings_of_any_size_with_and_without_objects(task, size, channels):
    image = torch.zeros(channels, *size, dtype=torch.uint8)
    whole = torch.ones(3, *size)
    boxes = torch.tensor([[0.0, 0, size[1], size[0]], [0.2, 0.2, 0.2, 0.2], [-3, -3, 2, 2]])
    some = Instances(boxes, torch.tensor([0, 0, 254]), torch.tensor([0.9, 0.5, 0.4]), masks.from_dense(whole))
    names = [f"class {index}" for index in range(255)]
    page = task.draw(image, some, names)
    nothing = task.draw(image, truth(0, size), names)
    as_truth = task.draw(image, some._replace(scores=None, crowd=torch.tensor([True, False, False])), names)
    assert page.mode == "RGB"
    assert page.height > nothing.height  # two names, and one line that says that there is none
    assert as_truth.tobytes() != page.tobytes()


def test_masks_are_drawn_for_instances_only():
    image, target = torch.zeros(3, 60, 80, dtype=torch.uint8), truth()
    plain = Detection().draw(image, target, NAMES)
    assert plain.tobytes() == Detection().draw(image, target._replace(masks=None), NAMES).tobytes()
    assert plain.tobytes() != InstanceSegmentation().draw(image, target, NAMES).tobytes()
