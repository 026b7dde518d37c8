import numpy as np
import pytest
from bad_pictures import encode
from looking import kinds
from PIL import Image

from patchform.data.checks.examination import check
from patchform.data.dataset import open_training
from patchform.data.listing import MaskCodes
from patchform.data.mask_files import decode_mask
from patchform.errors import DataError
from patchform.records import Preprocessing
from patchform.settings import DataSettings
from patchform.tasks.base import find_task

TASK = "semantic_segmentation"


def set_of(root, *masks, names=("ground", "thing"), form=np.asarray):
    """Pictures with masks, each of the given numbers in stripes, for training and again for validation."""
    for part in ("train", "val"):
        for folder in ("images", "masks"):
            (root / part / folder).mkdir(parents=True)
        for index, numbers in enumerate(masks):
            stripes = np.repeat(np.array(numbers, np.uint8), 6)[None].repeat(12, 0)
            noise = np.random.default_rng(index + 9 * (part == "val")).integers(0, 256, (*stripes.shape, 3), np.uint8)
            (root / part / "images" / f"{index}.png").write_bytes(encode(Image.fromarray(noise), "PNG"))
            (root / part / "masks" / f"{index}.png").write_bytes(encode(Image.fromarray(form(stripes)), "PNG"))
    (root / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return root


@pytest.mark.parametrize(
    ("masks", "names", "expected"),
    [
        (([0, 1], [1, 0]), ("ground", "thing"), {}),
        (([0, 255], [255, 0]), ("ground", "thing"), {"mask-255": 1, "class-unused": 1}),
        (([0, 255],), ("thing",), {"mask-255": 1}),
        (([0, 1], [0, 255]), ("ground", "thing"), {}),
        (([0, 1, 255], [0, 1]), ("ground", "thing", "other"), {"class-unused": 1}),
        (([255, 255],), ("ground", "thing"), {"nothing-to-learn": 1}),
        (([1, 2], [2, 1]), ("a", "b", "c"), {"mask-from-one": 1, "class-unused": 1}),
        (([1, 1], [1, 1]), ("ground", "thing"), {"mask-from-one": 1, "class-unused": 1, "class-single": 1}),
        (([0, 0], [0, 0]), ("ground", "thing"), {"class-unused": 1, "class-single": 1}),
    ],
)
def test_numbers_that_mean_something_else(masks, names, expected, tmp_path):
    assert kinds(set_of(tmp_path, *masks, names=names), TASK) == expected


def test_a_training_refuses_what_255_hides(tmp_path):
    settings = DataSettings(path=str(set_of(tmp_path, [0, 255])))
    listing, _ = open_training(settings, task=TASK)
    usable, report = check(listing, Preprocessing())
    with pytest.raises(DataError, match=r'255 seems to stand for.*"thing" never is.*data\.colors'):
        find_task(TASK).refuse_opened(usable, report, training=True)
    (tmp_path / "colours.txt").write_text("ground 0 0 0\nthing 255 255 255\n")
    assert kinds(tmp_path, TASK, colors=str(tmp_path / "colours.txt")) == {}  # as the message says
    assert kinds(tmp_path, TASK, ignore=7) == {"mask-bad": 1}


@pytest.mark.parametrize(
    ("numbers", "said"), [([0, 127, 255], "grey levels"), ([0, 85, 170], "grey levels"), ([0, 3, 1], "list of classes")]
)
def test_grey_levels_for_classes_are_recognised(numbers, said):
    codes = MaskCodes(ids=((0, 0), (1, 1), (2, 2), (255, 255)))
    with pytest.raises(DataError, match=said):
        decode_mask(encode(Image.fromarray(np.array([numbers] * 3, np.uint8)), "PNG"), codes)


def test_grey_masks_in_three_channels_and_near_colours_say_so():
    grey = np.array([[[0] * 3, [1] * 3]], np.uint8)
    with pytest.raises(DataError, match="all channels are alike"):
        decode_mask(encode(Image.fromarray(grey), "PNG"), MaskCodes(ids=((0, 0), (1, 1))))
    codes = MaskCodes(colors=(((0, 0, 0), 0), ((255, 0, 0), 1)))
    smooth = np.array([[[0, 0, 0], [251, 3, 2], [255, 0, 0]]], np.uint8)
    with pytest.raises(DataError, match=r"nearest.*\(255, 0, 0\)"):
        decode_mask(encode(Image.fromarray(smooth), "PNG"), codes)
    far = np.array([[[0, 0, 0], [90, 200, 2]]], np.uint8)
    with pytest.raises(DataError, match="add it to the file"):
        decode_mask(encode(Image.fromarray(far), "PNG"), codes)
