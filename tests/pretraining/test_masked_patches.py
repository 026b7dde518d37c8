"""Masked patches: what is corrupted and how often, and the targets by their plain definition."""

import pytest
import torch
from losses import means
from reference import randomise
from torch.nn import functional as F

from patchform.errors import UsageError
from patchform.model import build_model
from patchform.pretraining.base import random_mask
from patchform.pretraining.masked_patches import corrupt
from patchform.records import Batch, Preprocessing


def method(target="mean_colour", *, backbone="vit/nano", channels=3, **options):
    torch.manual_seed(0)
    return build_model(
        "pretraining",
        backbone=backbone,
        head="masked_patches",
        classes=(),
        preprocessing=Preprocessing(size=(32, 32), channels=channels, mean=(0.4,), std=(0.3,)),
        head_options={"target": target, **options},
    ).eval()


def batch_of(images):
    return Batch(images, (), ("",) * len(images), ((32, 32),) * len(images))


def test_half_is_corrupted_and_eight_one_one_in_ten_of_it_are_masked_swapped_and_left():
    """Each patch holds its own number, so what became of it can be read off."""
    torch.manual_seed(0)
    pictures, count = 400, 50
    patches = torch.arange(float(pictures * count)).view(pictures, count, 1)
    mask = random_mask(torch.rand(pictures, count), 0.5).mask
    found = corrupt(patches, mask, torch.rand(pictures, count), torch.rand(pictures, count), torch.tensor([-1.0]))
    masked, kept = (found == -1)[..., 0], (found == patches)[..., 0]
    swapped = ~masked & ~kept
    assert torch.equal(mask.sum(1), torch.full((pictures,), 25))
    assert kept[~mask].all()
    number = int(mask.sum())
    for share, due in ((masked.sum() / number, 0.8), (swapped.sum() / number, 0.1)):
        assert abs(share - due) < 5 * (due * (1 - due) / number) ** 0.5
    assert torch.equal((found[swapped] / count).floor(), (patches[swapped] / count).floor())  # of the same picture
    others = (found - patches).squeeze(-1)[swapped] % count
    assert others.unique().numel() == count - 1  # any of them


@pytest.mark.parametrize("deep", [False, True])
def test_targets_are_those_of_the_definition(deep):
    draw = torch.Generator().manual_seed(1)
    images = torch.randint(256, (2, 3, 16, 24), generator=draw).byte()
    given = images.float() / 255 if deep else images
    mean, small = method("mean_colour").targets(given), method("small_patch").targets(given)
    assert mean.shape == (2, 6, 1)
    assert small.shape == (2, 6, 16)
    for picture in range(2):
        for patch in range(6):
            top, left = 8 * (patch // 3), 8 * (patch % 3)
            square = images[picture, :, top : top + 8, left : left + 8].double() / 255
            assert mean[picture, patch] == colour(square.mean((1, 2)))
            for cell in range(16):
                y, x = 2 * (cell // 4), 2 * (cell % 4)
                assert small[picture, patch, cell] == colour(square[:, y : y + 2, x : x + 2].mean((1, 2)))


def colour(rgb):
    red, green, blue = (min(7, int(value * 8)) for value in rgb.tolist())
    return 64 * red + 8 * green + blue


def test_white_and_black_are_the_last_and_the_first_colour():
    model = method()
    white = torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)
    assert model.targets(white).item() == 511
    assert model.targets(torch.zeros_like(white)).item() == 0


@pytest.mark.parametrize("target", ["mean_colour", "small_patch", "pixels"])
def test_the_loss_is_a_mean_over_the_corrupted_patches(target):
    model = randomise(method(target))
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    noise, choice = torch.rand(2, 16), torch.full((2, 16), 0.95)  # corrupted by name only
    loss = means(model(batch_of(images), noise, choice))["loss"]
    tokens = model.backbone(model.normalise(images)).tokens
    mask = random_mask(noise, 0.5).mask
    says = model.head.outputs(tokens)
    each = []
    for picture, patch in mask.nonzero().tolist():
        if target == "pixels":
            top, left = 8 * (patch // 4), 8 * (patch % 4)
            square = model.normalise(images)[picture, :, top : top + 8, left : left + 8].permute(1, 2, 0).flatten()
            each.append((says[picture, patch] - square).square().mean())
        else:
            goals = model.targets(images)[picture, patch]
            each.append(F.cross_entropy(says[picture, patch].view(-1, 512), goals))
    assert len(each) == 16
    torch.testing.assert_close(loss, torch.stack(each).mean())
    other = means(model(batch_of(images), noise, torch.zeros(2, 16)))["loss"]  # control: all masked
    assert not torch.allclose(other, loss)


def test_masked_patches_are_not_seen():
    model, noise, choice = randomise(method()), torch.rand(1, 16), torch.zeros(1, 16)
    images = torch.rand(1, 3, 32, 32)
    hidden = random_mask(noise, 0.5).mask.view(1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(hidden, 1 - images, images)
    model.targets = lambda pixels: torch.zeros(1, 16, 1, dtype=torch.int64)
    assert torch.equal(
        means(model(batch_of(images), noise, choice))["loss"], means(model(batch_of(other), noise, choice))["loss"]
    )
    left = torch.ones_like(choice)  # control
    assert not torch.equal(
        means(model(batch_of(images), noise, left))["loss"], means(model(batch_of(other), noise, left))["loss"]
    )


def test_grey_pictures_have_eight_colours():
    model = method(channels=1)
    assert model.head.outputs.out_features == 8
    assert means(model(batch_of(torch.rand(2, 1, 32, 32))))["loss"].isfinite()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"target": "colour"}, "option target of .* cannot be"),
        ({"ratio": 0.0}, "ratio is 0"),
        ({"channels": 4}, "4096 colours"),
    ],
)
def test_options_out_of_range(options, words):
    with pytest.raises(UsageError, match=words):
        method(**options)
