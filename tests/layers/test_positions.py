import math

import pytest
import torch

from patchform.errors import UsageError
from patchform.layers import positions
from patchform.layers.positions import (
    Learned2D,
    LearnedPosition2D,
    Relative2D,
    RelativeBias,
    SinCos2D,
    SinePosition2D,
    Sinusoid1D,
)


def test_sinusoid_by_its_formula():
    placed = Sinusoid1D()(torch.zeros(1, 6, 8, dtype=torch.float64), (2, 3))[0]
    for place in range(6):
        for i in range(4):
            angle = place / 10000 ** (2 * i / 8)
            assert placed[place, 2 * i] == pytest.approx(math.sin(angle), abs=1e-12)
            assert placed[place, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-12)


def test_sincos_2d_by_its_formula():
    placed = SinCos2D()(torch.zeros(1, 6, 8, dtype=torch.float64), (2, 3))[0]
    for y in range(2):
        for x in range(3):
            rates = [1, 10000**-0.5]
            expected = [f(p * r) for p in (x, y) for f in (math.sin, math.cos) for r in rates]
            assert placed[3 * y + x].tolist() == pytest.approx(expected, abs=1e-12)


def test_learned_2d_is_row_beside_column():
    position = Learned2D(8, (2, 3))
    placed = position(torch.zeros(1, 7, 8), (2, 3))
    assert torch.equal(placed[0, 0], torch.zeros(8))
    assert torch.equal(placed[0, 1 + 5], torch.cat([position.rows[1], position.columns[2]]))


def test_place_in_picture_by_its_formula():
    padding = torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, 2:], padding[1, :, 3:] = True, True
    placed = SinePosition2D(8)((3, 4), padding)
    for image, (rows, columns) in enumerate([(3, 4), (2, 3)]):
        for y in range(rows):
            for x in range(columns):
                shares = 2 * math.pi * (y + 1) / rows, 2 * math.pi * (x + 1) / columns
                expected = [f(share * r) for share in shares for r in (1, 10000**-0.5) for f in (math.sin, math.cos)]
                assert placed[image, 4 * y + x].tolist() == pytest.approx(expected, abs=1e-5)
    assert placed[:, 11].isfinite().all()
    assert placed.dtype == torch.float32


def test_rows_and_columns_are_taken_by_number_and_spread_beyond_it():
    position, padding = LearnedPosition2D(8, number=5), torch.zeros(2, 3, 5, dtype=torch.bool)
    placed = position((3, 5), padding)
    assert torch.equal(placed[0, 5 + 4], torch.cat([position.columns[4], position.rows[1]]))
    wide = position((3, 10), padding)[0].unflatten(0, (3, 10))
    assert torch.equal(wide[..., 4:], placed[0].unflatten(0, (3, 5))[:, :1, 4:].expand(-1, 10, -1))
    torch.testing.assert_close(wide[0, 0, :4], position.columns[0])
    torch.testing.assert_close(wide[0, 1, :4], 0.75 * position.columns[0] + 0.25 * position.columns[1])


def test_relative_2d_against_a_loop():
    torch.manual_seed(0)
    position = Relative2D(4, (2, 3)).double()
    q = torch.randn(1, 1, 2, 6, 4, dtype=torch.float64)
    _, _, bias = position(q, q, None)
    for head in range(2):
        for a in range(6):
            for b in range(6):
                dy, dx = b // 3 - a // 3, b % 3 - a % 3
                offset = position.rows[dy + 1] + position.columns[dx + 2]
                assert bias[0, 0, head, a, b].item() == pytest.approx((q[0, 0, head, a] @ offset / 2).item())


@pytest.mark.parametrize("name", ["learned_1d", "sinusoid_1d", "learned_2d", "sincos_2d", "none"])
def test_absolute_positions_take_any_grid(name):
    position = positions.absolute(name, 8, (4, 4), prefix=1)
    for grid in ((4, 4), (1, 1), (3, 9), (40, 2)):
        tokens = torch.randn(2, 1 + grid[0] * grid[1], 8)
        placed = position(tokens, grid)
        assert placed.shape == tokens.shape
        if name not in ("learned_1d",):
            assert torch.equal(placed[:, 0], tokens[:, 0])


@pytest.mark.parametrize("name", ["relative_bias", "relative_2d", "rope_2d"])
def test_inside_positions_take_any_grid_and_leave_other_tokens_alone(name):
    position = positions.relative(name, 16, 2, (4, 4))
    for grid in ((4, 4), (1, 1), (3, 9)):
        q = torch.randn(2, 1, 2, 1 + grid[0] * grid[1], 8)
        turned, _, bias = position(q, q, grid)
        torch.testing.assert_close(turned[..., 0, :], q[..., 0, :])
        if bias is not None:
            assert bias.shape[-2:] == (q.shape[-2], q.shape[-2])
            assert bias[..., 0, :].abs().max() == bias[..., :, 0].abs().max() == 0


def test_native_bias_is_the_table_and_a_larger_one_is_a_resized_picture():
    position = RelativeBias(2, (3, 3))
    q = torch.zeros(1, 1, 2, 9, 4)
    _, _, native = position(q, q, None)
    assert set(native.flatten().tolist()) <= set(position.table.flatten().tolist())
    flat = torch.nn.Parameter(torch.full_like(position.table, 0.25))
    position.table = flat
    _, _, larger = position(torch.zeros(1, 1, 2, 25, 4), torch.zeros(1, 1, 2, 25, 4), (5, 5))
    torch.testing.assert_close(larger, torch.full_like(larger, 0.25))


def test_widths_that_do_not_part_are_refused():
    with pytest.raises(UsageError, match="even width"):
        positions.absolute("learned_2d", 7, (2, 2))
    with pytest.raises(UsageError, match="4 divides"):
        positions.relative("rope_2d", 12, 2, (2, 2))
    with pytest.raises(UsageError, match="4 divides"):
        SinePosition2D(6)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(UsageError, match='did you mean "relative_bias"'):
        positions.absolute("relative_bais", 8, (4, 4))
