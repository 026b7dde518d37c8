"""Losses of pixels against torch, torchvision and plain loops."""

import math

import pytest
import torch
from losses import means
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from patchform.errors import UsageError
from patchform.layers.pixel_losses import LOSSES, PixelLosses

CLASSES, WEIGHTS = 4, [0.3, 1.0, 2.5, 0.7]


def draw(images=3, size=(9, 11), ignored=0.2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(images, CLASSES, *size, generator=generator)
    classes = torch.randint(CLASSES, (images, *size), generator=generator)
    classes[torch.rand(classes.shape, generator=generator) < ignored] = 255
    classes[0, 4:] = 255  # images differ in how much counts
    classes[1][classes[1] == 2] = 0  # and in what they show
    return logits.requires_grad_(), classes


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_is_torchs(weights, smoothing):
    logits, classes = draw()
    found = means(PixelLosses(CLASSES, class_weights=weights, smoothing=smoothing)(logits, classes))
    weight = None if weights is None else torch.tensor(weights)
    wanted = F.cross_entropy(logits, classes, weight, ignore_index=255, label_smoothing=smoothing)
    torch.testing.assert_close(found, {"cross_entropy": wanted})


def test_focal_of_two_classes_is_torchvisions():
    logits, classes = draw()
    two, binary = logits[:, :2], classes.where(classes == 255, classes % 2)
    found = means(PixelLosses(2, losses={"focal": 1.0})(two, binary))["focal"]
    counted = binary != 255
    difference = (two[:, 1] - two[:, 0])[counted]
    wanted = sigmoid_focal_loss(difference, binary[counted].float(), alpha=-1, gamma=2, reduction="mean")
    torch.testing.assert_close(found, wanted)


def by_hand(name, logits, classes, weights):
    """One image after the other, in float64."""
    total, count = 0.0, 0.0
    for one, truth in zip(logits.double(), classes):
        counted = truth != 255
        if not counted.any():
            continue
        pixels, truth = one.softmax(0)[:, counted], truth[counted]  # (C, N), (N,)
        size = weights[truth].sum()
        if name == "ohem":
            entropy = F.cross_entropy(pixels.log().T, truth, weights, reduction="none")
            hard = entropy.sort(descending=True).indices[: math.ceil(len(truth) / 4)]
            mean = entropy[hard].sum() / weights[truth][hard].sum()
        else:
            each, by = [], []
            for number in truth.unique():
                g, p = (truth == number).double(), pixels[number]
                each.append(1 - 2 * (p * g).sum() / (p.square().sum() + g.square().sum()))
                by.append(weights[number])
            mean = (torch.stack(each) * torch.stack(by)).sum() / torch.stack(by).sum()
        total, count = total + size * mean, count + size
    return (total / count).float()


@pytest.mark.parametrize("name", ["ohem", "dice"])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_examples_and_dice_by_hand(name, weights):
    logits, classes = draw()
    found = means(PixelLosses(CLASSES, losses={name: 0.5}, class_weights=weights)(logits, classes))[name]
    exact = torch.tensor(weights or [1.0] * CLASSES, dtype=torch.float64)
    torch.testing.assert_close(found, 0.5 * by_hand(name, logits, classes, exact))
    assert (found - 0.5 * by_hand(name, logits, classes.clamp(max=3), exact)).abs() > 1e-3  # control: with the ignored


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_parts_make_the_whole(name, weights):
    logits, classes = draw()
    loss = PixelLosses(CLASSES, losses={name: 1.0}, class_weights=weights, smoothing=0.1)
    parts = [loss(logits[part], classes[part])[name] for part in (slice(0, 1), slice(1, 3))]
    whole = loss(logits, classes)[name]
    torch.testing.assert_close(sum(part.sum for part in parts), whole.sum)
    torch.testing.assert_close(sum(part.count for part in parts), whole.count)
    torch.testing.assert_close(whole.count, loss.weigh(classes).sum())
    assert (sum(part.mean for part in parts) / 2 - whole.mean).abs() > 1e-3  # control: a plain mean is something else


@pytest.mark.parametrize("name", list(LOSSES))
def test_ignored_pixels_teach_nothing(name):
    logits, classes = draw()
    loss = PixelLosses(CLASSES, losses={name: 1.0}, smoothing=0.1)
    means(loss(logits, classes))[name].backward()
    ignored = (classes == 255)[:, None].expand_as(logits)
    assert logits.grad[ignored].abs().max() == 0
    assert logits.grad[~ignored].abs().max() > 0
    logits.grad = None
    nothing = means(loss(logits, torch.full_like(classes, 255)))[name]
    nothing.backward()
    assert nothing == 0
    assert logits.grad.abs().max() == 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_what_is_right_costs_nothing_and_gradients_lead_there(name):
    _, classes = draw()
    loss = PixelLosses(CLASSES, losses={name: 1.0})
    right = 40.0 * F.one_hot(classes.clamp(max=3), CLASSES).movedim(3, 1)
    assert means(loss(right, classes))[name].abs() < 1e-6
    logits = torch.zeros_like(right, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.5)
    for _ in range(60):
        optimizer.zero_grad()
        means(loss(logits, classes))[name].backward()
        optimizer.step()
    counted = classes != 255
    assert (logits.argmax(1) == classes)[counted].float().mean() > 0.95


def test_a_mixture_is_its_parts():
    logits, classes = draw()
    factors = {"cross_entropy": 1.0, "dice": 3.0, "focal": 0.2, "ohem": 2.0}
    found = means(PixelLosses(CLASSES, losses=factors)(logits, classes))
    assert list(found) == list(factors)
    for name, factor in factors.items():
        alone = means(PixelLosses(CLASSES, losses={name: 1.0})(logits, classes))[name]
        torch.testing.assert_close(found[name], factor * alone)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"losses": {"cross_entrophy": 1.0}}, 'did you mean "cross_entropy"'),
        ({"losses": {}}, "losses is empty"),
        ({"losses": {"dice": -1.0}}, "dice has the factor"),
        ({"class_weights": [1.0]}, "class_weights"),
        ({"class_weights": [1.0, 0.0, 1.0, 1.0]}, "class_weights"),
        ({"smoothing": 1.0}, "smoothing"),
        ({"classes": 256}, "256 classes"),
    ],
)
def test_what_it_refuses(options, match):
    with pytest.raises(UsageError, match=match):
        PixelLosses(**{"classes": CLASSES, **options})
