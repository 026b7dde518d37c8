import pytest
import torch
from reference import Classifier, randomise
from torch.utils.flop_counter import FlopCounterMode

from patchform.backbones.sparse import VARIANTS, Sparse
from patchform.backbones.vit import ViT
from patchform.layers import attention


def nano(**options):
    return randomise(Sparse(image_size=32, **{**VARIANTS["nano"].options, **options}), scale=0.1).eval()


def dense(**options):
    return ViT(image_size=32, patch=4, width=48, depth=2, heads=3, summary="mean", **options).eval()


def pictures(height=32, width=32):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_a_block_of_the_whole_picture_is_a_vision_transformer():
    reference = dense()
    for options in ({"block": 64, "near": 0, "landmarks": 0}, {"near": 8}, {"block": 24, "near": 0, "landmarks": 3}):
        ours = nano(**options)
        reference.load_state_dict(ours.state_dict())
        images = pictures()
        torch.testing.assert_close(ours(images).summary, reference(images).summary, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours(images).tokens, reference(images).tokens, rtol=1e-4, atol=1e-4)
    ours = nano()
    assert (ours(images).summary - reference(images).summary).abs().max() > 1e-4  # control: fewer are seen


@torch.no_grad()
@pytest.mark.parametrize(("size", "block"), [((32, 32), 8), ((36, 20), 8), ((28, 44), 10)])
def test_a_cell_sees_its_neighbours_and_the_landmarks(size, block):
    backbone = nano(depth=1, block=block)
    images = pictures(*size).requires_grad_()
    columns = size[1] // 4
    count = columns * (size[0] // 4)
    for asking in (0, count // 2, count - 1):
        with torch.enable_grad():
            (tokens,) = torch.autograd.grad(backbone(images).tokens[0, asking].square().sum(), images)
        seen = tokens[0].abs().amax(0).unflatten(1, (-1, 4)).unflatten(0, (-1, 4)).amax((1, 3)).flatten() > 0
        near = [abs(cell // block - asking // block) <= 1 or cell < block for cell in range(count)]
        assert seen.tolist() == near


def test_work_grows_with_the_number_of_cells():
    with torch.device("meta"):
        backbone = Sparse(**VARIANTS["s"].options).eval()
        counts = []
        for side in (224, 448):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                backbone(torch.empty(1, 3, side, side))
            counts.append(counter.get_total_flops())
    assert counts[1] == pytest.approx(4 * counts[0], rel=0.01)


@torch.no_grad()
def test_memory_grows_with_the_number_of_cells():
    backbone, sizes = nano(depth=1), []
    for side in (64, 128):
        with attention.recording() as weights:
            backbone(pictures(side, side))
        sizes.append(weights[0].numel())
    assert sizes[1] == 4 * sizes[0]


@pytest.mark.parametrize(("name", "width", "heads"), [("s", 384, 6), ("b", 768, 12)])
def test_as_many_parameters_as_a_vision_transformer_without_class_token(name, width, heads):
    with torch.device("meta"):
        ours = Classifier(Sparse(**VARIANTS[name].options), classes=1000)
        theirs = Classifier(ViT(width=width, heads=heads, summary="mean"), classes=1000)
    shapes = {key: tensor.shape for key, tensor in theirs.state_dict().items()}
    assert {key: tensor.shape for key, tensor in ours.state_dict().items()} == shapes


@torch.no_grad()
def test_maps_are_taken_where_asked():
    features = nano(depth=3, maps_from=(1, 3))(pictures())
    assert [found.shape for found in features.maps] == [(2, 48, 8, 8)] * 2
    assert features.strides == (4, 4)
    assert not torch.equal(*features.maps)
