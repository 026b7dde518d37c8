import pytest
import torch
import torch.nn.functional as F

from patchform.layers.patches import ConvolutionalStem, OverlappingPatches, Patches, Tubelets


@pytest.mark.parametrize("size", [(16, 16), (17, 30), (3, 5)])
def test_patches_are_a_convolution(size):
    torch.manual_seed(0)
    patches, images = Patches(3, 7, 4).double(), torch.randn(2, 3, *size, dtype=torch.float64)
    whole = F.pad(images, (0, -size[1] % 4, 0, -size[0] % 4))
    expected = F.conv2d(whole, patches.proj.weight.view(7, 3, 4, 4), patches.proj.bias, stride=4).permute(0, 2, 3, 1)
    torch.testing.assert_close(patches(images), expected)
    swapped = F.conv2d(whole, patches.proj.weight.view(7, 3, 4, 4).mT, patches.proj.bias, stride=4).permute(0, 2, 3, 1)
    assert (patches(images) - swapped).abs().max() > 1e-2  # control: rows and columns are told apart


@pytest.mark.parametrize(("frames", "size"), [(4, (8, 8)), (5, (9, 14))])
def test_tubelets_are_a_convolution_in_three_dimensions(frames, size):
    torch.manual_seed(0)
    tubelets, clips = Tubelets(3, 7, 4, 2).double(), torch.randn(2, frames, 3, *size, dtype=torch.float64)
    even = clips[:, [*range(frames), frames - 1][: frames + frames % 2]]  # the last frame fills up the last box
    whole = F.pad(even.transpose(1, 2), (0, -size[1] % 4, 0, -size[0] % 4))
    kernel = tubelets.proj.weight.view(7, 3, 2, 4, 4)
    expected = F.conv3d(whole, kernel, tubelets.proj.bias, stride=(2, 4, 4)).permute(0, 2, 3, 4, 1)
    torch.testing.assert_close(tubelets(clips), expected)


def test_other_stems_give_the_grid_they_promise():
    images = torch.randn(2, 3, 33, 47)
    assert OverlappingPatches(3, 8, 7, 4)(images).shape == (2, 9, 12, 8)
    assert ConvolutionalStem(3, 8, (4, 6, 8))(images).shape == (2, 5, 6, 8)
