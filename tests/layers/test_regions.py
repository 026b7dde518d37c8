import pytest
import torch
from torch.nn.utils.rnn import pad_sequence
from torchvision.ops import MultiScaleRoIAlign as TorchvisionRoIAlign

from patchform.geometry.anchors import BACKGROUND, NEITHER
from patchform.layers.regions import MultiScaleRoIAlign, balanced_sample, put_back

STRIDES, SIZE = (4, 8, 16, 32), (256, 320)


def levels(channels=3, images=2):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(images, channels, SIZE[0] // s, SIZE[1] // s, generator=draw) for s in STRIDES]


def regions(count, seed):
    """From a few pixels to the whole picture."""
    draw = torch.Generator().manual_seed(seed)
    sides = torch.tensor([320.0, 256]) * torch.rand(count, 2, generator=draw) ** 3
    corner = torch.rand(count, 2, generator=draw) * (torch.tensor([320.0, 256]) - sides)
    return torch.cat([corner, corner + sides], 1)


def read(pool, maps, each, size):
    """Regions of every image, one after the other, and garbage in the places between, which nobody reads."""
    regions = pad_sequence(each, batch_first=True, padding_value=float("nan"))
    real = torch.arange(regions.shape[1]) < torch.tensor([len(boxes) for boxes in each])[:, None]
    cells, places = pool(maps, regions, real, size)
    assert len(cells) == sum(map(len, each))
    back = put_back(cells, places, tuple(real.shape))
    assert not back[~real].any()
    return back[real]


@pytest.mark.parametrize("counts", [(60, 40), (0, 5), (0, 0)])
def test_reads_as_torchvision(counts):
    maps, each = [x.requires_grad_() for x in levels()], [regions(count, seed) for seed, count in enumerate(counts)]
    found = read(MultiScaleRoIAlign(STRIDES, 7, aligned=False), maps, each, SIZE)
    theirs = TorchvisionRoIAlign([str(i) for i in range(4)], 7, 2)
    wanted = theirs({str(i): x for i, x in enumerate(maps)}, each, [SIZE] * 2)
    torch.testing.assert_close(found, wanted)
    weights = torch.randn(wanted.shape, generator=torch.Generator().manual_seed(3))
    ours, torchvisions = (torch.autograd.grad((x * weights).sum(), maps) for x in (found, wanted))
    torch.testing.assert_close(ours, torchvisions)
    if all(counts):
        assert (read(MultiScaleRoIAlign(STRIDES, 7), maps, each, SIZE) - wanted).abs().max() > 0.1  # half a cell away
        other = read(MultiScaleRoIAlign(STRIDES, 7, side=112, aligned=False), maps, each, SIZE)
        assert (other - wanted).abs().max() > 0.1  # control: from other levels


@pytest.mark.parametrize(
    ("side", "level"), [(1, 0), (111, 0), (112, 1), (223, 1), (224, 2), (447, 2), (448, 3), (5000, 3)]
)
def test_the_level_suits_the_side(side, level):
    maps = [torch.full((1, 1, 5000 // stride, 5000 // stride), float(level)) for level, stride in enumerate(STRIDES)]
    box = torch.tensor([[0.0, 0, side, side]])
    assert read(MultiScaleRoIAlign(STRIDES, 1), maps, [box], (5000, 5000)).item() == level
    assert read(MultiScaleRoIAlign((3.5, 7, 14, 28), 1), maps, [box * 14 / 16], (1, 1)).item() == level
    assert read(MultiScaleRoIAlign(STRIDES, 1, side=112), maps, [box / 2], (5000, 5000)).item() == level
    assert read(MultiScaleRoIAlign((16,), 1), maps[:1], [box], (1, 1)).item() == 0


def test_a_region_is_read_where_it_is():
    """A ramp says where it was asked."""
    x = (torch.arange(32.0) + 0.5).expand(1, 1, 32, 32) * 4  # the pixel at which each cell's centre lies
    box = torch.tensor([[20.0, 30, 52, 62]])
    exact = read(MultiScaleRoIAlign((4,), 8), [x], [box], (128, 128))
    torch.testing.assert_close(exact[0, 0, 0], 20 + 4 * (torch.arange(8) + 0.5))
    shifted = read(MultiScaleRoIAlign((4,), 8, aligned=False), [x], [box], (128, 128))
    torch.testing.assert_close(shifted[0, 0, 0], exact[0, 0, 0] + 2)  # half a cell
    rounded = read(MultiScaleRoIAlign((3,), 8), [x], [box], (128, 128))  # cells of 4 pixels whose maker says 3
    torch.testing.assert_close(rounded, exact)


def test_a_sample():
    stands_for = torch.full((1000,), BACKGROUND)
    stands_for[:30], stands_for[30:100] = torch.arange(30), NEITHER
    rows = balanced_sample(stands_for, 80, 0.25, 0)
    assert len(rows) == len(rows.unique()) == 80
    assert (stands_for[rows[:20]] >= 0).all()
    assert (stands_for[rows[20:]] == BACKGROUND).all()
    assert len(balanced_sample(stands_for, 80, 0.5, 0)) == 80  # all 30 objects
    assert len(balanced_sample(stands_for[:130], 80, 0.5, 0)) == 60  # all there is
    assert len(balanced_sample(stands_for[30:100], 80, 0.5, 0)) == 0
    drawn = torch.zeros(1000)
    for seed in range(300):
        drawn[balanced_sample(stands_for, 80, 0.25, seed)] += 1 / 300
    assert drawn[30:100].max() == 0
    assert (drawn[:30].mean() - 20 / 30).abs() < 1e-3
    assert (drawn[:30] - 20 / 30).abs().max() < 0.15  # everyone's chance is the same
    assert (drawn[100:] - 60 / 900).abs().max() < 0.08
