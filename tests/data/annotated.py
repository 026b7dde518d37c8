"""Random listings of annotated objects, for tests of the formats."""

import numpy as np
from bad_pictures import encode
from PIL import Image

from patchform.data.listing import RLE, Item, Listing, Objects

CLASSES = ("cat", "dog & cat", "mouse <x>")


def runs(mask):
    """(H, W) bool to uncompressed run lengths."""
    flat = np.asarray(mask).T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
    lengths = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return RLE(tuple([0, *lengths] if flat[0] else lengths), mask.shape)


def random_objects(random, size, *, segmentations, some_runs, crowd, areas, id_):
    height, width = size
    number = int(random.integers(0, 5))
    corners = np.sort(random.uniform(0, 1, (number, 2, 2)), axis=1) * (width, height)
    boxes = corners.reshape(number, 4).astype(np.float32)
    boxes[::2] = np.stack([boxes[::2, 0] // 2, boxes[::2, 1] // 2, *(boxes[::2, 2:] // 2 + (1, 1)).T], 1)
    drawn = []
    for index in range(number):
        points = (random.uniform(0, 1, (int(random.integers(3, 9)), 2)) * (width, height)).astype(np.float32)
        boxes[index] = (*points.min(0), *points.max(0)) if segmentations else boxes[index]
        mask = random.uniform(0, 1, size) > 0.5
        drawn.append(runs(mask) if some_runs and index % 2 else (points,))
    ignored = random.uniform(0, 1, number) > 0.7 if crowd else np.zeros(number, bool)
    return Objects(
        boxes=boxes,
        classes=random.integers(0, len(CLASSES), number),
        size=size,
        crowd=ignored if ignored.any() else None,
        areas=random.uniform(1, 50, number).astype(np.float32) if areas else None,
        segmentations=tuple(drawn) if segmentations and number else None,
        id=id_,
    )


def random_listing(root, seed, *, keeps=frozenset(), segmentations=False, number=6, prefix=""):
    """Pictures below `root`, and objects of all that a format keeps; every class occurs, and an empty picture."""
    random = np.random.default_rng(seed)
    items = []
    for index in range(number):
        size = (int(random.integers(20, 60)), int(random.integers(20, 60)))
        path = root / ("deep/" * (index % 2) + f"{prefix}{index}.v{index}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(Image.new("L", size[::-1]), "PNG"))
        objects = random_objects(
            random,
            size,
            segmentations=segmentations,
            some_runs="runs" in keeps,
            crowd="crowd" in keeps,
            areas="areas" in keeps,
            id_=1000 - 7 * index if "ids" in keeps else None,
        )
        if index == 0:
            objects = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), size, id=objects.id)
            objects = objects._replace(areas=np.zeros(0, np.float32) if "areas" in keeps else None)
        if index == 1:
            boxes = np.array([[1, 2, 11, 12]] * 3, np.float32) + np.arange(3, dtype=np.float32)[:, None]
            polygons = tuple((np.stack([b[[0, 1]], b[[2, 1]], b[[2, 3]]]),) for b in boxes) if segmentations else None
            objects = Objects(boxes, np.arange(3), size, segmentations=polygons, id=objects.id)
            objects = objects._replace(areas=np.full(3, 50.5, np.float32) if "areas" in keeps else None)
        items.append(Item(path, tuple(sorted(set(objects.classes.tolist()))), objects=objects))
    ids = (18, 3, 90) if "ids" in keeps else None
    return Listing(classes=CLASSES, items=tuple(items), root=root, ids=ids)


def same(first, second, tolerance=0.0):
    """Assert that two records of objects are equal, but for numbers up to a tolerance in pixels."""
    assert first.size == second.size
    assert first.id == second.id
    np.testing.assert_array_equal(first.classes, second.classes)
    np.testing.assert_allclose(first.boxes, second.boxes, rtol=0, atol=tolerance)
    for one, other in ((first.crowd, second.crowd), (first.areas, second.areas)):
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_array_equal(one, other)
    assert (first.segmentations is None) == (second.segmentations is None)
    for one, other in zip(first.segmentations or (), second.segmentations or (), strict=True):
        assert type(one) is type(other)
        if isinstance(one, tuple) and not isinstance(one, RLE):
            for polygon, twin in zip(one, other, strict=True):
                np.testing.assert_allclose(polygon, twin, rtol=0, atol=tolerance)
        else:
            assert one == other
