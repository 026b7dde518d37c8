"""What goes into any backbone, as a library has it: refused in words, differentiated picture by picture."""

import warnings

import pytest
import torch
from torch.func import functional_call, grad, vmap

import patchform as pf
from patchform import lookup
from patchform.errors import UsageError
from patchform.records import Batch

NANO = [
    f"{family}/{variant}"
    for family in lookup.names("backbones")
    for variant in lookup.module("backbones", family).VARIANTS
    if "nano" in variant
]


def images(backbone, *, batch=2, channels=3, side=32, seed=0):
    clip = () if backbone.frames is None else (3,)
    return torch.rand(batch, *clip, channels, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NANO)
def test_images_that_do_not_suit_are_refused_in_words(name):
    for channels in (3, 5):
        with torch.device("meta"):
            backbone = pf.build_backbone(name, in_channels=channels)
        shown = images(backbone, channels=4)
        with pytest.raises(UsageError, match=rf"images of 4 channels for a backbone of {channels}.*in_channels=4"):
            backbone(shown)
        with pytest.raises(UsageError, match=r"axes.*add an axis for the batch"):
            backbone(shown[0])
        with pytest.raises(UsageError, match="axes"):
            backbone(shown[None])
        with pytest.raises(UsageError, match=r"torch\.uint8.*floating point"):
            backbone(images(backbone, channels=channels).byte())


def test_a_model_refuses_other_channels_before_it_normalises():
    model = pf.build_model("classification", backbone="vit/nano", head="linear", classes=["a", "b"])
    for shape in ((2, 4, 32, 32), (2, 1, 32, 32), (2, 32, 32, 3), (32, 32)):
        with pytest.raises(UsageError, match="for a model of 3 channels"):
            model.normalise(torch.zeros(shape, dtype=torch.uint8))
    batch = Batch(torch.rand(2, 3, 32, 32), (), ("", ""), ((32, 32),) * 2)
    assert len(model.eval().predict(batch)) == 2  # control


@pytest.mark.parametrize("name", NANO)
def test_gradients_of_each_picture_by_vmap_are_those_of_the_picture_alone(name):
    torch.manual_seed(0)
    backbone = pf.build_backbone(name).eval()
    parameters = {key: value.detach() for key, value in backbone.named_parameters()}
    buffers = dict(backbone.named_buffers())
    shown = images(backbone, side=lookup.backbone(name)[1].image_size)

    def score(weights, image):
        features = functional_call(backbone, (weights, buffers), (image[None],))
        return sum(map_.square().mean() for map_ in features.maps) + features.summary.square().mean()

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")  # where torch has no rule for batches
        together = vmap(grad(score), in_dims=(None, 0))(parameters, shown)
    for number, image in enumerate(shown):
        alone = grad(score)(parameters, image)
        largest = max(gradient.abs().max() for gradient in alone.values())
        for key, gradient in alone.items():
            torch.testing.assert_close(together[key][number], gradient, rtol=0, atol=2e-4 * float(largest), msg=key)
    assert any(not torch.allclose(one, other) for one, other in together.values())  # control: pictures differ


@pytest.mark.parametrize("family", ["vit", "parallel_vit", "sparse", "vit_det"])
def test_maps_come_from_blocks_that_are_there(family):
    shown = torch.rand(1, 3, 32, 32)
    for numbers in ((1,), (2,), (1, 2), [1, 2], None):
        backbone = pf.build_backbone(f"{family}/nano", depth=2, maps_from=numbers)
        assert len(backbone.channels) == len(backbone.strides) == len(backbone(shown).maps) == len(numbers or (2,))
    for numbers in ((0,), (3,), (-1,), (2, 1), (1, 1), (0, 1), (1, 5), ()):
        with pytest.raises(UsageError, match=r"maps_from is .*name blocks from 1 to 2, each once, in ascending order"):
            pf.build_backbone(f"{family}/nano", depth=2, maps_from=numbers)
