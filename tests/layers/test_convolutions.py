import pytest
import torch
from reference import randomise
from torch import nn
from torch.nn import functional as F

from patchform.layers.convolutions import CellNorm, ConvNorm, Strided, classifier


@torch.no_grad()
def test_the_norm_is_that_of_every_cell():
    norm, x = randomise(CellNorm(5)), torch.randn(2, 5, 3, 4)
    found = norm(x)
    for row in range(3):
        wanted = F.layer_norm(x[:, :, row, 2], (5,), norm.weight, norm.bias, 1e-6)
        torch.testing.assert_close(found[:, :, row, 2], wanted)


@pytest.mark.parametrize("bias", [False, True])
def test_one_number_a_channel_is_normalised_by_what_is_known(bias):
    layer = randomise(ConvNorm(5, 7, 1, bias=bias))
    x = torch.randn(1, 5, 1, 1)
    known = layer.norm.running_mean.clone()
    found = layer.train()(x)
    assert torch.equal(layer.norm.running_mean, known)
    torch.testing.assert_close(found, layer.eval()(x))
    two = torch.cat([x, -x])
    assert not torch.allclose(layer.train()(two)[:1], found, atol=1e-2)  # control: two have a variance of their own
    assert not torch.equal(layer.norm.running_mean, known)


def test_a_classifier_starts_near_nothing():
    torch.manual_seed(0)
    logits = classifier(16, 3, kernel=3)(torch.randn(1, 16, 8, 8))
    assert logits.shape == (1, 3, 8, 8)
    assert logits.abs().max() < 1
    assert classifier(16, 3, bias=False).bias is None


SIZES = [(1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (3, 3), (2, 5), (5, 4)]


def strided(kernel, stride, dtype=torch.float64):
    """Ours, and the plain one with the same weights."""
    torch.manual_seed(0)
    ours = Strided(16, 24, kernel, stride=stride, padding=kernel // 2).to(dtype)
    plain = nn.Conv2d(16, 24, kernel, stride=stride, padding=kernel // 2).to(dtype)
    plain.load_state_dict(ours.state_dict())
    return ours, plain


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (7, 2), (7, 4), (3, 1)])
@pytest.mark.parametrize("size", SIZES)
def test_narrow_maps_are_convolved_as_all_others(kernel, stride, size):
    x = torch.randn(3, 16, *size, dtype=torch.float64)
    seen = []
    for layer in strided(kernel, stride):
        given = x.clone().requires_grad_()
        answer = layer(given)
        (answer * answer.sin()).sum().backward()
        seen.append((answer, given.grad, layer.weight.grad))
    for one, other in zip(*seen):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (7, 2), (7, 4)])
def test_gradients_in_bfloat16_come_from_the_map_alone(kernel, stride):
    """With the plain convolution all three fail where torch has bfloat16 kernels for the processor."""
    for size in SIZES:
        for _ in range(5):
            junk = [torch.full((number * 7919,), float("inf")) for number in range(1, 9)]
            del junk  # what is freed may be handed out again as it is
            ours, exact = strided(kernel, stride, torch.float32)
            x = torch.randn(8, 16, *size)
            with torch.autocast("cpu", torch.bfloat16):
                ours(x).float().square().mean().backward()
            exact(x).square().mean().backward()
            near = 0.05 * float(exact.weight.grad.abs().max())
            torch.testing.assert_close(ours.weight.grad, exact.weight.grad, rtol=0.05, atol=near)
