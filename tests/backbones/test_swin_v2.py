import inspect
from functools import partial

import pytest
import test_contract as contract
import torch
import torchvision
from reference import Classifier, full_size, golden, load, randomise, rounding_of
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.swin import VARIANTS, ContinuousBias, PatchMerging, SwinV2
from patchform.model import build_backbone
from patchform.published.swin import LAYOUTS
from patchform.weights.rules import recognise

timm = pytest.importorskip("timm")
SIZES = {"tiny": "t", "small": "s", "base": "b", "large": "l"}


def small(image_size=64, depths=(2, 2, 2), **options):
    heads = (1, 2, 4, 8)[: len(depths)]
    return SwinV2(image_size=image_size, width=16, depths=depths, heads=heads, window=4, **options)


def timm_small(**options):
    options = {"img_size": 64, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4, **options}
    model = timm.models.SwinTransformerV2(embed_dim=16, num_classes=10, **options).eval()
    return strong(randomise(model))


@torch.no_grad()
def strong(model):
    """Scales on both sides of the highest allowed."""
    for name, tensor in model.named_parameters():
        if name.endswith("logit_scale"):
            tensor.copy_(torch.linspace(0.5, 4.2 if len(tensor) < 4 else 5, len(tensor)).view_as(tensor))
    return model


@torch.no_grad()
def difference(reference, ours, images):
    return (reference(images) - ours(images)).abs().max().item()


def pictures(height=64, width=64):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------------------------------------------------ golden vectors


def golden_errors(change=None):
    """Error of every stored tensor over what is allowed."""
    config, tensors, parameters, rounding = golden("swin_v2")
    backbone = SwinV2(
        image_size=config["img_size"],
        width=config["embed_dim"],
        depths=config["depths"],
        heads=config["num_heads"],
        window=config["window_size"],
    )
    ours = Classifier(backbone).eval()
    assert recognise(LAYOUTS, parameters, ours.state_dict()) == "microsoft"
    load(ours, LAYOUTS["microsoft"], parameters)
    if change:
        change(backbone)
    seen = {}
    watched = {
        "patch_embed": backbone.patches_norm,
        "layer0.block0": backbone.stages[0][0],
        "layer0.block1": backbone.stages[0][1],
        **{f"layer{s}": merge for s, merge in enumerate(backbone.merges)},
        "layer3": backbone.stages[3][1],
    }
    for name, module in watched.items():
        module.register_forward_hook(lambda _m, _i, output, name=name: seen.update({name: output.flatten(1, 2)}))
    with torch.no_grad():
        seen["output"] = ours(tensors["input"])
    assert set(rounding) == set(seen)
    return {name: (seen[name] - tensors[name]).abs().max().item() / (10 * error) for name, error in rounding.items()}


def test_equals_the_authors_code():
    assert max(golden_errors().values()) <= 1


def swap_norms(backbone):
    block = backbone.stages[1][0]
    block.norm1, block.norm2 = block.norm2, block.norm1


def norm_in_front(backbone):
    for block in backbone.stages[0]:
        block.attend = lambda x, grid, padding, block=block: type(block).attend(block, block.norm1(x), grid, padding)


def move_the_bias_to_the_keys(backbone):
    bias = backbone.stages[0][0].attention.qkv.qv_bias
    bias.data = bias.data.roll(len(bias) // 2)


def no_shift(backbone):
    backbone.stages[0][1].pattern = backbone.stages[0][0].pattern


def rows_for_columns(backbone):
    position = backbone.stages[0][0].attention.position
    position.offsets = position.offsets.flip(1)


FAULTS = [swap_norms, norm_in_front, move_the_bias_to_the_keys, no_shift, rows_for_columns]


@pytest.mark.parametrize("change", FAULTS, ids=lambda change: change.__name__)
def test_control_a_fault_is_seen(change):
    assert golden_errors(change)["output"] > 10


# ---------------------------------------------------------------------------------------------------- live references


@pytest.mark.parametrize("options", [{}, {"pretrained_window_sizes": (3, 6, 2)}])
def test_equals_timm(options):
    reference, images = timm_small(**options), pictures()
    ours = Classifier(small(pretrained_windows=options.get("pretrained_window_sizes"))).eval()
    assert recognise(LAYOUTS, reference.state_dict(), ours.state_dict()) == "timm"
    load(ours, LAYOUTS["timm"], reference.state_dict())
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)
    if options:  # control: offsets measured in another window
        other = Classifier(small()).eval()
        load(other, LAYOUTS["timm"], reference.state_dict())
        assert difference(reference, other, images) > 100 * rounding_of(reference, images)


def test_control_scales_are_held_below_a_hundred():
    reference, images = timm_small(), pictures()
    ours = Classifier(small()).eval()
    load(ours, LAYOUTS["timm"], reference.state_dict())
    for block in ours.backbone.layers():
        block.attention.position.HIGHEST = 1000.0
    assert difference(reference, ours, images) > 100 * rounding_of(reference, images)


@pytest.mark.parametrize("width", [128, 256])
def test_equals_torchvision(width):
    swin = torchvision.models.swin_transformer
    reference = torchvision.models.SwinTransformer(
        patch_size=[4, 4], embed_dim=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=[4, 4],
        num_classes=10, block=swin.SwinTransformerBlockV2, downsample_layer=swin.PatchMergingV2,
    ).eval()  # fmt: skip
    constants = {n: t.clone() for n, t in reference.state_dict().items() if n.endswith("relative_coords_table")}
    strong(randomise(reference))  # the biases of the keys too: they must not matter
    reference.load_state_dict({**reference.state_dict(), **constants})
    ours = Classifier(small(128, (2, 2, 2, 2))).eval()
    load(ours, LAYOUTS["torchvision_v2"], reference.state_dict())
    images = pictures(128, width)
    assert difference(reference, ours, images) <= 10 * rounding_of(reference, images)


@pytest.mark.parametrize("layout", [LAYOUTS["microsoft"], LAYOUTS["timm"], LAYOUTS["torchvision_v2"]])
def test_written_back_and_recognised(layout):
    ours = randomise(Classifier(small()))
    written = layout.dump(ours.state_dict(), sizes={"patch": 4, "channels": 3})
    assert layout is LAYOUTS["torchvision_v2"] or LAYOUTS[recognise(LAYOUTS, written, ours.state_dict())] is layout
    filled, _ = layout.load(written, ours.state_dict())
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


@pytest.mark.parametrize("reference", ["swin_v2_t", "swinv2_tiny_window8_256", "swinv2_base_window12to16_192to256"])
def test_layouts_know_all_tensors_of_the_published_models(reference):
    theirs_in_torchvision, row = reference == "swin_v2_t", "v2_b_w12to16" if "base" in reference else "v2_t_w8"
    with torch.device("meta"):
        theirs = torchvision.models.swin_v2_t() if theirs_in_torchvision else timm.create_model(reference)
        ours = Classifier(SwinV2(image_size=256, **VARIANTS[row].options), classes=1000)
    layout = LAYOUTS["torchvision_v2"] if theirs_in_torchvision else LAYOUTS["timm"]
    loaded, _ = layout.load(theirs.state_dict(), ours.state_dict(), sizes={"patch": 4, "channels": 3})
    written = layout.dump(loaded, sizes={"patch": 4, "channels": 3})
    shapes = {n: t.shape for n, t in theirs.state_dict().items() if not n.endswith(("position_index", "coords_table"))}
    assert {name: tensor.shape for name, tensor in written.items()} == shapes


# -------------------------------------------------------------------------------------------------------------- sizes


def published_rows():
    for name, row in full_size("Swin v2").items():
        _, size, window, *_ = name.partition(" ")[0].split("_")
        yield f"v2_{SIZES[size]}_w{'12to' if 'from 12' in name else ''}{window.removeprefix('window')}", row


def on_meta(key, row):
    variant = VARIANTS[key]
    assert variant.image_size == row["input"][1]
    with torch.device("meta"):
        return Classifier(variant.build(image_size=variant.image_size, **variant.options), classes=1000).eval()


def test_parameters_equal_the_published_counts():
    rows = dict(published_rows())
    assert set(rows) == {name for name in VARIANTS if name.startswith("v2_")} - {"v2_nano"}
    for key, row in rows.items():
        assert sum(p.numel() for p in on_meta(key, row).parameters()) == row["params"], key


@pytest.mark.slow
def test_multiplications_equal_the_published_counts():
    for key, row in published_rows():
        model = on_meta(key, row)
        with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *row["input"]))
        (counted,) = (flops["flops"] for flops in row["flops"].values())
        assert counter.get_total_flops() == pytest.approx(counted, rel=1e-3), key


# -------------------------------------------------------------------------------------------------- bias that is kept


@torch.no_grad()
def test_the_bias_is_worked_out_once_and_never_stale():
    position = randomise(ContinuousBias(2, (4, 4), (4, 4))).eval()
    other = randomise(ContinuousBias(2, (4, 4), (4, 4)), seed=1)
    calls, bias = [], partial(position.bias, torch.float)
    position.fc1.register_forward_hook(lambda *_: calls.append(1))
    assert bias() is bias()
    assert len(calls) == 1

    def step():
        with torch.enable_grad():
            bias().square().sum().backward()
        torch.optim.SGD(position.parameters(), lr=0.1).step()

    for change in (
        step,
        lambda: position.load_state_dict(other.state_dict()),
        lambda: position.fc2.weight.mul_(2),
        lambda: setattr(position.fc1.weight, "data", position.fc1.weight * 3),
        lambda: position.bfloat16().float(),
    ):
        before = bias()
        change()
        assert torch.equal(bias(), position.compute())
        assert not torch.equal(bias(), before)
    position.fc2.weight.data.mul_(2)  # not counted by torch, but a change of mode is enough
    position.train().eval()
    assert torch.equal(bias(), position.compute())
    assert torch.equal(position.bias(torch.bfloat16), position.compute().bfloat16())
    assert bias().dtype == torch.float
    with torch.enable_grad():
        assert bias().requires_grad
    with torch.inference_mode():
        assert ContinuousBias(2, (4, 4), (4, 4)).bias(torch.float).shape == (
            2,
            16,
            16,
        )  # its parameters have no versions
        position.train().eval()
        bias()
    with torch.enable_grad():  # what inference mode left behind does not reach training
        bias().sum().backward()


def test_tokens_of_zeros_have_finite_gradients():
    position = ContinuousBias(2, (2, 2), (2, 2))
    q, k = (torch.zeros(1, 1, 2, 4, 3, requires_grad=True) for _ in range(2))
    found = position(q, k, None)
    assert found[0].abs().max() == found[1].abs().max() == 0
    (found[0].sum() + found[1].sum()).backward()
    assert max(x.grad.abs().max() for x in (q, k)) < 100


# ----------------------------------------------------------------------------------------------------------- contract


def v2_nano(family, *, random=True, **options):
    backbone = build_backbone("swin/v2_nano", **options)
    return (randomise(backbone, scale=0.1) if random else backbone).eval()


NOT_HERE = ("file", "kernels")
CHECKS = [
    check
    for name, check in vars(contract).items()
    if name.startswith("test_") and not any(word in name for word in NOT_HERE)
]


@pytest.mark.parametrize("check", [check for check in CHECKS if not getattr(check, "pytestmark", [])])
def test_keeps_the_contract_of_backbones(check, monkeypatch, tmp_path):
    keep(check, monkeypatch, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("check", [check for check in CHECKS if getattr(check, "pytestmark", [])])
def test_keeps_the_long_contract_of_backbones(check, monkeypatch, tmp_path):
    keep(check, monkeypatch, tmp_path)


def keep(check, monkeypatch, tmp_path):
    monkeypatch.setattr(contract, "nano", v2_nano)
    given = {"family": "swin", "tmp_path": tmp_path, "size": (37, 50), "channels": 4, "dtype": torch.bfloat16}
    check(**{name: given[name] for name in inspect.signature(check).parameters})


def test_a_block_starts_as_nothing_and_learns():
    torch.manual_seed(0)
    backbone = build_backbone("swin/v2_nano")
    x = torch.randn(2, 8, 8, 16)
    assert torch.equal(backbone.stages[0][1](x), x)
    optimizer, images = torch.optim.AdamW(backbone.parameters(), lr=1e-2), torch.randn(4, 3, 32, 32)
    wanted = torch.randn(4, backbone.width)
    losses = []
    for _ in range(15):
        losses.append(loss := (backbone(images).summary - wanted).square().mean())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.7 * losses[0]
    assert backbone.stages[0][1].attention.qkv.qv_bias.abs().max() > 0
    assert isinstance(backbone.merges[0], PatchMerging)
