import pytest
import torch
from reference import OWN, Classifier, golden, randomise
from safetensors.torch import load_file
from torch import nn

from patchform.backbones.stand_alone import VARIANTS, LocalAttention, StandAlone
from patchform.layers import attention


def brute_force(local, x):
    """Equation 3, cell by cell and head by head, on a picture with a border of zeros: (H, W, D) -> (H, W, D')."""
    height, width, _ = x.shape
    span, heads, r = len(local.rows), local.heads, local.radius
    padded = nn.functional.pad(x, (0, 0, r, r, r, r))
    q, k, v = local.qkv(padded).unflatten(-1, (3, heads, -1)).unbind(2)
    place = torch.cat([local.rows[:, None].expand(-1, span, -1), local.columns.expand(span, -1, -1)], -1)
    out = torch.empty(height, width, heads, v.shape[-1])
    for row in range(height):
        for column in range(width):
            for head in range(heads):
                square = k[row : row + span, column : column + span, head] + place
                weights = (square @ q[row + r, column + r, head]).flatten().softmax(0)
                out[row, column, head] = weights @ v[row : row + span, column : column + span, head].flatten(0, 1)
    return out.flatten(2)


@torch.no_grad()
def paper(**options):
    """The layer and the tensors of the vector made from the paper's equations."""
    tensors = load_file(OWN / "sasa_paper_bruteforce.safetensors")
    local = LocalAttention(8, 12, 2, 3, **options)
    shares = [tensors[f"param.weight_{part}"].split(6) for part in ("query", "key", "value")]  # of the heads
    local.qkv.weight.copy_(torch.cat([torch.block_diag(*share) for share in shares]))
    local.rows.copy_(tensors["param.rel_row"].t())
    local.columns.copy_(tensors["param.rel_col"].t())
    return local, tensors["input"].permute(0, 2, 3, 1), tensors["output"].permute(0, 2, 3, 1)


@torch.no_grad()
@pytest.mark.parametrize("tile", [1, 2, 3, 4, 8])
def test_equals_the_equations_of_the_paper(tile):
    local, x, wanted = paper(tile=tile)
    assert (local(x) - wanted).abs().max() < 1e-6


@torch.no_grad()
def test_one_head_equals_another_implementation():
    config, tensors, parameters, rounding = golden("sasa_merhs_g1")
    local = LocalAttention(config["in_channels"], config["out_channels"], config["groups"], config["kernel_size"])
    local.qkv.weight.copy_(torch.cat([parameters[f"weight_{n}.weight"][..., 0, 0] for n in ("query", "key", "value")]))
    local.rows.copy_(parameters["relative_x"].t())  # there the first half of the channels goes with columns
    local.columns.copy_(parameters["relative_y"].t())
    turned = tensors["input"].permute(0, 3, 2, 1)
    found = local(turned).permute(0, 3, 2, 1)
    assert (found - tensors["output"]).abs().max() <= 10 * rounding["output"]


@torch.no_grad()
@pytest.mark.parametrize(("span", "heads", "size"), [(7, 2, (9, 5)), (5, 3, (4, 11)), (1, 1, (3, 3))])
def test_equals_brute_force(span, heads, size):
    torch.manual_seed(0)
    local = LocalAttention(6, 12, heads, span)
    x = torch.randn(*size, 6)
    torch.testing.assert_close(local(x[None])[0], brute_force(local, x), rtol=1e-4, atol=1e-5)


def swap_rows_and_columns(local):
    local.rows, local.columns = local.columns, local.rows


def turn_the_offsets(local):
    local.rows.data = local.rows.data.flip(0)


def other_heads(local):
    local.qkv.weight.data = local.qkv.weight.data.unflatten(0, (3, 6, 2)).transpose(1, 2).flatten(0, 2)


def a_scale(local):
    local.qkv.weight.data[:12] *= 6**-0.5


def a_wider_square(local):
    bias = local.bias
    local.bias = lambda q: bias(q).nan_to_num(neginf=0)  # what is too far is seen too


@torch.no_grad()
@pytest.mark.parametrize("change", [swap_rows_and_columns, turn_the_offsets, other_heads, a_scale, a_wider_square])
def test_control_a_fault_is_seen(change):
    local, x, wanted = paper()
    change(local)
    assert (local(x) - wanted).abs().max() > 1e-3


@torch.no_grad()
def test_control_without_zeros_around_it_is_another_function():
    local, x, wanted = paper()
    padded = nn.functional.pad(x, (0, 0, 1, 1, 1, 1), value=1.0)
    inside = local(padded)[:, 1:-1, 1:-1]
    assert (inside - wanted).abs()[:, 1:-1, 1:-1].max() < 1e-6
    assert (inside - wanted).abs().max() > 1e-2


@torch.no_grad()
def test_padding_is_like_the_border():
    torch.manual_seed(0)
    local = LocalAttention(6, 12, 3, 5)
    x = torch.randn(2, 9, 10, 6)
    padding = torch.zeros(2, 9, 10, dtype=torch.bool)
    padding[1, 5:], padding[1, :, 7:] = True, True
    alone = local(x[1:, :5, :7])
    torch.testing.assert_close(local(x, padding)[1:, :5, :7], alone, rtol=1e-5, atol=1e-5)
    assert (local(x)[1:, :5, :7] - alone).abs().max() > 1e-2  # control


@torch.no_grad()
def test_memory_grows_with_the_number_of_cells():
    local = LocalAttention(6, 12, 3, 5)
    sizes = []
    for side in (16, 32):
        with attention.recording() as weights:
            local(torch.randn(1, side, side, 6))
        sizes.append(weights[0].numel())
    assert sizes[1] == 4 * sizes[0]


def test_gradients_are_those_of_brute_force():
    torch.manual_seed(0)
    local = LocalAttention(4, 8, 2, 3).double()
    x = torch.randn(5, 6, 4, dtype=torch.double, requires_grad=True)
    seen = torch.randn(5, 6, 8, dtype=torch.double)
    wanted = [x, *local.parameters()]
    torch.set_default_dtype(torch.double)
    try:
        slow = torch.autograd.grad((brute_force(local, x) * seen).sum(), wanted)
    finally:
        torch.set_default_dtype(torch.float)
    for fast, exact in zip(torch.autograd.grad((local(x[None])[0] * seen).sum(), wanted), slow):
        torch.testing.assert_close(fast, exact)


@pytest.mark.parametrize(("name", "count"), [("26", 10_331_264), ("38", 14_173_384), ("50", 18_015_504)])
def test_the_number_of_parameters_stays(name, count):
    with torch.device("meta"):
        ours = Classifier(StandAlone(**VARIANTS[name].options), classes=1000)
    assert sum(p.numel() for p in ours.parameters()) == count


def nano(**options):
    return StandAlone(**{**VARIANTS["nano"].options, **options})


@torch.no_grad()
def test_training_leaves_the_statistics_that_evaluation_uses():
    backbone = randomise(nano(), scale=0.1).train()
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = 1.0
    images = torch.randn(16, 3, 64, 64)
    trained = backbone(images).summary
    torch.testing.assert_close(backbone.eval()(images).summary, trained, rtol=1e-2, atol=1e-2)


@torch.no_grad()
def test_no_cell_sees_further_than_its_square():
    local = randomise(LocalAttention(8, 8, 2, 3))
    x = torch.randn(1, 9, 9, 8)
    other = x.clone()
    other[:, 4, 4] += 1
    moved = (local(x) != local(other)).any(-1)[0]
    assert moved.nonzero().tolist() == [[row, column] for row in (3, 4, 5) for column in (3, 4, 5)]
