import torch

from patchform.data.collate import collate, pack, split, to_device, unpack
from patchform.records import Label, Regions, Sample


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
