"""The batches of a run: what is drawn for them, and how it is changed."""

import json

import pytest
import tiny
import torch
from PIL import Image

from patchform.distributed import SINGLE
from patchform.training.batches import Batches, open_training
from patchform.training.progress import Reporter
from patchform.training.run import RunContext, Stop


def batches_of(folder, steps, **sections):
    """The classes, and the batches of so many steps."""
    recipe = tiny.recipe(folder, "", **sections)
    context = RunContext(folder, torch.device("cpu"), SINGLE, Reporter(shown=False), Stop())
    data = open_training(recipe, context, resume=False)
    batches = Batches(recipe, data, data.length(recipe), context, 0)
    return data.listing.classes, [batches.next(step) for step in range(steps)]


@pytest.mark.parametrize(("balanced", "times"), [(False, range(8, 9)), (True, range(48, 77))])
def test_classes_come_equally_often_where_the_recipe_says_so(balanced, times, tmp_path):
    folder = tiny.pictures(tmp_path, count=40)
    for picture in sorted((folder / "train/h").iterdir())[1:]:  # one is left, and ten of each other class
        picture.unlink()
    training = {"batch_size": 31, "epochs": 8}
    classes, batches = batches_of(folder, 8, data={"balanced": balanced}, training=training)
    drawn = torch.cat([target.classes for batch in batches for target in batch.targets])
    assert len(drawn) == 8 * 31
    assert int((drawn == classes.index("h")).sum()) in times  # once an epoch, or a quarter of all, 62


def test_pictures_change_as_the_recipe_says(tmp_path):
    folder = tiny.pictures(tmp_path, count=20)
    (plain,), (mirrored,), (cropped,) = (
        batches_of(folder, 1, augmentation={"crop_scale": (least, 1.0), "flip": flip})[1]
        for least, flip in ((1.0, 0.0), (1.0, 1.0), (0.3, 0.0))
    )
    assert plain.names == mirrored.names == cropped.names
    assert torch.equal(mirrored.images, plain.images.flip(-1))
    assert not torch.equal(plain.images, mirrored.images)
    assert not torch.equal(plain.images, cropped.images)


@pytest.mark.parametrize(("resize", "alike"), [("keep", True), ("squash", False)])
def test_pictures_that_lie_alike_come_together_where_they_keep_their_shape(resize, alike, tmp_path):
    (tmp_path / "annotations").mkdir()
    for part, count in (("train", 32), ("val", 1)):
        (tmp_path / part).mkdir()
        document = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
        for number in range(count):
            width, height = ((48, 32), (32, 48))[number % 2]
            Image.new("RGB", (width, height)).save(tmp_path / part / f"{number}.png")
            image = {"id": number, "file_name": f"{number}.png", "height": height, "width": width}
            box = {"id": number + 1, "image_id": number, "category_id": 1, "bbox": [4, 4, 9, 9], "area": 81}
            document["images"].append(image)
            document["annotations"].append({**box, "iscrowd": 0})
        (tmp_path / f"annotations/instances_{part}.json").write_text(json.dumps(document))
    sections = {"task": "detection", "preprocessing": {"resize": resize}, "training": {"batch_size": 4}}
    _, batches = batches_of(tmp_path, 8, **sections)
    assert all(len({height > width for height, width in batch.sizes}) == 1 for batch in batches) == alike
