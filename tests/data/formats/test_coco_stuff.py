import json

import numpy as np
import pytest
import torch
from faster_coco_eval import mask as coco
from PIL import Image

from patchform.data.checks.examination import check
from patchform.data.dataset import open_data
from patchform.data.formats.coco_stuff import CocoStuff
from patchform.data.mask_files import decode_mask
from patchform.data.pictures import MaskedPictures
from patchform.data.segmentation_transforms import evaluation_scene
from patchform.errors import DataError, UsageError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

coco_stuff = CocoStuff()

TASK, PLAIN = "semantic_segmentation", DataSettings()
NATIVE = Preprocessing(size=(16, 16), resize="native")
CATEGORIES = [{"id": 92, "name": "banner"}, {"id": 183, "name": "other"}, {"id": 95, "name": "bridge"}]
SIZE = 9, 13


def regions(seed, count=4):
    """(category, (H, W) bool) of each."""
    numbers = np.random.default_rng(seed)
    return [(int(numbers.choice([92, 95, 183])), numbers.random(SIZE) < 0.3) for _ in range(count)]


def encoded(mask, compressed):
    if compressed:
        runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        return {"counts": runs["counts"].decode(), "size": list(SIZE)}
    flat = np.concatenate([[False], mask.T.ravel()])
    edges = np.flatnonzero(np.diff(flat.astype(int))) if flat.any() else np.array([], int)
    return {"counts": np.diff([0, *edges, mask.size]).tolist(), "size": list(SIZE)}


def written(root, parts=("train2017", "val2017"), **changes):
    (root / "annotations").mkdir(parents=True)
    for number, part in enumerate(parts):
        (root / part).mkdir()
        annotations = [
            {"image_id": picture, "category_id": category, "segmentation": encoded(mask, compressed=picture == 0)}
            for picture in range(2)
            for category, mask in regions((number, picture))
        ]
        images = [{"id": k, "file_name": f"{k}.png", "height": SIZE[0], "width": SIZE[1]} for k in range(2)]
        for image in images:
            Image.new("RGB", SIZE[::-1], (9, 9, 9)).save(root / part / image["file_name"])
        lists = {"info": {}, "annotations": annotations, "images": images, "categories": CATEGORIES, **changes}
        (root / "annotations" / f"stuff_{part}.json").write_text(json.dumps(lists))
    return root


def painted(seed, indices):
    """What `regions` look like, the later above, by a definition of its own."""
    wanted = np.full(SIZE, 255)
    for row, column in np.ndindex(SIZE):
        for category, mask in regions(seed):
            if mask[row, column]:
                wanted[row, column] = indices[category]
    return torch.from_numpy(wanted).byte()


def opened(path, **settings):
    return open_data(DataSettings(path=str(path), **settings), seed=0, preprocessing=NATIVE, task=TASK)


def test_regions_are_drawn_in_their_order(tmp_path):
    train, validation, notes = opened(written(tmp_path))
    assert train.classes == validation.classes == ("banner", "other", "bridge")
    assert "pixels of no region are ignored" in notes
    for number, listing in enumerate((train, validation)):
        pictures = MaskedPictures(listing, evaluation_scene(NATIVE), NATIVE)
        for index in range(2):
            sample = pictures[0, index]
            wanted = painted((number, index), {92: 0, 183: 1, 95: 2})
            assert torch.equal(sample.target.classes, wanted)
            backwards = listing.items[index].mask._replace(classes=listing.items[index].mask.classes[::-1])
            assert not torch.equal(decode_mask(backwards, listing.mask_codes), wanted)  # control
    _, report = check(train, NATIVE)
    assert report.pixels == tuple(
        int(sum((painted((0, index), {92: 0, 183: 1, 95: 2}) == class_).sum() for index in range(2)))
        for class_ in range(3)
    )


def test_classes_that_are_not_named_are_ignored(tmp_path):
    train, _, notes = opened(written(tmp_path), classes=("bridge", "banner"))
    assert train.classes == ("bridge", "banner")
    assert any("left out" in note and '"other"' in note for note in notes)
    assert torch.equal(decode_mask(train.items[0].mask, train.mask_codes), painted((0, 0), {92: 1, 183: 255, 95: 0}))


def test_polygons_are_drawn_too(tmp_path):
    square = [[2.0, 3.0, 7.0, 3.0, 7.0, 6.0, 2.0, 6.0]]
    lists = [{"image_id": 0, "category_id": 95, "segmentation": square}]
    listing = coco_stuff.open(
        written(tmp_path, ["train2017"], annotations=lists) / "annotations" / "stuff_train2017.json", PLAIN, None
    )
    found = decode_mask(listing.items[0].mask, listing.mask_codes, SIZE)
    wanted = torch.full(SIZE, 255, dtype=torch.uint8)
    wanted[3:6, 2:7] = 2
    assert torch.equal(found, wanted)
    assert (decode_mask(listing.items[1].mask, listing.mask_codes, SIZE) == 255).all()


def test_pictures_may_lie_in_images(tmp_path):
    written(tmp_path, ["val2017"])
    (tmp_path / "images").mkdir()
    (tmp_path / "val2017").rename(tmp_path / "images" / "val2017")
    listing = coco_stuff.open(tmp_path, PLAIN, ("sky", "bridge", "banner", "other"))
    assert listing.name(0) == "0.png"
    assert torch.equal(decode_mask(listing.items[0].mask, listing.mask_codes), painted((0, 0), {92: 2, 183: 3, 95: 1}))


BAD = {
    "no run lengths": ({"annotations": [{"image_id": 0, "category_id": 92, "segmentation": {}}]}, "counts"),
    "no outline": ({"annotations": [{"image_id": 0, "category_id": 92, "segmentation": [[1, 2]]}]}, "3 points"),
    "a list of texts": ({"annotations": ["a"]}, "not what the format says"),
    "unknown picture": (
        {"annotations": [{"image_id": 7, "category_id": 92, "segmentation": [[0, 0, 1, 1, 2, 0]]}]},
        '"7"',
    ),
    "unknown category": (
        {"annotations": [{"image_id": 0, "category_id": 1, "segmentation": [[0, 0, 1, 1, 2, 0]]}]},
        '"1"',
    ),
    "no picture": ({"images": [{"id": 0, "file_name": "x.png", "height": 2, "width": 2}], "annotations": []}, "x.png"),
    "outside": ({"images": [{"id": 0, "file_name": "../x.png", "height": 2, "width": 2}], "annotations": []}, "x.png"),
    "no categories": ({"categories": []}, "no categories"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_is_not_the_format_is_said(name, tmp_path):
    changes, message = BAD[name]
    with pytest.raises(DataError) as caught:
        coco_stuff.open(written(tmp_path, ["train2017"], **changes), PLAIN, None)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_label_pictures_are_refused(tmp_path):
    with pytest.raises(UsageError, match="zero"):
        coco_stuff.open(written(tmp_path, ["train2017"]), DataSettings(zero="ignore"), None)


def test_a_picture_of_another_size_is_said(tmp_path):
    train, _, _ = opened(written(tmp_path))
    with pytest.raises(DataError, match="one size"):
        decode_mask(train.items[0].mask, train.mask_codes, (10, 13))
    other = train.items[0].mask._replace(size=(8, 13))
    with pytest.raises(DataError, match="run lengths for"):
        decode_mask(other, train.mask_codes)
