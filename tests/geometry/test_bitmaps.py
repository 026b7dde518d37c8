import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from patchform.errors import DataError
from patchform.geometry import masks
from patchform.records import Bitmaps

HEIGHT, WIDTH = 37, 53


def drawn(seed=0, count=6, size=(HEIGHT, WIDTH)):
    """(N, H, W) bool: noise in boxes, one object without a pixel, one of a single pixel, one that fills the picture."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(count, *size, generator=generator) < 0.3
    for mask in dense[3:]:
        top, left = (int(torch.randint(side, (), generator=generator)) for side in size)
        mask[:top] = mask[:, :left] = False
    dense[0], dense[1], dense[2] = False, False, True
    dense[1, -1, 0] = True
    return dense


def boxes_around(count, seed=0):
    """Boxes of all sorts: inside, across the edges, beyond, empty, turned round."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT]) - 4
    boxes = torch.cat([low, low + torch.rand(count, 2, generator=generator) * torch.tensor([WIDTH, HEIGHT])], 1)
    boxes[0, 2:] = boxes[0, :2]
    boxes[1] = boxes[1, [2, 3, 0, 1]]
    boxes[2] += 100
    boxes[3] = torch.tensor([0.0, 0.0, WIDTH, HEIGHT])
    return boxes


def test_dense_and_back_with_tight_boxes():
    dense = drawn()
    found = masks.from_dense(dense)
    assert masks.to_dense(found).equal(dense)
    assert found.bits.dtype == torch.bool
    assert found.boxes[:3].tolist() == [[0, 0, 0, 0], [0, HEIGHT - 1, 1, HEIGHT], [0, 0, WIDTH, HEIGHT]]
    for mask, box in zip(dense[3:], found.boxes[3:].tolist()):
        rows, columns = mask.nonzero().T
        assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert masks.tight(found).equal(found.boxes)
    assert masks.areas(found).equal(dense.sum((1, 2)))
    assert masks.union(found).equal(dense.any(0))
    larger = masks.to_dense(found, (HEIGHT + 2, WIDTH + 3))
    assert larger[:, :HEIGHT, :WIDTH].equal(dense)
    assert larger.sum() == dense.sum()


def test_of_no_object():
    empty = masks.none((HEIGHT, WIDTH))
    for found in (
        empty,
        masks.from_dense(torch.zeros(0, HEIGHT, WIDTH)),
        masks.flip(empty, -1),
        masks.view(empty, (0, 0, 20, 20), (HEIGHT, WIDTH)),
        masks.take(masks.from_dense(drawn()), torch.zeros(0, dtype=torch.int64)),
        masks.concatenate([], (HEIGHT, WIDTH)),
        masks.concatenate([empty, empty]),
        masks.paste(torch.zeros(0, 28, 28), torch.zeros(0, 4), (HEIGHT, WIDTH)),
        masks.without(empty, torch.ones(HEIGHT, WIDTH, dtype=torch.bool)),
    ):
        assert (len(found.bits), found.boxes.shape, found.size) == (0, (0, 4), (HEIGHT, WIDTH))
        assert (found.bits.dtype, found.boxes.dtype) == (torch.bool, torch.int64)
    assert masks.areas(empty).shape == (0,)
    assert masks.tight(empty).shape == (0, 4)
    assert masks.to_dense(empty).shape == (0, HEIGHT, WIDTH)
    assert not masks.union(empty).any()
    assert masks.to_runs(empty) == []
    nothing = torch.zeros(0, dtype=torch.int64)
    assert masks.sample(empty, torch.zeros(0, 4), nothing, 7).shape == (0, 7, 7)
    assert not masks.sample(masks.from_dense(torch.zeros(1, 4, 4)), torch.ones(2, 4), nothing.new_zeros(2), 7).any()


def test_chosen_joined_hidden():
    dense = drawn()
    found = masks.from_dense(dense)
    index = torch.tensor([4, 0, 5, 5, 2, 1])
    assert masks.to_dense(masks.take(found, index)).equal(dense[index])
    wanted = torch.tensor([True, False, False, True, True, False])
    assert masks.to_dense(masks.take(found, wanted)).equal(dense[wanted])
    both = masks.concatenate([masks.take(found, wanted), found])
    assert masks.to_dense(both).equal(torch.cat([dense[wanted], dense]))
    left = masks.without(found, dense[4])
    assert masks.to_dense(left).equal(dense & ~dense[4])
    assert masks.tight(left)[4].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("axis", [-1, -2])
def test_mirrored(axis):
    dense = drawn()
    found = masks.flip(masks.from_dense(dense), axis)
    assert masks.to_dense(found).equal(dense.flip(axis))
    assert not masks.to_dense(found).equal(dense.flip(-3 - axis))  # control


@pytest.mark.parametrize("box", [(0, 0, WIDTH, HEIGHT), (5, 3, 40, 30), (-9, -4, 60, 50), (60, 0, 70, 9), (7, 7, 8, 8)])
@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (11, 17), (80, 60), (1, 1), (30, 35)])
def test_a_view_is_nearest_of_the_dense_masks(box, size):
    dense = drawn()
    left, top, right, bottom = box
    wide = torch.nn.functional.pad(dense, (20, 30, 20, 30))[:, top + 20 : bottom + 20, left + 20 : right + 20]
    due = interpolate(wide[:, None].float(), size, mode="nearest-exact")[:, 0] > 0
    found = masks.view(masks.from_dense(dense), box, size)
    assert found.size == size
    assert masks.to_dense(found).equal(due)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= torch.tensor([size[1], size[0]]).repeat(2)).all()


@pytest.mark.parametrize("size", [1, 7, 28])
def test_samples_are_those_of_roi_align(size):
    roi_align = pytest.importorskip("torchvision.ops").roi_align
    dense = drawn(1)
    generator = torch.Generator().manual_seed(2)
    boxes, index = boxes_around(150), torch.randint(6, (150,), generator=generator)
    found = masks.sample(masks.from_dense(dense), boxes, index, size)
    rois = torch.cat([index[:, None].float(), boxes], 1)
    due = roi_align(dense[:, None].float(), rois, (size, size), 1.0, -1, aligned=True)[:, 0]
    assert (found - due).abs().max() < 1e-5  # measured 1.0e-6
    assert found.max() > 0.9
    shifted = roi_align(dense[:, None].float(), rois, (size, size), 1.0, -1, aligned=False)[:, 0]
    assert (found - shifted).abs().max() > 0.1  # control
    fair = (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)  # without `aligned` there is a least size
    again = masks.sample(masks.from_dense(dense), boxes + 0.5, index, size)
    assert (again - shifted)[fair].abs().max() < 1e-5


def test_samples_do_not_depend_on_how_many_there_are_at_once(monkeypatch):
    bitmaps, boxes, index = masks.from_dense(drawn(1)), boxes_around(40), torch.arange(40) % 6
    whole = masks.sample(bitmaps, boxes, index, 14)
    monkeypatch.setattr(masks, "AT_ONCE", 500)
    assert (masks.sample(bitmaps, boxes, index, 14) - whole).abs().max() < 1e-6
    with torch.autocast("cpu", torch.bfloat16):
        assert (masks.sample(bitmaps, boxes, index, 14) - whole).abs().max() < 1e-6


def test_pasted_as_torchvision_does(monkeypatch):
    paste = pytest.importorskip("torchvision.models.detection.roi_heads").paste_masks_in_image
    boxes = boxes_around(150)
    boxes = boxes[
        ((boxes[:, 2:] > boxes[:, :2]) & (boxes[:, 2:] > 0) & (boxes[:, :2] < 30)).all(1)
    ]  # it knows no other
    squares = torch.rand(len(boxes), 28, 28, generator=torch.Generator().manual_seed(0))
    due = paste(squares[:, None], boxes, (HEIGHT, WIDTH))[:, 0]
    found = masks.paste(squares, boxes, (HEIGHT, WIDTH))
    sure = (due - 0.5).abs() > 1e-6
    assert ((masks.to_dense(found) == (due > 0.5)) | ~sure).all()
    assert sure.float().mean() > 0.999
    assert not masks.to_dense(masks.paste(squares.mT, boxes, (HEIGHT, WIDTH))).equal(masks.to_dense(found))  # control
    monkeypatch.setattr(masks, "AT_ONCE", 500)
    again = masks.paste(squares, boxes, (HEIGHT, WIDTH))
    assert again.bits.equal(found.bits)
    assert again.boxes.equal(found.boxes)


def test_pasted_beside_the_picture_there_is_nothing():
    boxes = torch.tensor([[-30.0, -30, -10, -10], [60, 5, 70, 9], [5, 60, 9, 70]])
    found = masks.paste(torch.ones(3, 28, 28), boxes, (HEIGHT, WIDTH))
    assert len(found.bits) == 0
    assert not masks.to_dense(found).any()


def polygons(rng, number):
    found = []
    for _ in range(number):
        reach = rng.uniform(1, 40)
        points = rng.uniform(-20, 70, 2) + rng.uniform(-reach, reach, (rng.integers(3, 9), 2))
        found.append(points.astype(np.float32))
    return found


def flat(parts):
    return [part.astype(np.float64).ravel().tolist() for part in parts]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of pycocotools
def test_polygons_and_runs_as_coco_reads_them():
    coco = pytest.importorskip("pycocotools.mask")
    rng = np.random.default_rng(0)
    filled = 0
    for number in range(300):
        parts = polygons(rng, 1 + number % 3)
        parts = [part.round() for part in parts] if number % 4 == 0 else parts
        runs = coco.merge(coco.frPyObjects(flat(parts), HEIGHT, WIDTH))
        due = torch.from_numpy(coco.decode(runs))[None] > 0
        found = masks.from_polygons(parts, (HEIGHT, WIDTH))
        assert masks.to_dense(found).equal(due)
        assert masks.to_runs(found) == [runs["counts"]]
        assert found.boxes.equal(masks.from_dense(due).boxes)
        lengths = masks.run_lengths(runs["counts"])
        for counts in (runs["counts"], lengths.tolist(), tuple(lengths.tolist())):
            again = masks.from_runs(counts, (HEIGHT, WIDTH))
            assert again.bits.equal(found.bits)
            assert again.boxes.equal(found.boxes)
        filled += bool(due.any())
    assert filled > 200


def test_runs_of_many_objects_and_of_extreme_ones():
    coco = pytest.importorskip("pycocotools.mask")
    dense = drawn(3)
    due = [runs["counts"] for runs in coco.encode(np.asfortranarray(dense.permute(1, 2, 0).numpy().astype(np.uint8)))]
    assert masks.to_runs(masks.from_dense(dense)) == due
    found = masks.concatenate([masks.from_runs(counts, (HEIGHT, WIDTH)) for counts in due])
    assert masks.to_dense(found).equal(dense)
    assert masks.to_dense(masks.from_runs([2, 3, 1, 0, 3, 0], (3, 3))).int().tolist() == [
        [[0, 1, 0], [0, 1, 0], [1, 0, 0]]
    ]


@pytest.mark.parametrize(
    "counts", [[5, 4, 1], [12, -3], [9, 9], [], b"", b"5", b"0d0o", b"zzzz\x7f", b"\x10", b"o" * 99]
)
def test_runs_that_are_none(counts):
    with pytest.raises(DataError, match="run lengths"):
        masks.from_runs(counts, (3, 3))


def test_an_outline_beside_the_picture_is_an_object_without_pixels():
    found = masks.from_polygons([np.array([[80.0, 3], [90, 3], [90, 9]], np.float32)], (HEIGHT, WIDTH))
    assert isinstance(found, Bitmaps)
    assert (found.boxes.tolist(), len(found.bits), found.size) == ([[0, 0, 0, 0]], 0, (HEIGHT, WIDTH))
