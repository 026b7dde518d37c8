import copy

import pytest
import torch
from reference import FOLDER, Classifier, full_size, golden, load, randomise
from safetensors.torch import load_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.parnet import VARIANTS, Fusion, ParNet, ParNetBlock
from patchform.errors import ModelFileError, UsageError
from patchform.published.parnet import LAYOUTS
from patchform.weights.rules import recognise

AUTHORS = LAYOUTS["authors"]
ACTIVATIONS = {"parnet": "silu", "parnet_relu": "relu"}
SMALL = {"widths": (8, 16, 24, 40), "depths": (1, 2, 1)}
"""The size of the golden vectors."""


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def classifier(**options):
    return Classifier(ParNet(**SMALL, **options)).eval()


def nano(**options):
    return ParNet(**VARIANTS["nano"].options, **options)


# ------------------------------------------------------------------------------------------------------ golden vectors


@torch.no_grad()
def errors(name, change=None, **options):
    """Largest error of every part and of the output, over what is allowed."""
    config, tensors, parameters, rounding = golden(name)
    assert tuple(config["planes"]) == SMALL["widths"]
    assert tuple(blocks - 1 for blocks in config["num_blocks"][:3]) == SMALL["depths"]
    ours = classifier(**{"activation": ACTIVATIONS[name], **options})
    load(ours, AUTHORS, parameters)
    backbone = ours.backbone
    if change:
        change(backbone)
    seen = {}
    parts = {f"init{i}": stem[-1] for i, stem in enumerate(backbone.stems)}
    parts |= {f"stream{i}": stream[-1] for i, stream in enumerate(backbone.streams)}
    parts |= {"down0": backbone.down, "down1": backbone.fusions[0], "combine": backbone.last}
    for key, part in parts.items():
        part.register_forward_hook(lambda module, x, y, key=key: seen.update({key: y}))
    seen["output"] = ours(tensors["input"])
    assert seen.keys() == rounding.keys()
    return {key: ((seen[key] - tensors[key]).abs().max() / (10 * rounding[key])).item() for key in rounding}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_equals_the_authors_code(name):
    assert max(errors(name).values()) <= 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_fused_equals_the_authors_code(name):
    assert max(errors(name, ParNet.fuse).values()) <= 1


@torch.no_grad()
def test_fused_weights_equal_the_authors_and_fit_the_fused_model():
    _, tensors, parameters, _ = golden("parnet")
    path = FOLDER / "golden" / "parnet_fused_params.safetensors"
    if not path.exists():
        pytest.skip("no fused weights (set PATCHFORM_REFERENCE)")
    source = load_file(path)
    ours = classifier()
    load(ours, AUTHORS, parameters)
    ours.backbone.fuse()
    fitting = classifier(fused=True)
    load(fitting, AUTHORS, source)
    assert fitting.state_dict().keys() == ours.state_dict().keys()
    for name, tensor in fitting.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    torch.testing.assert_close(fitting(tensors["input"]), tensors["output"], rtol=1e-5, atol=1e-5)
    written = AUTHORS.dump(fitting.state_dict())
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)


def swap_fusion_norms(backbone):
    norms = backbone.fusions[1].norms
    norms[0], norms[1] = norms[1], norms[0]


def swap_convolution_norms(backbone):
    block = backbone.streams[1][0]
    block.spatial.norm, block.pointwise.norm = block.pointwise.norm, block.spatial.norm


def swap_the_fused(backbone):
    forward = backbone.fusions[0].forward
    backbone.fusions[0].forward = lambda one, other, padding=None: forward(other, one, padding)


def half_a_gate(backbone):
    backbone.last.gate.weight.mul_(0.5)


@pytest.mark.parametrize("change", [swap_fusion_norms, swap_convolution_norms, swap_the_fused, half_a_gate])
def test_control_a_fault_is_seen(change):
    assert errors("parnet", change)["output"] > 10  # 100 times the rounding


def test_control_the_shuffle_and_the_activation_are_seen():
    def plain(backbone):
        backbone.fusions[0].block.groups = 1  # of the shuffle only: the convolutions have theirs

    assert errors("parnet", plain)["output"] > 10
    assert errors("parnet", activation="relu")["output"] > 10


# --------------------------------------------------------------------------------------------------------------- fuse


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 96), (37, 50), (65, 97), (33, 35)])
def test_fused_is_the_same_function(size):
    backbone = randomise(nano(), scale=0.1).eval()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    before = backbone(images)
    fused = copy.deepcopy(backbone).fuse()
    for one, two in zip((*before.maps, before.summary), (*fused(images).maps, fused(images).summary)):
        assert (one - two).abs().max() <= 1e-5 * one.abs().max()
    double, exact = copy.deepcopy(backbone).double().fuse(), backbone.double()
    assert (double(images.double()).summary - exact(images.double()).summary).abs().max() < 1e-12


@torch.no_grad()
def test_control_the_mean_of_other_cells_is_not_the_same():
    backbone = randomise(nano(), scale=0.1).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, kernel = backbone(images).summary, backbone.down.spatial.joined()[0]
    point = backbone.fuse().down.spatial.weight - kernel
    backbone.down.spatial.weight.copy_(kernel + point.flip(2))  # the cells -1 and 0 in place of 0 and 1
    assert (backbone(images).summary - before).abs().max() > 1e-3 * before.abs().max()


def test_fusing_is_in_place_once_and_keeps_the_format():
    backbone = nano().to(memory_format=torch.channels_last)
    assert backbone.fuse() is backbone
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    assert backbone.fuse().state_dict().keys() == before.keys() == nano(fused=True).state_dict().keys()
    assert all(torch.equal(backbone.state_dict()[name], tensor) for name, tensor in before.items())
    for block in backbone.layers():
        assert block.spatial.weight.is_contiguous(memory_format=torch.channels_last)
        assert block.spatial.weight.requires_grad


def test_weights_of_one_form_do_not_fit_the_other():
    written = AUTHORS.dump(classifier().state_dict())
    with pytest.raises(ModelFileError, match="rbr_dense"):
        AUTHORS.load(written, classifier(fused=True).state_dict())


# -------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize("variant", ["s", "m", "l", "xl"])
@pytest.mark.parametrize("form", ["training form", "fused"])
def test_parameters_and_multiplications_equal_the_published_counts(variant, form):
    row = full_size("ParNet")[f"ParNet-{variant.upper()} ({form})"]
    with torch.device("meta"):
        backbone = ParNet(**VARIANTS[variant].options, fused=form == "fused")
        model, image = Classifier(backbone, classes=row["num_classes"]).eval(), torch.empty(1, 3, 224, 224)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(image)
    assert sum(p.numel() for p in model.parameters()) == row["params"]
    assert len(model.state_dict()) == row["state_dict_tensors"]
    assert counter.get_total_flops() == row["flops"]["224x224"]["flops"]


@pytest.mark.parametrize("fused", [False, True])
def test_written_back_and_recognised(fused):
    ours = randomise(classifier(fused=fused))
    written = AUTHORS.dump(ours.state_dict())
    assert recognise(LAYOUTS, written, ours.state_dict()) == "authors"
    filled, report = AUTHORS.load(written, ours.state_dict())
    assert not report.dropped
    assert all(torch.equal(tensor, ours.state_dict()[name]) for name, tensor in filled.items())


def test_written_as_the_authors_file():
    _, _, source, _ = golden("parnet")
    ours = classifier()
    load(ours, AUTHORS, source)
    written = AUTHORS.dump(ours.state_dict())
    assert written.keys() == source.keys()
    assert all(torch.equal(written[name], source[name]) for name in source)


# ---------------------------------------------------------------------------------------------------------- mechanisms


@torch.no_grad()
def test_channels_last_is_kept_to_the_end(images):
    backbone = randomise(nano(), scale=0.1).eval()
    assert backbone.prefers_channels_last
    before = backbone(images)
    after = backbone.to(memory_format=torch.channels_last)(images)
    torch.testing.assert_close(after.summary, before.summary, rtol=1e-4, atol=1e-5)
    assert all(map_.is_contiguous(memory_format=torch.channels_last) for map_ in after.maps)


@torch.no_grad()
@pytest.mark.parametrize(
    "block", [ParNetBlock(4, 4), ParNetBlock(4, 6, stride=2), Fusion(4, 4)], ids=["skip", "down", "fusion"]
)
def test_gates_do_not_see_padding(block):
    randomise(block).eval()
    x = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 8, 10, dtype=torch.bool)
    padding[1, 4:] = True
    seen = []
    gate = block.block.gate if isinstance(block, Fusion) else block.gate
    gate.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][1]))
    inputs = (x, x) if isinstance(block, Fusion) else (x,)
    block(*inputs, padding)
    block(*(each[:, :, :4] for each in inputs))
    block(*inputs)
    torch.testing.assert_close(seen[0], seen[1])
    assert (seen[0] - seen[2]).abs().max() > 1e-2  # control


def test_stochastic_depth_is_for_blocks_with_a_skip():
    backbone = ParNet(**SMALL, drop_path=0.4)
    rates = [[block.residual.rate for block in stream] for stream in backbone.streams]
    assert rates == [[0.0], [0.0, 0.4], [0.0]]
    others = [block for block in backbone.layers() if block.identity is None]
    assert {block.residual.rate for block in others} == {0.0}
    assert len(others) == 4 + 4


def test_streams_do_not_see_each_other(images):
    backbone = randomise(nano(), scale=0.1).eval()
    features = backbone(images)
    nn.init.zeros_(backbone.streams[0][0].spatial.conv.weight)
    other = backbone(images)
    same = [torch.equal(one, two) for one, two in zip(features.maps, other.maps)]
    assert same == [False, True, True, False]


def test_an_unknown_activation_is_named():
    with pytest.raises(UsageError, match="silu, relu"):
        ParNet(activation="gelu")
