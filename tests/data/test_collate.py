import pytest
import torch

from patchform.data.collate import PackedObjects, collate, pack, split, to_device, unpack
from patchform.geometry import masks
from patchform.records import Instances, Label, Regions, Sample


def sample(index, height=4, width=5, target=True):
    image = torch.full((3, height, width), index + 1, dtype=torch.uint8)
    return Sample(image, Label(torch.tensor([index])) if target else None, f"{index}.png", (height * 2, width * 2))


def test_equal_sizes_stack():
    batch = collate([sample(0), sample(1)])
    assert batch.images.shape == (2, 3, 4, 5)
    assert batch.images.dtype == torch.uint8
    assert batch.padding is None
    assert batch.names == ("0.png", "1.png")
    assert batch.sizes == ((8, 10), (8, 10))
    assert [target.classes.item() for target in batch.targets] == [0, 1]


def test_unequal_sizes_are_padded_and_the_padding_is_told():
    batch = collate([sample(0, 2, 5), sample(1, 4, 3)])
    assert batch.images.shape == (2, 3, 4, 5)
    assert batch.padding.equal(batch.images[:, 0] == 0)
    assert batch.padding.dtype == torch.bool
    assert (~batch.padding).sum((1, 2)).tolist() == [10, 12]


def test_targets_are_all_or_none():
    assert collate([sample(0, target=False)]).targets == ()
    assert collate([sample(0, target=False), sample(1)]).targets == ()


def test_parts_make_the_whole():
    batch = collate([sample(index, 4, 5 - index % 2) for index in range(7)])
    for size, count in ((3, 3), (7, 1), (0, 1), (100, 1), (1, 7)):
        parts = list(split(batch, size))
        assert len(parts) == count
        assert torch.cat([part.images for part in parts]).equal(batch.images)
        assert torch.cat([part.padding for part in parts]).equal(batch.padding)
        assert sum((part.names for part in parts), ()) == batch.names
        assert sum((part.targets for part in parts), ()) == batch.targets
        assert sum((part.sizes for part in parts), ()) == batch.sizes
    assert next(split(collate([sample(0, target=False)]), 1)).targets == ()
    same = collate([sample(index) for index in range(5)])
    assert torch.cat([part.images for part in split(same, 2, 1000)]).equal(same.images)
    assert all(part.padding is None for part in split(same, 2, 1000))


def test_parts_have_no_padding_that_none_of_them_needs():
    sizes = [(4, 9), (5, 3), (2, 2), (8, 4), (8, 4), (1, 1)]
    batch = collate([sample(index, *size) for index, size in enumerate(sizes)])
    for number, part in enumerate(split(batch, 2, 10**6)):
        pair = sizes[2 * number : 2 * number + 2]
        assert part.images.shape == (2, 3, max(height for height, _ in pair), max(width for _, width in pair))
        for image, (height, width) in zip(part.images, pair):
            assert (image[:, :height, :width] > 0).all()
            assert image.count_nonzero() == 3 * height * width
        assert (~part.padding).sum((1, 2)).tolist() == [height * width for height, width in pair]
    alone = list(split(batch, 1, 10**6))
    assert [part.images.shape[-2:] for part in alone] == sizes
    assert all(part.padding is None for part in alone)
    mixed = collate([sample(0), sample(1), sample(2, 9, 9)])
    assert all(part.padding is None for part in split(mixed, 2, 10**6))


def test_parts_are_bounded_in_pixels():
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        sizes = torch.randint(1, 12, (9, 2), generator=generator).tolist()
        batch = collate([sample(index, *size) for index, size in enumerate(sizes)])
        bound, count = int(torch.randint(1, 500, (), generator=generator)), 4
        parts = list(split(batch, count, bound))
        assert sum((part.names for part in parts), ()) == batch.names
        seen = 0
        for part in parts:
            number, pixels = len(part.images), part.images[:, 0].numel()
            own = sizes[seen : seen + number]
            assert part.images.shape[-2:] == tuple(map(max, zip(*own)))
            assert number == 1 or (pixels <= bound and number <= count)
            seen += number
            following = sizes[seen : seen + 1]
            if following and number < count:  # one more would not have fitted
                height, width = map(max, zip(*own, *following))
                assert (number + 1) * height * width > bound
    assert len(list(split(collate([sample(index) for index in range(6)]), 0, 60))) == 2  # 20 pixels each


def objects(number, outlined=True, **more):
    boxes = torch.rand(number, 4)
    dense = torch.rand(number, 6, 7) < 0.5
    return Instances(boxes, torch.arange(number), masks=masks.from_dense(dense) if outlined else None, **more)


def equal(first, second):
    if isinstance(first, torch.Tensor):
        return first.equal(second) and first.dtype == second.dtype
    if isinstance(first, tuple):
        return type(first) is type(second) and len(first) == len(second) and all(map(equal, first, second))
    return first == second


@pytest.mark.parametrize(
    "given",
    [
        [objects(3), objects(0), objects(1)],
        [objects(0, False)],
        [objects(2, False, crowd=torch.tensor([True, False])), objects(1, False), objects(0, True)],
        [objects(2, scores=torch.rand(2)), objects(4, areas=torch.rand(4))],
    ],
)
def test_objects_travel_as_few_tensors_and_arrive_equal(given):
    packed = pack(given)
    assert isinstance(packed, PackedObjects)
    assert len(packed.fields) == 7
    assert equal(unpack(packed), tuple(given))
    batch = collate([sample(index)._replace(target=target) for index, target in enumerate(given)])
    assert equal(to_device(batch, "cpu").targets, tuple(given))
    moved = to_device(batch, "meta").targets
    assert all(target.boxes.device.type == "meta" for target in moved)
    assert all(target.masks is None or target.masks.bits.device.type == "meta" for target in moved)
    assert pack([given[0], Label(torch.tensor([1]))]) is None
    mixed = batch._replace(targets=(given[0], Label(torch.tensor([1]))))
    assert equal(to_device(mixed, "cpu").targets, mixed.targets)


def test_labels_travel_packed_and_arrive_equal():
    labels = [Label(torch.tensor([1, 2])), Label(torch.tensor([], dtype=torch.int64)), Label(torch.tensor([0]))]
    for given in (labels, [label._replace(scores=torch.rand(3)) for label in labels]):
        for found, label in zip(unpack(pack(given)), given, strict=True):
            assert found.classes.equal(label.classes)
            assert (found.scores is None) == (label.scores is None)
            assert label.scores is None or found.scores.equal(label.scores)
    assert pack([labels[0], labels[1]._replace(scores=torch.rand(3))]) is None
    assert pack([]) is None


def test_masks_of_one_size_travel_as_one_tensor_and_arrive_as_int64():
    masks = [Regions(torch.randint(256, (4, 5), dtype=torch.uint8)) for _ in range(3)]
    assert pack(masks).shape == (3, 4, 5)
    other = [*masks[:2], Regions(torch.zeros(2, 2, dtype=torch.uint8))]
    assert pack(other) is None
    assert pack([masks[0], sample(0).target]) is None
    assert pack([masks[0]._replace(scores=torch.rand(2, 4, 5))]) is None
    batch = collate([sample(index)._replace(target=mask) for index, mask in enumerate(masks)])
    for given in (masks, other):
        for found, mask in zip(to_device(batch._replace(targets=tuple(given)), "cpu").targets, given, strict=True):
            assert found.classes.dtype == torch.int64
            assert found.classes.equal(mask.classes.long())
    assert all(found.classes.equal(mask.classes) for found, mask in zip(unpack(pack(masks)), masks))


def test_a_batch_moves_as_a_whole():
    batch = collate([sample(0), sample(1, 3, 3)])
    moved = to_device(batch, "meta")
    assert {moved.images.device.type, moved.padding.device.type, moved.targets[1].classes.device.type} == {"meta"}
    assert moved.names == batch.names
    regions = batch._replace(targets=(Regions(torch.zeros(2, 2)), Regions(torch.zeros(2, 2), torch.zeros(1, 2, 2))))
    assert to_device(regions, "meta").targets[1].scores.device.type == "meta"
    assert to_device(batch._replace(targets=()), "cpu").targets == ()
