from typing import NamedTuple

import pytest
import torch

from patchform.data.collate import PackedTargets, collate, split, to_device
from patchform.data.loader import evaluation_loader
from patchform.geometry import masks
from patchform.records import Instances, Label, Regions, Sample, tensors_of


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
    packed = PackedTargets.of(given)
    assert len(packed.joined) == len({tensor.dtype for target in given for tensor in tensors_of(target)})
    assert PackedTargets.of(packed) is packed
    assert len(packed) == len(given)
    assert equal(tuple(packed), tuple(given))
    assert equal(packed[1:], tuple(given[1:]))
    batch = collate([sample(index)._replace(target=target) for index, target in enumerate(given)])
    assert equal(to_device(batch, "cpu").targets, tuple(given))
    assert equal(to_device(batch._replace(targets=packed), "cpu").targets, tuple(given))
    moved = to_device(batch, "meta").targets
    assert all(target.boxes.device.type == "meta" for target in moved)
    assert all(target.masks is None or target.masks.bits.device.type == "meta" for target in moved)
    mixed = batch._replace(targets=(given[0], Label(torch.tensor([1]))))
    assert equal(to_device(mixed, "cpu").targets, mixed.targets)


def test_labels_travel_packed_and_arrive_equal():
    labels = [Label(torch.tensor([1, 2])), Label(torch.tensor([], dtype=torch.int64)), Label(torch.tensor([0]))]
    scored = [label._replace(scores=torch.rand(3)) for label in labels]
    for given in (labels, scored, [labels[0], scored[1]]):
        packed = PackedTargets.of(given)
        assert [tensor.dim() for tensor in packed.joined.values()] == [1] * len(packed.joined)
        assert equal(tuple(packed), tuple(given))
    assert len(PackedTargets.of(labels).joined) == 1
    assert tuple(PackedTargets.of([])) == ()


def test_masks_travel_as_one_tensor_and_arrive_as_int64():
    masks = [Regions(torch.randint(256, (4, 5), dtype=torch.uint8)) for _ in range(3)]
    other = [*masks[:2], Regions(torch.zeros(2, 2, dtype=torch.uint8))]
    batch = collate([sample(index)._replace(target=mask) for index, mask in enumerate(masks)])
    for given in (masks, other):
        packed = PackedTargets.of(given)
        assert {dtype: tensor.dtype for dtype, tensor in packed.joined.items()} == {torch.uint8: torch.uint8}
        assert equal(tuple(packed), tuple(given))
        for targets in (tuple(given), packed):
            found = to_device(batch._replace(targets=targets), "cpu").targets
            for one, mask in zip(found, given, strict=True):
                assert one.classes.dtype == torch.int64
                assert one.classes.equal(mask.classes.long())
            assert len({one.classes.untyped_storage().data_ptr() for one in found}) == 1  # views of one


class Count(NamedTuple):
    number: torch.Tensor
    unit: str
    more: Label | None = None


def test_a_type_of_ones_own_travels_too():
    given = (Count(torch.tensor(3.0), "apples"), Count(torch.tensor(4.0), "pears", Label(torch.tensor([2]))))
    batch = collate([sample(index)._replace(target=target) for index, target in enumerate(given)])
    (loaded,) = evaluation_loader(Given(given), 2, workers=1)
    for targets in (to_device(batch, "cpu").targets, loaded.targets, to_device(loaded, "cpu").targets):
        assert equal(tuple(targets), given)
    assert isinstance(loaded.targets, PackedTargets)  # packed where it is made


class Given(torch.utils.data.Dataset):
    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, key):
        return sample(key[1])._replace(target=self.targets[key[1]])


def test_a_batch_moves_as_a_whole():
    batch = collate([sample(0), sample(1, 3, 3)])
    moved = to_device(batch, "meta")
    assert {moved.images.device.type, moved.padding.device.type, moved.targets[1].classes.device.type} == {"meta"}
    assert moved.names == batch.names
    regions = batch._replace(targets=(Regions(torch.zeros(2, 2)), Regions(torch.zeros(2, 2), torch.zeros(1, 2, 2))))
    assert to_device(regions, "meta").targets[1].scores.device.type == "meta"
    assert to_device(batch._replace(targets=()), "cpu").targets == ()
