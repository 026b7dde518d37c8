import pytest
import torch
import torch.nn.functional as F
from torch.export import Dim

from patchform.geometry import grids

MODES = ("bicubic", "bilinear", "nearest", "corners", "antialiased")


def interpolated(table, size, mode):
    options = {} if mode == "nearest" else {"align_corners": mode == "corners"}
    if mode == "antialiased":
        options["antialias"] = True
    how = {"corners": "bilinear", "antialiased": "bicubic"}.get(mode, mode)
    return F.interpolate(table.permute(2, 0, 1)[None], size=size, mode=how, **options)[0].permute(1, 2, 0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cells", [1, 2, 7, 14, 27])
def test_resizing_is_that_of_torch(mode, cells):
    table = torch.randn(cells, cells, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert grids.resize(table, (cells, cells), mode=mode) is table
    for side in (*range(1, 41), 98, 131, 1000):
        for size in ((side, 5), (cells, side)):
            torch.testing.assert_close(grids.resize(table, size, mode=mode), interpolated(table, size, mode))
    assert grids.resize(table.float(), (3, 4), mode=mode).dtype == torch.float32


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_resizing_are_those_of_torch(mode):
    table = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    given = torch.randn(10, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.inference_mode():
        grids.resize(table, (10, 3), mode=mode)  # what is kept serves training too
    ours, wanted = (f(table, (10, 3), mode=mode) for f in (grids.resize, interpolated))
    gradients = [torch.autograd.grad(resized, table, given)[0] for resized in (ours, wanted)]
    torch.testing.assert_close(*gradients)


def test_resizing_keeps_float32_where_products_are_rounded():
    table = torch.randn(7, 7, 4, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        resized = grids.resize(table, (9, 11))
    torch.testing.assert_close(resized, interpolated(table, (9, 11), "bicubic"))
    half = grids.resize(table.bfloat16(), (9, 11))
    torch.testing.assert_close(half, interpolated(table.bfloat16().float(), (9, 11), "bicubic").bfloat16())


@pytest.mark.parametrize("mode", MODES)
def test_float32_places_are_exact_on_long_sides(mode):
    line = torch.randn(3001, 2, 1, generator=torch.Generator().manual_seed(0))  # torch's antialiasing errs at width 1
    resized = grids.resize(line, (4999, 2), mode=mode)
    torch.testing.assert_close(resized.double(), interpolated(line.double(), (4999, 2), mode), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_graph_resizes_to_any_size(mode):
    class Resized(torch.nn.Module):
        def forward(self, table, like):
            return grids.resize(table, like.shape, mode=mode)

    table = torch.randn(7, 5, 2, generator=torch.Generator().manual_seed(0))
    free = {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}
    graph = torch.export.export(Resized(), (table, torch.zeros(6, 4)), dynamic_shapes=({}, free)).module()
    for size in ((7, 5), (1, 1), (2, 9), (13, 5), (40, 31)):
        ours = graph(table, torch.zeros(size))
        torch.testing.assert_close(ours, grids.resize(table, size, mode=mode), rtol=0, atol=1e-6)


def test_a_rounded_factor_would_be_seen():
    table = torch.randn(14, 14, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours = grids.resize(table, (15, 37))
    exact = F.interpolate(table.permute(2, 0, 1)[None], size=(15, 37), mode="bicubic")[0].permute(1, 2, 0)
    rounded = F.interpolate(
        table.permute(2, 0, 1)[None], scale_factor=(15.1 / 14, 37.1 / 14), mode="bicubic", recompute_scale_factor=False
    )[0].permute(1, 2, 0)
    torch.testing.assert_close(ours, exact)
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
