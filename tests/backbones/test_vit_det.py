import pytest
import torch
from reference import randomise

from patchform.backbones.vit import ViT
from patchform.backbones.vit_det import VARIANTS, ViTDet
from patchform.errors import UsageError
from patchform.layers.patterns import Global

SMALL = {"image_size": 48, "patch": 8, "width": 32, "depth": 4, "heads": 4}


def images(size=(48, 40)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("position", ["learned_1d", "rope_2d", "sincos_2d", "none"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_one_window_over_the_grid_is_vit(position, padded):
    padding = None
    if padded:
        padding = torch.zeros(2, 48, 40, dtype=torch.bool)
        padding[1, 30:], padding[1, :, 20:] = True, True
    plain = randomise(ViT(**SMALL, position=position, summary="mean")).eval()
    covered = ViTDet(**SMALL, position=position, window=6, global_blocks=2).eval()
    covered.load_state_dict(plain.state_dict())
    wanted, found = plain(images(), padding=padding), covered(images(), padding=padding)
    torch.testing.assert_close(found.summary, wanted.summary, rtol=1e-4, atol=1e-4)
    real = slice(None) if padding is None else ~wanted.padding.flatten(1)
    torch.testing.assert_close(found.tokens[real], wanted.tokens[real], rtol=1e-4, atol=1e-4)
    cut = ViTDet(**SMALL, position=position, window=3, global_blocks=2).eval()
    cut.load_state_dict(plain.state_dict())
    assert (cut(images(), padding=padding).tokens - wanted.tokens)[real].abs().max() > 1e-2  # control


@torch.no_grad()
def test_maps_from_chosen_depths():
    backbone = randomise(ViTDet(**SMALL, window=3, global_blocks=2, maps_from=(1, 4))).eval()
    features, outputs = backbone(images()), []
    assert backbone.channels == (32, 32)
    assert backbone.strides == (8, 8)
    for block in backbone.blocks:
        block.register_forward_hook(lambda block, given, found: outputs.append(found))
    backbone(images())
    assert torch.equal(features.maps[0], outputs[0].permute(0, 3, 1, 2))
    assert torch.equal(features.maps[1], outputs[3].permute(0, 3, 1, 2))
    assert not torch.equal(*features.maps)
    torch.testing.assert_close(backbone.norm(features.maps[1].flatten(2).mT), features.tokens)
    alone = ViTDet(**SMALL, window=3, global_blocks=2).eval()
    alone.load_state_dict(backbone.state_dict())
    assert torch.equal(alone(images()).maps[0], features.maps[1])


@torch.no_grad()
def test_only_global_blocks_carry_from_window_to_window():
    backbone = randomise(ViTDet(**SMALL, window=3, global_blocks=1, maps_from=(3, 4))).eval()
    other = images((48, 48))
    other[:, :, :24, :24] += 1
    pairs = zip(backbone(images((48, 48))).maps, backbone(other).maps)
    moved = [(one - another).abs().amax((0, 1)) for one, another in pairs]
    assert moved[0][:3, :3].min() > 1e-3
    assert moved[0][3:].max() == moved[0][:, 3:].max() == 0
    assert moved[1].min() > 1e-6


@pytest.mark.parametrize(("name", "seen"), [("b", [2, 5, 8, 11]), ("l", [5, 11, 17, 23]), ("h", [7, 15, 23, 31])])
def test_global_blocks_are_those_of_the_paper(name, seen):
    with torch.device("meta"):
        backbone = VARIANTS[name].build(**VARIANTS[name].options, image_size=1024)
    assert [number for number, block in enumerate(backbone.blocks) if isinstance(block.pattern, Global)] == seen
    assert backbone.position.table.shape[1] == 64**2


def test_what_it_refuses():
    with pytest.raises(UsageError, match="5 global_blocks of 4"):
        ViTDet(**SMALL, global_blocks=5)
    with pytest.raises(UsageError, match="0 global_blocks of 4"):
        ViTDet(**SMALL, global_blocks=0)
