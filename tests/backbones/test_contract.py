"""What every backbone promises. A new file is tested by being there."""

import inspect

import pytest
import torch
from reference import randomise

from patchform import lookup
from patchform.backbones.base import Backbone
from patchform.geometry import grids
from patchform.model import build_backbone

FAMILIES = lookup.names("backbones")
VIDEO = {family for family in FAMILIES if build_backbone(f"{family}/nano").frames}


def nano(family, *, random=True, **options):
    backbone = build_backbone(f"{family}/nano", **options)
    return (randomise(backbone, scale=0.1) if random else backbone).eval()


def pictures(family, batch=2, size=(64, 64), seed=0):
    time = (3,) if family in VIDEO else ()
    return torch.randn(batch, *time, 3, *size, generator=torch.Generator().manual_seed(seed))


def values(features):
    return {
        **{f"map {i}": m for i, m in enumerate(features.maps)},
        "tokens": features.tokens,
        "summary": features.summary,
    }


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def test_file_holds_what_a_file_holds(family):
    module = lookup.module("backbones", family)
    assert module.__doc__
    assert {"nano"} < set(module.VARIANTS)
    published = lookup.published(family)
    for name, layout in published.layouts.items():
        assert name
        assert list(layout)
    assert {row.variant for row in published.scores} <= set(module.VARIANTS)
    assert all(row.source and row.scores for row in published.scores)
    for variant in module.VARIANTS.values():
        assert issubclass(variant.build, Backbone)
        lookup.check_options(variant.build, variant.options, of=family)
        assert "in_channels" in inspect.signature(variant.build).parameters


@pytest.mark.parametrize("size", [(64, 64), (65, 97), (37, 50), (256, 131), (199, 256)])
def test_channels_strides_and_width_are_true(family, size):
    backbone = nano(family)
    with torch.no_grad():
        features = backbone(pictures(family, size=size))
    assert features.size == size
    assert features.strides == tuple(backbone.strides) == tuple(sorted(backbone.strides))
    for map_, channels, stride in zip(features.maps, backbone.channels, backbone.strides, strict=True):
        assert map_.shape == (2, channels, *grids.cells(size, stride))
    assert features.summary.shape == (2, backbone.width)
    assert features.tokens.shape[0] == 2
    assert features.tokens.dim() == 3
    assert features.padding is None
    assert all(torch.isfinite(value).all() for value in values(features).values())


@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(family, channels):
    backbone = nano(family, in_channels=channels)
    images = pictures(family)
    picked = images.index_select(-3, torch.arange(channels) % 3)
    assert backbone(picked).summary.shape == (2, backbone.width)


def test_a_batch_equals_its_items(family):
    backbone, images = nano(family), pictures(family, batch=3, size=(48, 80))
    with torch.no_grad():
        together, alone = values(backbone(images)), [values(backbone(image[None])) for image in images]
    for name, value in together.items():
        torch.testing.assert_close(value, torch.cat([one[name] for one in alone]), rtol=1e-4, atol=1e-4)


def test_what_lies_under_padding_changes_nothing(family):
    backbone, images = nano(family), pictures(family, size=(64, 96))
    padding = torch.zeros(2, 64, 96, dtype=torch.bool)
    padding[1, 40:], padding[1, :, 50:] = True, True  # cuts cells of most strides
    other = images.clone()
    hidden = padding.view(2, *(1,) * (images.dim() - 3), 64, 96).expand_as(images)
    other[hidden] = 1e3
    with torch.no_grad():
        one, two = backbone(images, padding=padding), backbone(other, padding=padding)
        free = backbone(other)
    assert one.padding.shape == (2, *one.maps[-1].shape[-2:])
    assert one.padding[1].any()
    assert not one.padding[0].any()
    torch.testing.assert_close(one.summary, two.summary)
    for a, b, stride in zip(one.maps, two.maps, backbone.strides):
        shrunk = grids.shrink_mask(padding, stride)
        if shrunk.shape[1:] == a.shape[-2:]:
            real = ~shrunk[:, None].expand_as(a)
            torch.testing.assert_close(a[real], b[real])
    assert (free.summary[1] - one.summary[1]).abs().max() > 1e-3  # control: without the mask it does


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_picture_that_is_all_padding_harms_no_other(family, dtype):
    backbone, images = nano(family).train(), pictures(family)
    padding = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool)
    padding[1] = True
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        features = backbone(images, padding=padding)
    (features.summary.float().square().sum() + features.maps[-1].float().square().sum()).backward()
    assert features.summary.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in backbone.parameters())


def test_every_parameter_gets_a_gradient(family):
    backbone = nano(family).train()
    torch.manual_seed(0)
    sum((value * torch.randn_like(value)).sum() for value in values(backbone(pictures(family))).values()).backward()
    missing = [name for name, p in backbone.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert missing == []


def test_layers_are_the_backbone(family):
    backbone = nano(family)
    held = {id(p) for layer in backbone.layers() for p in layer.parameters()}
    assert len(backbone.layers()) > 1
    assert len(held) > 0.5 * len(list(backbone.parameters()))


def test_drop_path_is_for_training_only(family):
    backbone, images = nano(family, drop_path=0.5), pictures(family, batch=8)
    still = nano(family)
    with torch.no_grad():
        assert torch.equal(backbone(images).summary, still(images).summary)
        backbone.train()
        torch.manual_seed(0)
        assert not torch.equal(backbone(images).summary, backbone(images).summary)


def test_state_dict_goes_round(family, tmp_path):
    from safetensors.torch import load_file, save_file

    backbone, images = nano(family), pictures(family)
    save_file(backbone.state_dict(), tmp_path / "backbone.safetensors")
    again = nano(family, random=False)
    again.load_state_dict(load_file(tmp_path / "backbone.safetensors"))
    with torch.no_grad():
        assert torch.equal(backbone(images).summary, again(images).summary)


def test_bfloat16_is_close(family):
    backbone, images = nano(family, random=False), pictures(family)
    with torch.no_grad():
        exact = values(backbone(images))
        with torch.autocast("cpu", torch.bfloat16):
            rough = values(backbone(images))
    for name, value in exact.items():
        gap = (rough[name].float() - value).norm() / value.norm()
        assert gap < 0.05, name


@pytest.mark.slow
def test_compiles_as_one_graph_with_padding(family):
    """As far as the lowest operations, one by one: what remains for a compiler is to join them to kernels."""
    torch.compiler.reset()
    backbone, images = nano(family), pictures(family)
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager_decomp_partition")
    padding = torch.zeros(2, 64, 64, dtype=torch.bool)
    padding[1, 40:] = True
    with torch.no_grad():
        one, two = compiled(images, padding=padding), backbone(images, padding=padding)
    torch.testing.assert_close(one.summary, two.summary, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["resnet", "swin", "vit", "volo"])
def test_kernels_keep_the_function(family):
    """One of each kind of mixing: convolution, windows, all tokens, unfolding."""
    torch.compiler.reset()
    backbone, images = nano(family), pictures(family)
    compiled = torch.compile(backbone, fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images).summary, backbone(images).summary, rtol=1e-4, atol=1e-4)
