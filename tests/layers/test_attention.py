"""The one door: both routes agree with a plain definition in float64, and patterns with what they say they see."""

import itertools

import pytest
import torch
from torch import nn

from patchform.layers.attention import Attention, CrossAttention, attend, recording
from patchform.layers.blocks import MLP, Block
from patchform.layers.patterns import Blocks, Columns, Global, Neighborhood, Rows, Windows, tables_of
from patchform.layers.positions import RelativeBias, Rope2D

PATTERNS = [
    Global(),
    Rows(),
    Columns(),
    Windows((4, 4)),
    Windows((4, 4), (2, 2)),
    Windows((3, 5), (1, 2)),
    Neighborhood(2, tile=4),
    Neighborhood(1, tile=3),
    Blocks(6),
    Blocks(5, near=0, landmarks=2),
    Blocks(4, near=1, landmarks=3),
]
GRIDS = [(8, 8), (7, 10), (4, 4), (1, 9), (13, 3)]


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plainly(q, k, v, *, scale, bias=0.0, allowed=None):
    """The definition, every row of scores by itself, in float64."""
    scores = torch.einsum("bghnd,bghkd->bghnk", q.double(), k.double()) * scale + bias
    if allowed is not None:
        scores = scores.masked_fill(~allowed, float("-inf"))
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    return torch.einsum("bghnk,bghkd->bghnd", weights / weights.sum(-1, keepdim=True), v.double())


def masks(batch, groups, heads, n, k):
    draw = torch.Generator().manual_seed(5)
    some = torch.rand(batch, groups, heads, n, k, generator=draw) > 0.4
    some[..., 0] = True
    return {
        "none": None,
        "all": some,
        "groups": some[:1, :, :1],
        "padding": some[:, :, :1, :1],
        "shared": some[:1, :1],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mask", ["none", "all", "groups", "padding", "shared"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_both_routes_are_the_definition(dtype, mask, biased, grad):
    q, k, v = (normal(2, 3, 4, 5, 8, seed=s).to(dtype).requires_grad_(grad) for s in range(3))
    bias = normal(4, 5, 5, seed=4).to(dtype) if biased else None
    allowed = masks(2, 3, 4, 5, 5)[mask]
    expected = plainly(q, k, v, scale=8**-0.5, bias=0 if bias is None else bias.double(), allowed=allowed)
    fused = attend(q, k, v, bias=bias, allowed=allowed)
    with recording() as weights:
        explicit = attend(q, k, v, bias=bias, allowed=allowed)
    tolerance = {"rtol": 0, "atol": 1e-6 if dtype == torch.float32 else 1e-14}
    torch.testing.assert_close(fused.double(), expected, **tolerance)
    torch.testing.assert_close(explicit.double(), expected, **tolerance)
    assert [tuple(w.shape) for w in weights] == [(2, 3, 4, 5, 5)]
    torch.testing.assert_close(weights[0].sum(-1), torch.ones(2, 3, 4, 5, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_both_routes_agree(dtype):
    def gradients(record):
        inputs = [normal(2, 3, 4, 7, 8, seed=s).to(dtype).requires_grad_() for s in range(3)]
        bias = normal(4, 7, 7, seed=4).to(dtype).requires_grad_()
        if record:
            with recording():
                out = attend(*inputs, bias=bias)
        else:
            out = nn.functional.scaled_dot_product_attention(*(t.flatten(0, 1) for t in inputs), attn_mask=bias[None])
        out.reshape(2, 3, 4, 7, 8).float().square().sum().backward()
        return [t.grad.float() for t in (*inputs, bias)]

    for ours, other in zip(gradients(True), gradients(False)):
        torch.testing.assert_close(
            ours, other, rtol=1e-5 if dtype == torch.float32 else 0.1, atol=1e-4 if dtype == torch.float32 else 0.2
        )


def test_controls_a_wrong_scale_or_mask_is_seen():
    q, k, v = (normal(2, 3, 4, 5, 8, seed=s) for s in range(3))
    allowed = masks(2, 3, 4, 5, 5)["all"]
    expected = plainly(q, k, v, scale=8**-0.5, allowed=allowed)
    for wrong in (
        attend(q, k, v, allowed=allowed, scale=1.0),
        attend(q, k, v),
        attend(q, k, v, allowed=~allowed | allowed[..., :1]),
    ):
        assert (wrong - expected).abs().max() > 1e-2


def seen_through(pattern, grid, *, padding=None, batch=2, width=12, heads=3):
    """(B, H, W, D) by the fast route, and by the definition, one dense mask over all pairs of cells."""
    torch.manual_seed(0)
    attention = Attention(width, heads).double()
    x = normal(batch, *grid, width)
    groups = pattern.gather(x, padding)
    fast = pattern.scatter(attention(groups.tokens, allowed=groups.allowed, gather_keys=groups.gather_keys), grid)
    everything = x.flatten(1, 2)[:, None]
    q, k, v = attention.qkv(everything).unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5)
    allowed = pattern.picture(grid).expand(batch, 1, 1, -1, -1)
    if padding is not None:
        allowed = allowed & ~padding.flatten(1)[:, None, None, None]
        allowed = allowed | ~allowed.any(-1, keepdim=True)
    slow = plainly(q, k, v, scale=(width // heads) ** -0.5, allowed=allowed)
    return fast, attention.proj(slow.transpose(2, 3).flatten(3))[:, 0].unflatten(1, grid)


@pytest.mark.parametrize(("pattern", "grid"), list(itertools.product(PATTERNS, GRIDS)), ids=str)
def test_the_fast_route_is_the_definition(pattern, grid):
    fast, slow = seen_through(pattern, grid)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("pattern", "grid"), list(itertools.product(PATTERNS, GRIDS[:2])), ids=str)
def test_padding_is_nobodys_key(pattern, grid):
    padding = torch.zeros(2, *grid, dtype=torch.bool)
    padding[1, grid[0] // 2 + 1 :], padding[1, :, -3:] = True, True
    fast, slow = seen_through(pattern, grid, padding=padding)
    assert torch.isfinite(fast).all()
    torch.testing.assert_close(fast[~padding], slow[~padding], rtol=0, atol=1e-13)


class Unmasked(Windows):
    """Broken on purpose: shifted windows without the mask."""

    def all_see_all(self, grid):
        return True


class Unshifted(Windows):
    """Broken on purpose: the definition is displaced, the queries are not."""

    def query_index(self, grid):
        return Windows(self.size).query_index(grid)


class Deaf(Neighborhood):
    """Broken on purpose: a halo one cell too small."""

    def key_index(self, grid):
        inner = Neighborhood(self.radius - 1, self.tile)
        return inner.key_index(grid)


@pytest.mark.parametrize("broken", [Unmasked((4, 4), (2, 2)), Unshifted((4, 4), (2, 2)), Deaf(2, tile=4)], ids=str)
def test_controls_a_broken_fast_route_is_seen(broken):
    fast, slow = seen_through(broken, (8, 8))
    assert (fast - slow).abs().max() > 1e-3


@pytest.mark.parametrize(("pattern", "grid"), list(itertools.product(PATTERNS, GRIDS)), ids=str)
def test_no_mask_exactly_where_all_see_all(pattern, grid):
    queries = pattern.query_index(grid)
    cells = queries.flatten()[queries.flatten() >= 0]
    assert sorted(cells.tolist()) == list(range(grid[0] * grid[1]))
    keys = pattern.key_index(grid)
    if keys is not None:
        assert all(len(row[row >= 0].unique()) == int((row >= 0).sum()) for row in keys)
    allowed = tables_of(pattern, grid, torch.device("cpu")).masks
    if pattern.all_see_all(grid):
        picture = pattern.picture(grid)
        assert all(picture[row][:, row].all() for row in queries)
        assert allowed is None


def test_memory_of_a_neighborhood_grows_with_the_cells():
    small, large = (tables_of(Neighborhood(2), (side, side), torch.device("cpu")) for side in (32, 64))
    assert large.key_exists.numel() == 4 * small.key_exists.numel()
    assert large.masks.numel() == small.masks.numel()  # those at the borders, and one for all the others


def test_relative_bias_against_a_loop():
    position = RelativeBias(2, (3, 4))
    _, _, bias = position(torch.zeros(1, 1, 2, 12, 4), torch.zeros(1, 1, 2, 12, 4), None)
    for q, k in itertools.product(range(12), range(12)):
        dy, dx = q // 4 - k // 4, q % 4 - k % 4
        assert torch.equal(bias[:, q, k], position.table[(dy + 2) * 7 + dx + 3])


def test_rotary_scores_depend_on_the_offset_only():
    rope = Rope2D(8).double()
    q, k = normal(1, 1, 1, 1, 8).expand(1, 1, 1, 20, 8), normal(1, 1, 1, 1, 8, seed=1).expand(1, 1, 1, 20, 8)
    q, k, bias = rope(q, k, (4, 5))
    scores = (q @ k.mT)[0, 0, 0].view(4, 5, 4, 5)
    assert bias is None
    torch.testing.assert_close(scores[1, 1, 2, 3], scores[2, 0, 3, 2])
    assert (scores[1, 1, 2, 3] - scores[1, 1, 3, 2]).abs() > 1e-3  # rows and columns are told apart
    torch.testing.assert_close(q.norm(dim=-1), normal(1, 1, 1, 1, 8).norm(dim=-1).expand(1, 1, 1, 20))


@pytest.mark.parametrize("gelu", ["none", "tanh"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_perceptron_without_gradients_is_the_same_function(gelu, precision):
    torch.manual_seed(0)
    mlp, x = MLP(16, 64, gelu=gelu), torch.randn(3, 7, 16)
    expected = mlp.double()(x.double()).float()
    mlp = mlp.bfloat16() if precision == "bfloat16" else mlp.float()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        kept = x.clone()
        out = mlp(x.bfloat16() if precision == "bfloat16" else x)
    assert torch.equal(x, kept)
    assert out.dtype == (torch.float32 if precision == "float32" else torch.bfloat16)
    tolerance = 1e-6 if precision == "float32" else 1e-2
    torch.testing.assert_close(out.float(), expected, rtol=tolerance, atol=tolerance)
    other = nn.functional.gelu(torch.tensor(1.0), approximate="tanh" if gelu == "none" else "none")
    assert other != nn.functional.gelu(torch.tensor(1.0), approximate=gelu)


def test_a_shifted_block_on_a_grid():
    block = Block(8, 2, pattern=Windows((4, 4), (2, 2)), position=RelativeBias(2, (4, 4)), layer_scale=0.1).eval()
    x = torch.randn(2, 6, 9, 8)
    assert block(x).shape == x.shape
    torch.testing.assert_close(block(x)[:1], block(x[:1]))


@torch.no_grad()
def test_tokens_that_ask_themselves_are_self_attention():
    torch.manual_seed(0)
    own, cross = Attention(12, 3), CrossAttention(12, 3)
    for part in ("weight", "bias"):
        joined = own.qkv.get_parameter(part)
        nn.init.normal_(joined)
        cross.q.get_parameter(part).copy_(joined[:12])
        cross.kv.get_parameter(part).copy_(joined[12:])
    cross.proj.load_state_dict(own.proj.state_dict())
    tokens = torch.randn(2, 5, 12)
    torch.testing.assert_close(cross(tokens, tokens), own(tokens[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    seen = torch.tensor([True, True, True, False, True]).expand(2, 1, 1, 1, 5)
    without = torch.cat([tokens[:, :3], tokens[:, 4:]], 1)
    torch.testing.assert_close(cross(tokens, tokens, seen), cross(tokens, without), rtol=1e-5, atol=1e-5)
    assert (cross(tokens, tokens, seen) - cross(tokens, tokens)).abs().max() > 1e-2  # control
