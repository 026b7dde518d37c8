"""Predicted objects as other tools expect them: rows of COCO's results, lines of YOLO's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchform.geometry.masks import to_runs
from patchform.records import Instances


def coco_results(instances: Instances, image_id: int | str, ids: Sequence[int | str]) -> list[dict[str, Any]]:
    """Rows of a results file, one an object: ready for `json.dump`, and for pycocotools' `loadRes`.

    Args:
        instances: a prediction, in pixels of the picture; with masks, rows have compressed run lengths.
        image_id: the picture's in the annotation file.
        ids: of the classes, in their order.
    """
    assert instances.scores is not None
    runs = [] if instances.masks is None else to_runs(instances.masks)
    boxes, scores = instances.boxes.tolist(), instances.scores.tolist()
    rows: list[dict[str, Any]] = []
    for index, class_ in enumerate(instances.classes.tolist()):
        left, top, right, bottom = boxes[index]
        row = {
            "image_id": image_id,
            "category_id": ids[class_],
            "bbox": [left, top, right - left, bottom - top],
            "score": scores[index],
        }
        if instances.masks is not None:
            row["segmentation"] = {"size": list(instances.masks.size), "counts": runs[index].decode("ascii")}
        rows.append(row)
    return rows


def yolo_lines(instances: Instances, size: tuple[int, int]) -> list[str]:
    """Lines "class x y width height score" of the boxes, shares of the picture's (height, width), without line ends."""
    assert instances.scores is not None
    rows = zip(instances.classes.tolist(), instances.boxes.tolist(), instances.scores.tolist(), strict=True)
    return [
        " ".join(f"{value:.9g}" for value in (class_, *box_shares(box, size), score)) for class_, box, score in rows
    ]


def box_shares(box: Sequence[float], size: tuple[int, int]) -> list[float]:
    """Middle, width and height of an xyxy box as shares of (height, width)."""
    (left, top, right, bottom), (height, width) = box, size
    return [(left + right) / 2 / width, (top + bottom) / 2 / height, (right - left) / width, (bottom - top) / height]
