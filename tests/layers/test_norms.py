import torch
import torch.nn.functional as F
from reference import randomise
from torch import nn

from patchform.layers.norms import Norm, Projection, affine


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
