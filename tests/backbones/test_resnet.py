import pytest
import torch
import torchvision
from torch import nn

from patchform.backbones.resnet import VARIANTS, ResNet
from patchform.errors import ModelFileError, UsageError
from patchform.heads.linear import Linear
from patchform.model import build_backbone
from patchform.published.resnet import LAYOUTS, SCORES
from patchform.weights.rules import recognise

SIZES = ("18", "34", "50", "101", "152")
LAYOUT = LAYOUTS["torchvision"]


class Classifier(nn.Module):
    """Backbone and head by the names that the layouts use."""

    def __init__(self, backbone, classes=1000):
        super().__init__()
        self.backbone = backbone
        self.head = Linear(backbone.feature_info, classes=classes)

    def forward(self, images):
        return self.head(self.backbone(images))


def variant(name, **options):
    return VARIANTS[name].build(**VARIANTS[name].options, **options)


def randomise(model, seed=0):
    """Every parameter and buffer at random; a branch has less variance than its input, or 50 blocks would explode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith("num_batches_tracked"):
            tensor.fill_(3)
        elif tensor.dim() > 1:
            tensor.copy_(noise / tensor[0].numel() ** 0.5)
        elif name.endswith("weight"):
            tensor.copy_(1 + 0.2 * noise)
        else:
            tensor.copy_(0.2 * noise)


def compare(name, *, spoil=None):
    """(error of ours, error of the reference in float32), both against the reference in float64."""
    reference = getattr(torchvision.models, f"resnet{name}")(num_classes=10).eval()
    randomise(reference)
    ours = Classifier(variant(name), classes=10).eval()
    source = reference.state_dict()
    if spoil:
        spoil(source)
    filled, report = LAYOUT.load(source, ours.state_dict())
    assert len(report.of("matched")) == len(source) == len(filled)
    ours.load_state_dict(filled)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, rounded = ours(images), reference(images)
        exact = reference.double()(images.double())
    assert 0.1 < exact.std() < 1e3
    return (found - exact).abs().max(), (rounded - exact).abs().max()


@pytest.mark.parametrize("name", SIZES)
def test_same_numbers_as_torchvision(name):
    error, rounding = compare(name)
    assert error <= 10 * rounding


@pytest.mark.parametrize(("dilated", "theirs"), [(1, (False, False, True)), (2, (False, True, True))])
@torch.no_grad()
def test_dilated_stages_are_torchvisions(dilated, theirs):
    reference = torchvision.models.resnet50(num_classes=10, replace_stride_with_dilation=theirs).eval()
    randomise(reference)
    ours = Classifier(variant("50", dilated=dilated), classes=10).eval()
    ours.load_state_dict(LAYOUT.load(reference.state_dict(), ours.state_dict())[0])
    images = torch.randn(2, 3, 70, 100, generator=torch.Generator().manual_seed(1))
    found, rounded = ours(images), reference(images)
    exact = reference.double()(images.double())
    assert (found - exact).abs().max() <= 10 * (rounded - exact).abs().max()
    assert ours.backbone.strides == ((4, 8, 16, 16) if dilated == 1 else (4, 8, 8, 8))
    features = ours.backbone(images)
    assert features.maps[-1].shape[-2:] == (-(-70 // features.strides[-1]), -(-100 // features.strides[-1]))
    first = ours.backbone.stages[3][0].branch[1].conv  # control: its reach is that of the stage before
    assert first.dilation == (dilated, dilated)
    first.dilation = first.padding = (4, 4)
    assert (ours(images) - exact).abs().max() > 1000 * (rounded - exact).abs().max()


def swap_norms(source):
    for key in ("weight", "bias", "running_mean", "running_var"):
        first, second = f"layer3.0.bn1.{key}", f"layer3.1.bn1.{key}"
        source[first], source[second] = source[second].clone(), source[first].clone()


def test_control_swapped_norms_give_other_numbers():
    error, rounding = compare("18", spoil=swap_norms)
    assert error > 1000 * rounding


@pytest.mark.parametrize("name", SIZES)
def test_same_parameters_and_names_as_torchvision(name):
    with torch.device("meta"):
        reference, ours = getattr(torchvision.models, f"resnet{name}")(), Classifier(variant(name))
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in reference.parameters())
    assert recognise(LAYOUTS, reference.state_dict(), ours.state_dict()) == "torchvision"
    filled, _ = LAYOUT.load(reference.state_dict(), ours.state_dict())
    written = LAYOUT.dump(filled)
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in reference.state_dict().items()
    }


def test_layout_is_of_one_size():
    with torch.device("meta"):
        reference, ours = torchvision.models.resnet34(), Classifier(variant("18"))
    with pytest.raises(ModelFileError, match=r"layer1.2.conv1.weight has no place"):
        LAYOUT.load(reference.state_dict(), ours.state_dict())


@pytest.mark.parametrize(("stem", "first"), [("imagenet", 4), ("small", 1)])
@pytest.mark.parametrize("size", [(64, 64), (33, 70), (1, 65)])
def test_maps_are_as_declared(stem, first, size):
    backbone = variant("nano", stem=stem, in_channels=5).eval()
    features = backbone(torch.randn(2, 5, *size))
    assert backbone.strides == features.strides == (first, first * 2, first * 4, first * 8)
    for channels, stride, found in zip(backbone.channels, backbone.strides, features.maps, strict=True):
        assert found.shape == (2, channels, -(-size[0] // stride), -(-size[1] // stride))
    assert features.tokens.shape == (2, features.maps[-1][0, 0].numel(), backbone.width)
    torch.testing.assert_close(features.summary, features.maps[-1].mean((2, 3)))
    assert features.padding is None
    assert len(backbone.layers()) == 5


@torch.no_grad()
def test_what_lies_on_padding_changes_nothing():
    backbone = variant("nano").eval()
    randomise(backbone)
    images = torch.randn(3, 3, 33, 100)
    padding = torch.zeros(3, 33, 100, dtype=torch.bool)
    padding[0, :, 40:], padding[1, 20:], padding[2, :, 96:] = True, True, True
    clean = backbone(images, padding=padding)
    dirty = backbone(images.masked_fill(padding[:, None], float("nan")), padding=padding)
    for one, other in zip((*clean.maps, clean.summary), (*dirty.maps, dirty.summary)):
        assert torch.equal(one, other)
    cells = torch.tensor(
        [[[0, 0, 1, 1], [0, 0, 1, 1]], [[0, 0, 0, 0], [1, 1, 1, 1]], [[0, 0, 0, 1]] * 2], dtype=torch.bool
    )
    assert torch.equal(clean.padding, cells)  # cells of 32 pixels: the second row holds one row of pixels
    torch.testing.assert_close(clean.summary[0], clean.maps[-1][0, :, :, :2].mean((1, 2)))
    assert not torch.equal(backbone(images).summary, clean.summary)

    bare = backbone(images)
    none = backbone(images, padding=torch.zeros_like(padding))
    torch.testing.assert_close(none.summary, bare.summary)


def test_every_parameter_learns_and_dropped_paths_are_skipped():
    backbone = variant("nano", drop_path=0.9)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    backbone(images).summary.square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())
    assert [block.drop_path.rate for block in backbone.layers()] == pytest.approx([0, 0.225, 0.45, 0.675, 0.9])
    assert not torch.equal(backbone(images).summary, backbone(images).summary)
    backbone.eval()
    assert torch.equal(backbone(images).summary, backbone(images).summary)


def test_channels_last_weights_make_channels_last_maps():
    backbone = variant("nano").eval()
    images = torch.randn(2, 3, 64, 64)
    before = backbone(images).summary
    after = backbone.to(memory_format=torch.channels_last)(images)
    assert after.maps[0].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(after.summary, before, atol=1e-5, rtol=1e-4)


def test_published_rows_are_of_variants():
    assert {row.variant for row in SCORES} == set(SIZES)


@pytest.mark.parametrize("options", [{"block": "botleneck"}, {"stem": "smal"}, {"dilated": 4}])
def test_unknown_parts_are_named(options):
    with pytest.raises(UsageError, match=r"there are|3 of 4"):
        ResNet(**options)


@torch.no_grad()
@pytest.mark.parametrize("family", ["resnet", "botnet", "hybrid", "parnet"])
def test_both_memory_formats_give_the_same(family):
    torch.manual_seed(0)
    backbone = build_backbone(f"{family}/nano").eval()
    assert backbone.prefers_channels_last
    images = torch.randn(2, 3, 64, 64)
    before, after = backbone(images), backbone.to(memory_format=torch.channels_last)(images)
    torch.testing.assert_close(after.summary, before.summary, rtol=1e-4, atol=1e-5)
    assert after.maps[0].is_contiguous(memory_format=torch.channels_last)
    if family != "hybrid":  # its standardised kernels are made anew, in this format always
        assert not before.maps[0].is_contiguous(memory_format=torch.channels_last)  # control
