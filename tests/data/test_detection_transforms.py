import numpy as np
import pytest
import torch

from patchform.data.detection_transforms import (
    LEAST_SHARE,
    CopyPaste,
    LargeScaleJitter,
    Mirror,
    Mosaic,
    Whole,
    evaluation_objects,
    instances,
    join,
    training_objects,
    view,
    without,
)
from patchform.data.listing import RLE, Objects
from patchform.data.transforms import Compose
from patchform.errors import UsageError
from patchform.geometry import masks
from patchform.records import Instances, Preprocessing
from patchform.settings import AugmentationSettings

COLORS = torch.tensor([[250, 0, 0], [0, 250, 0], [0, 0, 250], [200, 200, 0], [0, 200, 200]], dtype=torch.uint8)


def prepared(size, resize="fit", **more):
    return Preprocessing(size=size, resize=resize, interpolation="bilinear", **more)


def painted(height=60, width=90, seed=0, count=5, outlined=True, crowd=False):
    """A grey picture with ellipses of the colours of their classes, none upon another, and their objects."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    image = torch.full((3, height, width), 90, dtype=torch.uint8)
    dense = []
    for number in range(count):
        tall, wide, down = torch.rand(3, generator=generator).tolist()
        radii = (0.08 + 0.1 * tall) * height, width / count / 2 * (0.5 + 0.5 * wide)
        center = height * (0.2 + 0.6 * down), width / count * (number + 0.5)
        inside = ((y - center[0]) / radii[0]) ** 2 + ((x - center[1]) / radii[1]) ** 2 <= 1
        image[:, inside] = COLORS[number % 5, :, None]
        dense.append(inside)
    bitmaps = masks.from_dense(torch.stack(dense)) if dense else masks.none((height, width))
    areas = masks.areas(bitmaps).float()
    return image, Instances(
        boxes=bitmaps.boxes.float(),
        classes=torch.arange(count) % 5,
        masks=bitmaps if outlined else None,
        crowd=(torch.arange(count) == 0) if crowd else None,
        areas=areas,
    )


def agreement(image, objects):
    """Share of the pixels of all masks that have the colour of their class."""
    hits, pixels = 0, 0
    for mask, class_ in zip(masks.to_dense(objects.masks), objects.classes):
        close = (image[:, mask].int() - COLORS[class_, :, None].int()).abs().amax(0) < 60
        hits, pixels = hits + int(close.sum()), pixels + len(close)
    return hits / max(pixels, 1)


def none_left():
    raise AssertionError("no other picture is needed")


def check(image, objects, slack=1.0):
    """Everything that a head may rely on."""
    height, width = image.shape[-2:]
    number = len(objects.boxes)
    assert objects.boxes.shape == (number, 4)
    assert objects.boxes.dtype == torch.float32
    assert objects.classes.shape == (number,)
    assert (objects.boxes >= 0).all()
    assert (objects.boxes <= torch.tensor([width, height, width, height])).all()
    assert (objects.boxes[:, 2:] - objects.boxes[:, :2] >= 1).all()
    for extra in (objects.crowd, objects.areas):
        assert extra is None or extra.shape == (number,)
    if objects.masks is not None:
        assert objects.masks.size == (height, width)
        assert (masks.areas(objects.masks) > 0).all()
        assert (masks.tight(objects.masks) - objects.boxes).abs().max() <= slack if number else True


MANY = {
    "jitter": AugmentationSettings(scale=(0.3, 2.0), vertical_flip=0.5),
    "sizes": AugmentationSettings(sizes=(40, 56, 64), vertical_flip=0.5),
    "whole": AugmentationSettings(scale=(1.0, 1.0)),
    "mosaic": AugmentationSettings(mosaic=1.0, scale=(0.8, 2.0)),
    "copy": AugmentationSettings(copy_paste=1.0),
    "all": AugmentationSettings(mosaic=0.5, copy_paste=0.5, vertical_flip=0.5, color_jitter=0.01),
}


@pytest.mark.parametrize("kind", ["fit", "keep", "squash"])
@pytest.mark.parametrize("name", MANY)
def test_picture_boxes_and_masks_change_together(name, kind):
    transform = training_objects(prepared((64, 96), kind), MANY[name])
    torch.manual_seed(0)
    counts, shares, mirrored = 0, [], []
    for seed in range(25):
        height, width = [(60, 90), (90, 60), (48, 48)][seed % 3]
        numbers = iter(range(100, 200))
        given = painted(height, width, seed=seed, count=seed % 6, crowd=seed % 2 == 0)
        before = [given[0].clone(), given[1].boxes.clone(), given[1].masks.bits.clone()]
        image, objects = transform(*given, lambda numbers=numbers: painted(seed=next(numbers)))
        assert [image.dtype, len(image)] == [torch.uint8, 3]
        check(image, objects, slack=2.0)
        assert all(map(torch.equal, before, (given[0], given[1].boxes, given[1].masks.bits)))
        counts += len(objects.boxes)
        if len(objects.boxes):
            shares.append(agreement(image, objects))
            mirrored.append(agreement(image.flip(-1), objects))
    assert counts > 30
    assert np.mean(shares) > 0.85  # all but edges, where colours mix
    assert np.mean(mirrored) < np.mean(shares) - 0.3  # control


def test_of_no_object_and_of_boxes_alone():
    for name, settings in MANY.items():
        transform = training_objects(prepared((64, 96)), settings)
        torch.manual_seed(0)
        empty = painted(count=0)
        image, objects = transform(*empty, lambda: painted(count=0))
        check(image, objects)
        assert len(objects.boxes) == 0
        if not settings.copy_paste:
            for seed in range(5):
                image, objects = transform(*painted(seed=seed, outlined=False), lambda: painted(outlined=False))
                check(image, objects)
                assert objects.masks is None, name


def test_evaluation_leaves_objects_in_the_pixels_of_the_picture():
    image, objects = painted()
    found, same = evaluation_objects(prepared((32, 48)))(image, objects, none_left)
    assert found.shape == (3, 32, 48)
    assert same is objects
    with pytest.raises(UsageError, match="crop"):
        evaluation_objects(Preprocessing())


def test_a_view_in_numbers():
    boxes = torch.tensor([[0.0, 0, 10, 10], [10, 10, 20, 20], [18, 0, 38, 10], [30, 30, 31, 31], [-0.0, 18, 19, 30]])
    given = Instances(boxes, torch.arange(5), crowd=torch.tensor([0, 0, 0, 0, 1]).bool(), areas=torch.full((5,), 50.0))
    found = view(given, (0, 0, 20, 20), (40, 10))
    # the third has 10 % left; the fourth nothing; of the crowd, 2 of 12 rows are left
    assert found.classes.tolist() == [0, 1, 2, 4]
    assert found.boxes.tolist() == [[0, 0, 5, 20], [5, 20, 10, 40], [9, 0, 10, 20], [0, 36, 9.5, 40]]
    assert found.areas.tolist() == pytest.approx([50, 50, 5, 50 / 6])
    assert found.crowd.tolist() == [False, False, False, True]
    assert view(given, (0, 0, 19, 20), (20, 19)).classes.tolist() == [0, 1, 4]  # half of that is too little
    assert view(given, (0, 0, 20, 19), (19, 20)).classes.tolist() == [0, 1, 2, 4]  # but not of a crowd
    assert view(given, (0, 0, 40, 40), (20, 20)).classes.tolist() == [0, 1, 2, 4]  # half a pixel is none
    assert LEAST_SHARE == 0.1


def test_what_is_cut_off_gets_the_least_box_that_holds_its_mask():
    dense = torch.zeros(2, 20, 20, dtype=torch.bool)
    dense[0, 0:10, 0:4] = dense[0, 8:10, 4:16] = True  # an L lying down: its upright part is cut off
    dense[1, 2:6, 12:15] = True
    boxes = torch.tensor([[0.0, 0, 16, 10], [11.6, 1.8, 15.2, 6.1]])
    given = Instances(boxes, torch.tensor([3, 4]), masks=masks.from_dense(dense))
    found = view(given, (6, 0, 20, 20), (20, 14))
    assert found.boxes.tolist() == [[0, 8, 10, 10], boxes[1].sub(torch.tensor([6, 0, 6, 0])).tolist()]
    hidden = torch.zeros(20, 20, dtype=torch.bool)
    hidden[:, :5] = True
    left = without(given, hidden)
    assert left.boxes.tolist() == [[5, 8, 16, 10], boxes[1].tolist()]
    hidden[:8, 5:13], hidden[2:6, 13:] = True, True
    assert without(given, hidden).classes.tolist() == [3]  # the other one is behind it


def test_what_is_seen_of_an_object_counts_in_pixels_of_its_mask():
    dense = torch.zeros(1, 10, 100, dtype=torch.bool)
    dense[0, :, 95:] = dense[0, 0, :] = True  # most of the box is empty, most of the mask at its end
    given = Instances(torch.tensor([[0.0, 0, 100, 10]]), torch.tensor([0]), masks=masks.from_dense(dense))
    assert len(view(given, (0, 0, 13, 10), (10, 13)).boxes) == 0  # 13 of 145 pixels
    assert len(view(given, (92, 0, 100, 10), (10, 8)).boxes) == 1
    assert len(view(given._replace(masks=None), (92, 0, 100, 10), (10, 8)).boxes) == 0  # 8 % of its box
    assert len(view(given._replace(masks=None), (0, 0, 13, 10), (10, 13)).boxes) == 1


def test_jitter_reaches_every_place_and_scale():
    jitter = LargeScaleJitter(prepared((24, 36)), (0.5, 2.0))
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(72), indexing="ij")
    image = torch.stack([rows, columns, rows]).to(torch.uint8)
    objects = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    torch.manual_seed(0)
    shapes, corners = set(), set()
    for _ in range(300):
        found, _ = jitter(image, objects, none_left)
        shapes.add(tuple(found.shape[1:]))
        corners.add((int(found[0, 0, 0]), int(found[1, 0, 0])))
    assert min(shapes) <= (13, 20)  # smaller pictures are left small
    assert max(shapes) == (24, 36)
    assert max(top for top, _ in corners) >= 22  # scale 2 shows a half
    assert max(left for _, left in corners) >= 33
    tall = jitter(image.mT.contiguous(), objects, none_left)[0]
    assert tall.shape[1] >= tall.shape[2]  # with "fit" the crop lies as the picture does
    always = LargeScaleJitter(prepared((24, 36)), (2.0, 2.0))
    assert always(image.mT.contiguous(), objects, none_left)[0].shape == (3, 36, 24)
    assert LargeScaleJitter(prepared((24, 36), "keep"), (9.0, 9.0))(image.mT, objects, none_left)[0].shape == (
        3,
        24,
        36,
    )


def test_sizes_are_drawn_and_bounded():
    given = painted(60, 90)
    torch.manual_seed(0)
    for kind, size, due in (
        ("fit", (48, 72), {(40, 60), (48, 72)}),
        ("fit", (30, 60), {(40, 60)}),  # the longer side is bounded
        ("keep", (30, 30), {(40, 60), (48, 72)}),
        ("squash", (20, 30), {(40, 60), (48, 72)}),
    ):
        whole = Whole(prepared(size, kind), (40, 48))
        assert {tuple(whole(*given, none_left)[0].shape[1:]) for _ in range(30)} == due


def test_a_mosaic_has_four_pictures_around_a_point():
    mosaic = Mosaic(prepared((32, 48)), 1.0)
    pictures = [painted(32, 48, seed=seed) for seed in range(4)]
    bounds = set()
    for seed in range(10):
        torch.manual_seed(seed)
        others = iter(pictures[1:])
        image, objects = mosaic(*pictures[0], lambda others=others: next(others))
        assert image.shape == (3, 64, 96)
        check(image, objects)
        assert agreement(image, objects) == 1
        reached = (image != 114).any(0)
        assert 72 <= reached.any(0).sum() <= 96
        assert 48 <= reached.any(1).sum() <= 64
        bounds.add(tuple(reached.nonzero().amin(0).tolist()))
    assert len(bounds) > 5
    torch.manual_seed(0)
    assert Mosaic(prepared((32, 48)), 1e-9)(*pictures[0], none_left)[0] is pictures[0][0]


def test_pasted_objects_hide_what_is_behind_them():
    paste = CopyPaste(Compose(()), 1.0)
    torch.manual_seed(0)
    gone, pasted = 0, 0
    for seed in range(40):
        own, other = painted(seed=seed, crowd=True), painted(50, 100, seed=seed + 1000, crowd=True)
        image, objects = paste(*own, lambda other=other: other)
        check(image, objects)
        assert agreement(image, objects) == 1
        dense = masks.to_dense(objects.masks)
        assert (dense.sum(0) <= 1).all()  # none upon another
        torch.testing.assert_close(objects.areas, masks.areas(objects.masks).float())
        assert objects.crowd.sum() <= 1  # no crowd was pasted
        changed = (image != own[0]).any(0)
        assert (changed <= dense.any(0)).all()  # nothing but objects came
        gone += 5 - int((dense & masks.union(own[1].masks)).any((1, 2)).sum())
        pasted += len(objects.boxes) - 5
    assert pasted > 30
    with pytest.raises(UsageError, match="masks"):
        paste(*painted(outlined=False), lambda: painted(outlined=False))


def test_mirrored_boxes():
    image, objects = painted(20, 30)
    found, turned = Mirror(-1, 1.0)(image, objects, none_left)
    assert found.equal(image.flip(-1))
    assert turned.boxes.equal(masks.tight(turned.masks).float())
    assert Mirror(-2, 1.0)(image, objects, none_left)[1].boxes[:, 3].equal(20 - objects.boxes[:, 1])
    assert Mirror(-1, 0.0)(image, objects, none_left)[1] is objects


def test_annotations_become_tensors():
    outlines = ((np.array([[2, 2], [8, 2], [8, 6]], np.float32),), RLE((10, 3, 107), (12, 10)), None)
    boxes = np.array([[2, 2, 8, 6], [0, 10, 2, 12], [1, 1, 4, 3]], np.float32)
    given = Objects(boxes, np.array([1, 0, 2]), (12, 10), np.array([False, True, False]), None, outlines)
    found = instances(given, outlined=True)
    assert found.boxes.equal(torch.from_numpy(boxes))
    assert found.classes.tolist() == [1, 0, 2]
    assert found.crowd.tolist() == [False, True, False]
    dense = masks.to_dense(found.masks)
    assert dense.shape == (3, 12, 10)
    assert dense[1].nonzero().tolist() == [[0, 1], [10, 0], [11, 0]]
    assert dense[2].nonzero().tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]  # its box
    assert instances(given, outlined=False).masks is None
    empty = Objects(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), (12, 10))
    assert instances(empty, outlined=True).masks.size == (12, 10)
    both = join([found, instances(empty, outlined=True)._replace(crowd=None)])
    assert both.crowd.tolist() == [False, True, False]
    assert masks.to_dense(both.masks).equal(dense)


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": "rand_augment"},
        {"erasing": 0.1},
        {"crop_padding": 4},
        {"mixup": 0.2},
        {"scale": (2.0, 1.0)},
        {"sizes": (100,)},
    ],
)
def test_settings_that_are_not_for_objects(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        training_objects(prepared((64, 96)), AugmentationSettings(**settings))


def test_native_pictures_have_no_other_size():
    for settings in ({"sizes": (40,)}, {"mosaic": 0.5}):
        with pytest.raises(UsageError, match=next(iter(settings))):
            training_objects(prepared((64, 96), "native"), AugmentationSettings(**settings))
    given = painted(61, 87)
    assert training_objects(prepared((32, 32), "native"), AugmentationSettings())(*given, none_left)[0].shape[1:] == (
        61,
        87,
    )
