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
def test_only_global_blocks_carry_from_window_to_window():
    backbone = randomise(ViTDet(**SMALL, window=3, global_blocks=1)).eval()
    other = images((48, 48))
    other[:, :, :24, :24] += 1
    moved = []
    for number in (3, 4):
        kept = list(backbone.blocks)
        backbone.blocks = torch.nn.ModuleList(kept[:number])
        change = (backbone(images((48, 48))).maps[0] - backbone(other).maps[0]).abs().amax((0, 1))
        moved.append(change)
        backbone.blocks = torch.nn.ModuleList(kept)
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
