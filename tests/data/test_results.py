import json

import numpy as np
import pytest
import torch

from patchform.data.results import coco_results, yolo_lines
from patchform.geometry.masks import from_dense
from patchform.records import Instances

MASKS = torch.zeros(2, 20, 30, dtype=torch.bool)
MASKS[0, 3:9, 4:12] = True
MASKS[1, 10:, 20:] = True
BOXES = torch.tensor([[4.0, 3.0, 12.0, 9.0], [20.0, 10.0, 30.0, 20.0]])
FOUND = Instances(BOXES, torch.tensor([1, 0]), torch.tensor([0.75, 0.5]), from_dense(MASKS))


def test_rows_of_coco_with_the_ids_of_the_data():
    rows = json.loads(json.dumps(coco_results(FOUND._replace(masks=None), "picture 7", (18, "x"))))
    assert rows == [
        {"image_id": "picture 7", "category_id": "x", "bbox": [4, 3, 8, 6], "score": 0.75},
        {"image_id": "picture 7", "category_id": 18, "bbox": [20, 10, 10, 10], "score": 0.5},
    ]


def test_masks_are_those_that_pycocotools_decodes():
    tools = pytest.importorskip("faster_coco_eval").mask
    rows = json.loads(json.dumps(coco_results(FOUND, 1, (1, 2))))
    for row, mask in zip(rows, MASKS, strict=True):
        assert row["segmentation"]["size"] == [20, 30]
        np.testing.assert_array_equal(tools.decode(row["segmentation"]), mask.numpy())


def test_lines_of_yolo():
    assert yolo_lines(FOUND, (20, 30)) == [
        "1 0.266666667 0.3 0.266666667 0.3 0.75",
        "0 0.833333333 0.75 0.333333333 0.5 0.5",
    ]


def test_nothing_found_gives_nothing():
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0))
    assert coco_results(nothing, 1, (1,)) == []
    assert yolo_lines(nothing, (20, 30)) == []
