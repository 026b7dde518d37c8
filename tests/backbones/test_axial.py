import pytest
import torch
from reference import Classifier, full_size, golden, load, randomise
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.axial import VARIANTS, AxialAttention, AxialResNet
from patchform.published.axial import _ATTENTION, LAYOUTS
from patchform.weights.rules import recognise


def attention_error(name, change=None):
    """Error of one attention over what is allowed."""
    config, tensors, parameters, rounding = golden(f"axial_attention_{name}")
    ours = AxialAttention(config["out_planes"], config["groups"], config["kernel_size"]).eval()
    load(ours, _ATTENTION, parameters)
    if change:
        change(ours)
    x = tensors["input"].permute(0, 2, 3, 1)
    with torch.no_grad():
        out = ours(x).permute(0, 3, 1, 2) if config["width"] else ours(x.transpose(1, 2)).permute(0, 3, 2, 1)
    out = nn.functional.avg_pool2d(out, config["stride"])
    return (out - tensors["output"]).abs().max().item() / (10 * rounding["output"])


@pytest.mark.parametrize("name", ["height", "width"])
def test_attention_equals_the_authors_code(name):
    assert attention_error(name) <= 1


def turn_the_offsets(attention):
    attention.relative.data = attention.relative.data.flip(1)


def swap_queries_and_keys(attention):
    c = attention.parts[0]
    attention.relative.data = attention.relative.data[[*range(c, 2 * c), *range(c), *range(2 * c, 4 * c)]]


def values_apart(attention):
    """The norm's channels in two halves, where they are pairs."""
    for tensor in (*attention.out_norm.parameters(), *attention.out_norm.buffers()):
        if tensor.dim():
            tensor.data = tensor.data.unflatten(0, (-1, 2)).t().flatten()


def no_norm_of_scores(attention):
    attention.score_norm = nn.BatchNorm2d(attention.score_norm.num_features).eval()


def learned_scale(attention):
    attention.qkv.norm.weight.data[: attention.parts[0]] *= attention.parts[0] ** -0.5


FAULTS = [turn_the_offsets, swap_queries_and_keys, values_apart, no_norm_of_scores, learned_scale]


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_control_a_fault_is_seen(change):
    assert attention_error("height", change) > 100
    assert attention_error("width", change) > 100


def test_network_equals_the_authors_code():
    config, tensors, parameters, rounding = golden("axial_net_224")
    backbone = AxialResNet(width=int(64 * config["s"]), depths=config["layers"], heads=config["groups"])
    ours = Classifier(backbone).eval()
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "axial_deeplab"
    report = load(ours, LAYOUTS["axial_deeplab"], parameters)
    assert {drop.name.rpartition(".")[2] for drop in report.dropped} == {"flatten_index"}
    with torch.no_grad():
        features = backbone(tensors["input"])
        seen = {f"layer{number}": found for number, found in enumerate(features.maps, start=1)}
        seen["output"] = ours.head(features)
    assert set(rounding) == set(seen)
    for name, error in rounding.items():
        assert (seen[name] - tensors[name]).abs().max().item() <= 10 * error, name


def nano(**options):
    row = VARIANTS["nano"]
    return AxialResNet(image_size=row.image_size, **row.options, **options)


def test_written_back_and_recognised():
    ours = randomise(Classifier(nano()))
    written = LAYOUTS["axial_deeplab"].dump(ours.state_dict())
    assert recognise(LAYOUTS, written, ours.state_dict()) == "axial_deeplab"
    assert written["layer1.0.hight_block.qkv_transform.weight"].shape == (32, 16, 1)
    filled, _ = LAYOUTS["axial_deeplab"].load(written, ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "nano"])
def test_parameters_and_multiplications_equal_the_published_counts(name):
    row = full_size("Axial-ResNet")[f"axial{name}"]
    with torch.device("meta"):
        ours = Classifier(AxialResNet(**VARIANTS[name].options), classes=1000).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            ours(torch.empty(1, *row["input"]))
    assert sum(p.numel() for p in ours.parameters()) == row["params"]
    (counted,) = (flops["flops"] for flops in row["flops"].values())
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.001)


def brute_force(attention, x):
    """Equation 4, pair by pair, with the norms as they are in training: (L, D) -> (L, D)."""
    length, heads, (half, _, whole) = len(x), attention.heads, attention.parts
    qkv = attention.qkv.linear(x)
    qkv = (qkv - qkv.mean(0)) / (qkv.var(0, correction=0) + 1e-5).sqrt()
    kinds, r = torch.zeros(3, heads, length, length), attention.relative
    for h in range(heads):
        q, k, _ = qkv[:, h * 2 * whole : (h + 1) * 2 * whole].split([half, half, whole], 1)
        for i in range(length):
            for j in range(length):
                kinds[0, h, i, j] = q[i] @ k[j]
                kinds[1, h, i, j] = q[i] @ r[:half, i - j + length - 1]
                kinds[2, h, i, j] = k[j] @ r[half : 2 * half, j - i + length - 1]
    norm = (kinds.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    weights = ((kinds - kinds.mean((2, 3), keepdim=True)) / norm).sum(0).softmax(-1)
    out = torch.zeros(2, length, heads * whole)
    for h in range(heads):
        v = qkv[:, h * 2 * whole + 2 * half : (h + 1) * 2 * whole]
        for i in range(length):
            for j in range(length):
                out[0, i, h * whole : (h + 1) * whole] += weights[h, i, j] * v[j]
                out[1, i, h * whole : (h + 1) * whole] += weights[h, i, j] * r[2 * half :, i - j + length - 1]
    norm = (out.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    return ((out - out.mean(1, keepdim=True)) / norm).sum(0)


@torch.no_grad()
def test_training_has_the_statistics_of_the_batch():
    torch.manual_seed(0)
    attention = AxialAttention(8, 2, 5).train()
    x = torch.randn(5, 8)
    torch.testing.assert_close(attention(x[None, None])[0, 0], brute_force(attention, x), rtol=1e-4, atol=1e-4)
    for norm in (attention.qkv.norm, attention.score_norm, attention.out_norm):
        norm.momentum = 1.0
    lines = torch.randn(400, 3, 5, 8)
    trained = attention(lines)  # once with the statistics of the batch, once with those that it left behind
    torch.testing.assert_close(attention.eval()(lines), trained, rtol=1e-3, atol=1e-3)


@torch.no_grad()
def test_tables_follow_the_axis():
    attention = AxialAttention(8, 2, 4)
    nn.init.constant_(attention.relative, 0.5)
    assert torch.equal(attention.offsets(4), torch.full((8, 4, 4), 0.5))
    torch.testing.assert_close(attention.offsets(9), torch.full((8, 9, 9), 0.5))
    attention.relative.data = torch.arange(-3.0, 4).expand(8, 7)
    assert attention.offsets(4)[0].tolist() == [[i - j for j in range(4)] for i in range(4)]  # query - key
    grown = attention.offsets(8)[0]
    assert torch.equal(grown.diagonal(), torch.zeros(8))
    assert (grown[1:, 0] > grown[:-1, 0]).all()


@torch.no_grad()
def test_a_line_looks_only_at_itself():
    backbone = randomise(nano()).eval()
    attention = backbone.stages[0][0].width
    x = torch.randn(1, 8, 8, 16)
    other = x.clone()
    other[:, 3] += 1
    moved = (attention(x) != attention(other)).any(-1)[0]
    assert moved.any(1).tolist() == [row == 3 for row in range(8)]
