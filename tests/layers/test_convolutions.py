import pytest
import torch
from reference import randomise
from torch.nn import functional as F

from patchform.layers.convolutions import CellNorm, ConvNorm, classifier


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
