"""Whole pictures, windows and scales give the answers that they must."""

import pytest
import torch
from reference import randomise
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from patchform.backbones.base import Backbone
from patchform.errors import UsageError
from patchform.heads.base import Head
from patchform.inference import MultiScale, SlidingWindow, starts
from patchform.model import Model, build_model
from patchform.records import Batch, Features, Preprocessing, Regions


class Pixels(Backbone):
    """A backbone and a head of local support: every pixel by itself."""

    strides, channels, width = (1,), (3,), 3

    def layers(self):
        return []

    def forward(self, images, *, padding=None):
        return Features((images,), (1,), tuple(images.shape[-2:]), padding=padding)


class Colours(Head):
    tasks = ("semantic_segmentation",)

    def __init__(self, classes=4):
        super().__init__()
        self.classifier = nn.Conv2d(3, classes, 1)

    def forward(self, features, targets=None):
        return self.classifier(features.maps[0]), features.padding

    def decode(self, raw, sizes):
        logits, padding = raw
        found = []
        for number, (map_, size) in enumerate(zip(logits, sizes)):
            if padding is not None:
                real = ~padding[number]
                map_ = map_[:, : int(real.any(1).sum()), : int(real.any(0).sum())]
            scores = nn.functional.interpolate(map_[None], size=size, mode="bilinear")[0].softmax(0)
            found.append(Regions(scores.argmax(0), scores))
        return found


def local():
    model = Model(Pixels(), Colours(), classes=tuple("abcd"), preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
    return randomise(model, scale=3.0).eval()


def same_classes(found, whole):
    """Whether classes are equal but where the two best are nearly equal: rounding differs with the batch's shape."""
    sure = whole.scores.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-5
    return sure.float().mean() > 0.999 and torch.equal(found.classes[sure], whole.classes[sure])


def pictures(*size, count=2, seed=0):
    images = torch.randint(256, (count, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return Batch(images, (), ("",) * count, (size,) * count)


@pytest.mark.parametrize("size", [(40, 70), (70, 40), (33, 33), (16, 90), (10, 12)])
@pytest.mark.parametrize(("window", "stride"), [((16, 16), (16, 16)), ((16, 24), (10, 7)), ((16, 16), (5, 16))])
def test_windows_of_a_local_model_are_the_whole_picture(size, window, stride):
    model, batch = local(), pictures(*size)
    wanted = model.predict(batch)
    for at_once in (1, 3):
        for found, whole in zip(SlidingWindow(window, stride, at_once)(model, batch), wanted):
            assert found.scores is None
            assert same_classes(found, whole)


def test_overlapping_windows_are_averaged():
    """A global model: against a plain definition over all windows."""
    model = randomise(
        build_model(
            "semantic_segmentation",
            backbone="vit/nano",
            head="setr",
            classes=tuple("abc"),
            preprocessing=Preprocessing(size=(32, 32)),
        )
    ).eval()
    batch = pictures(50, 80, count=1)
    total, seen = torch.zeros(3, 50, 80), torch.zeros(50, 80)
    for top in (0, 12, 18):
        for left in (0, 20, 40, 48):
            part = batch._replace(images=batch.images[..., top : top + 32, left : left + 32], sizes=((32, 32),))
            total[:, top : top + 32, left : left + 32] += model.predict(part)[0].scores
            seen[top : top + 32, left : left + 32] += 1
    wanted = (total / seen).argmax(0)
    (found,) = SlidingWindow((32, 32), (12, 20))(model, batch)
    assert (found.classes == wanted).float().mean() > 0.999
    (whole,) = model.predict(batch)
    assert (whole.classes == wanted).float().mean() < 0.99  # control: the whole is another question


def test_a_picture_in_one_window_is_the_whole():
    model = randomise(
        build_model("semantic_segmentation", backbone="vit/nano", head="setr", classes=tuple("abc")), seed=2
    ).eval()
    batch = pictures(48, 40)
    for found, whole in zip(SlidingWindow((64, 64), (32, 32))(model, batch), model.predict(batch)):
        assert same_classes(found, whole)


def test_a_margin_as_wide_as_the_model_looks_gives_the_whole():
    """A backbone of convolutions that look some 20 pixels far, in cells of 8."""
    torch.manual_seed(0)
    model = build_model(
        "semantic_segmentation",
        backbone="resnet/nano",
        head="setr",
        classes=tuple("abcd"),
        backbone_options={"depths": (1, 1), "widths": (4, 8)},
        head_options={"channels_inside": 8},
    )
    model, batch = randomise(model, scale=1.0).eval(), pictures(144, 208, count=1)
    (whole,) = model.predict(batch)
    sure = whole.scores.topk(2, 0).values.diff(dim=0)[0].abs() > 1e-4
    assert sure.float().mean() > 0.99
    (found,) = SlidingWindow((96, 96), (48, 48), margin=24)(model, batch)
    assert torch.equal(found.classes[sure], whole.classes[sure])
    for margin, start in ((0, 48), (8, 48), (24, 44)):  # controls: too narrow; windows that begin within a cell
        (other,) = SlidingWindow((96, 96), (start, start), margin=margin)(model, batch)
        assert not torch.equal(other.classes[sure], whole.classes[sure])
    with pytest.raises(UsageError, match="margins of 24"):
        SlidingWindow((96, 96), (56, 56), margin=24)(model, batch)


def test_padding_and_resizing_are_undone():
    model, batch = local(), pictures(24, 36)
    alone = [model.predict(batch._replace(images=batch.images[i : i + 1], sizes=((24, 36),)))[0] for i in (0, 1)]
    padded = torch.zeros(2, 3, 30, 50, dtype=torch.uint8)
    padded[..., :24, :36] = batch.images
    hidden = torch.ones(2, 30, 50, dtype=torch.bool)
    hidden[:, :24, :36] = False
    given = batch._replace(images=padded, padding=hidden)
    for way in (SlidingWindow((16, 16), (8, 8)), MultiScale((1.0,))):
        for found, wanted in zip(way(model, given), alone):
            assert same_classes(found, wanted)
    (large,) = SlidingWindow((16, 16), (8, 8))(model, batch._replace(images=batch.images[:1], sizes=((48, 72),)))
    assert torch.equal(large.classes[::2, ::2], alone[0].classes)


def test_scales_and_mirrors_are_averaged():
    model, batch = local(), pictures(16, 24)
    one = MultiScale((1.0,), mirrored=True)(model, batch)
    for found, whole in zip(one, model.predict(batch)):  # of a local model a mirror image says the same
        torch.testing.assert_close(found.scores, whole.scores)
    both = MultiScale((1.0, 2.0), mirrored=False)(model, batch)
    parts = [MultiScale((scale,), mirrored=False)(model, batch) for scale in (1.0, 2.0)]
    for found, first, second in zip(both, *parts):
        torch.testing.assert_close(found.scores, (first.scores + second.scores) / 2)
    assert not torch.allclose(parts[0][0].scores, parts[1][0].scores, atol=1e-3)


class Largest(TorchDispatchMode):
    """Elements of the largest floating-point tensor that is made within."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        made = call(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.is_floating_point():
            self.elements = max(self.elements, made.untyped_storage().nbytes() // made.element_size())
        return made


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_held_does_not_grow_with_the_length(turned):
    model, held, whole = local(), [], []
    for length in (64, 640):
        batch = pictures(*((48, length) if turned else (length, 48)), count=1)
        for found, infer in ((held, SlidingWindow((32, 32), (16, 16))), (whole, type(model).predict)):
            with Largest() as largest:
                infer(model, batch)
            found.append(largest.elements)
    assert held[0] == held[1]
    assert whole[1] == 10 * whole[0]  # control: at once it does


def test_windows_cover_everything():
    assert starts(10, 4, 4) == [0, 4, 6]
    assert starts(8, 4, 4) == [0, 4]
    assert starts(4, 4, 4) == [0]
    with pytest.raises(UsageError, match="does not cover"):
        SlidingWindow((8, 8), (9, 8))(local(), pictures(8, 8))
    classifier = build_model("classification", backbone="vit/nano", head="linear", classes=("a", "b"))
    with pytest.raises(UsageError, match="every pixel"):
        SlidingWindow((8, 8), (8, 8))(classifier, pictures(8, 8))
