import pytest
import torch
import torch.nn.functional as F
from reference import randomise
from torch import nn

from patchform.layers.norms import BatchNorm1d, BatchNorm2d, GroupNorm, Norm, Projection, affine


def cells():
    return torch.randn(2, 3, 5, 6, generator=torch.Generator().manual_seed(0))


def test_norm_is_a_batch_norm_of_the_last_axis():
    ours, theirs = randomise(Norm(6)), nn.BatchNorm2d(6)
    theirs.load_state_dict(ours.state_dict())
    for mode in (True, False):
        wanted = theirs.train(mode)(cells().permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        torch.testing.assert_close(ours.train(mode)(cells()), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@torch.no_grad()
def test_projection_is_a_convolution_and_its_norm():
    projection = randomise(Projection(6, 4))
    for mode in (True, False):
        projection.train(mode)
        mixed = F.linear(cells(), projection.linear.weight)
        wanted = projection.norm(mixed)
        if mode:
            projection = randomise(projection)  # its statistics have moved
        torch.testing.assert_close(projection(cells()), wanted, rtol=1e-5, atol=1e-5)
        assert (mixed - wanted).abs().max() > 1e-2  # control


@torch.no_grad()
def test_projection_takes_views():
    projection = randomise(Projection(6, 4)).eval()
    turned = cells().transpose(1, 2)[:, ::2]
    torch.testing.assert_close(projection(turned), projection(turned.contiguous()))


@torch.no_grad()
def test_affine():
    norm = randomise(nn.BatchNorm2d(6)).eval()
    x = cells().permute(0, 3, 1, 2)
    factor, shift = (part.view(-1, 1, 1) for part in affine(norm))
    torch.testing.assert_close(x * factor + shift, norm(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 4, 3, 5), (6, 4)])
def test_batch_norm_is_torchs(shape):
    kind, theirs = (BatchNorm2d, nn.BatchNorm2d) if len(shape) == 4 else (BatchNorm1d, nn.BatchNorm1d)
    ours, theirs = randomise(kind(4)), theirs(4)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    for mode in (True, False):
        assert torch.equal(ours.train(mode)(x), theirs.train(mode)(x))
    assert all(torch.equal(tensor, theirs.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_a_single_value_of_each_channel_takes_the_running_statistics_which_stay():
    norm = randomise(BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in norm.state_dict().items()}
    x = torch.randn(1, 4, 1, 1, requires_grad=True)
    found = norm(x)
    torch.testing.assert_close(found, norm.eval()(x))
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())
    found.sum().backward()
    assert x.grad.abs().min() > 0


def test_what_is_added_up_is_a_batch_norm_of_all():
    """Of one process that adds up alone, forward, backward and running statistics are torch's."""
    ours, theirs = randomise(BatchNorm2d(4)), nn.BatchNorm2d(4)
    theirs.load_state_dict(ours.state_dict())
    ours.add_up = torch.Tensor.clone
    x = torch.randn(6, 4, 3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    other = x.detach().clone().requires_grad_()
    weights = torch.randn(6, 4, 3, 5)
    (ours(x) * weights).sum().backward()
    (theirs(other) * weights).sum().backward()
    torch.testing.assert_close(x.grad, other.grad, rtol=1e-4, atol=1e-5)
    for one, two in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-5)
    for name, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, theirs.state_dict()[name])


def test_group_norm_of_a_single_value_is_its_bias():
    norm = randomise(GroupNorm(4, 4))
    torch.testing.assert_close(norm(torch.randn(1, 4, 1, 1))[0, :, 0, 0], norm.bias, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="more than 1 value"):  # control: torch's own
        torch.nn.GroupNorm(4, 4)(torch.randn(1, 4, 1, 1))
    x, theirs = torch.randn(2, 4, 3, 5), torch.nn.GroupNorm(2, 4)
    ours = GroupNorm(2, 4)
    ours.load_state_dict(randomise(theirs).state_dict())
    assert torch.equal(ours(x), theirs(x))
