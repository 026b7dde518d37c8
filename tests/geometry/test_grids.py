import pytest
import torch
import torch.nn.functional as F

from patchform.geometry import grids


@pytest.mark.parametrize("mode", ["bicubic", "bilinear", "nearest"])
def test_resize_by_target_size(mode):
    table = torch.randn(14, 14, 3, generator=torch.Generator().manual_seed(0))
    assert grids.resize(table, (14, 14), mode=mode) is table
    for height in range(1, 41):
        for width in range(1, 41):
            assert grids.resize(table, (height, width), mode=mode).shape == (height, width, 3)


def test_a_rounded_factor_would_be_seen():
    table = torch.randn(14, 14, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = grids.resize(table, (15, 37))
    exact = F.interpolate(table.permute(2, 0, 1)[None], size=(15, 37), mode="bicubic")[0].permute(1, 2, 0)
    rounded = F.interpolate(
        table.permute(2, 0, 1)[None], scale_factor=(15.1 / 14, 37.1 / 14), mode="bicubic", recompute_scale_factor=False
    )[0].permute(1, 2, 0)
    assert torch.equal(ours, exact)
    assert (ours - rounded).abs().max() > 1e-3


def test_a_cell_is_padding_when_all_its_pixels_are():
    draw = torch.Generator().manual_seed(0)
    for size, stride in (((33, 40), 16), ((32, 32), 8), ((5, 7), 4), ((1, 1), 32)):
        padding = torch.rand(2, *size, generator=draw) > 0.2
        padding[0, size[0] // 2 :] = True
        ours = grids.shrink_mask(padding, stride)
        rows, columns = grids.cells(size, stride)
        assert ours.shape == (2, rows, columns)
        for b in range(2):
            for y in range(rows):
                for x in range(columns):
                    part = padding[b, y * stride : (y + 1) * stride, x * stride : (x + 1) * stride]
                    assert ours[b, y, x] == part.all()


def test_masked_mean():
    tokens = torch.randn(2, 6, 4)
    padding = torch.zeros(2, 2, 3, dtype=torch.bool)
    padding[1, :, 1:] = True
    mean = grids.masked_mean(tokens, padding)
    torch.testing.assert_close(mean[0], tokens[0].mean(0))
    torch.testing.assert_close(mean[1], tokens[1, [0, 3]].mean(0))
    assert torch.equal(grids.masked_mean(tokens, torch.ones_like(padding)), torch.zeros(2, 4))


@pytest.mark.parametrize(("side", "step"), [(3, 2), (10, 4), (2, 2)])
def test_squares_are_those_that_unfolding_cuts(side, step):
    rows, columns = 3, 2
    frame = torch.arange((step * (rows - 1) + side) * (step * (columns - 1) + side)).view(1, 1, -1, step + side)
    wanted = frame.unfold(2, side, step).unfold(3, side, step)
    assert torch.equal(grids.squares((rows, columns), side=side, step=step), wanted.flatten())
    assert not torch.equal(grids.squares((columns, rows), side=side, step=step), wanted.flatten())  # control
