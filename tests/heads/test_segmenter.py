"""Segmenter against the paper's section 3.2, written down again with torch's own transformer layer."""

import pytest
import torch
from reference import randomise
from torch import nn
from torch.nn import functional as F

from patchform.errors import UsageError
from patchform.heads.segmenter import Segmenter
from patchform.records import FeatureInfo, Features

CHANNELS, WIDTH, CLASSES, HEADS = 12, 16, 5, 4


def head(**options):
    features, options = FeatureInfo((6, CHANNELS), (4, 8), 0), {"channels_inside": WIDTH, "heads": HEADS, **options}
    torch.manual_seed(0)
    return randomise(Segmenter(features, classes=CLASSES, **options)).eval()


def features(padding=None, seed=1):
    draw = torch.Generator().manual_seed(seed)
    maps = torch.randn(2, 6, 6, 8, generator=draw), torch.randn(2, CHANNELS, 3, 4, generator=draw)
    return Features(maps, (4, 8), (24, 32), padding=padding)


def as_in_the_paper(built, features, *, lengths=True):
    """The decoder in float64: (B, classes, H, W)."""
    built, cells = built.double(), features.maps[-1].double()
    decoder, norm = built.decoder, built.norm
    x = F.layer_norm(cells.movedim(1, 3), (CHANNELS,), norm.weight, norm.bias, norm.eps).flatten(1, 2)
    x = x @ decoder.project.weight.T + decoder.project.bias
    x = torch.cat([x, decoder.class_tokens.expand(2, -1, -1)], 1)
    for block in decoder.blocks:
        layer = nn.TransformerEncoderLayer(
            WIDTH, HEADS, 4 * WIDTH, 0.0, "gelu", norm.eps, batch_first=True, norm_first=True
        ).double()
        own = {
            "self_attn.in_proj_weight": block.attention.qkv.weight,
            "self_attn.in_proj_bias": block.attention.qkv.bias,
            **{f"self_attn.out_proj.{name}": p for name, p in block.attention.proj.named_parameters()},
            **{f"linear{i}.{name}": p for i in (1, 2) for name, p in getattr(block.mlp, f"fc{i}").named_parameters()},
            **{f"norm{i}.{name}": p for i in (1, 2) for name, p in getattr(block, f"norm{i}").named_parameters()},
        }
        layer.load_state_dict(own)
        x = layer(x)
    x = F.layer_norm(x, (WIDTH,), decoder.norm.weight, decoder.norm.bias, decoder.norm.eps)
    z, c = x[:, :-CLASSES] @ decoder.cell_key.weight.T, x[:, -CLASSES:] @ decoder.class_key.weight.T
    if lengths:
        z, c = z / z.norm(dim=2, keepdim=True), c / c.norm(dim=2, keepdim=True)
    masks = torch.einsum("bnd,bkd->bnk", z, c)
    masks = F.layer_norm(masks, (CLASSES,), decoder.mask_norm.weight, decoder.mask_norm.bias, decoder.mask_norm.eps)
    built.float()
    return masks.unflatten(1, (3, 4)).movedim(3, 1).float()


@torch.no_grad()
def test_masks_are_products_of_cells_and_classes():
    built, given = head(depth=3), features()
    found, wanted = built(given).cells.logits, as_in_the_paper(built, given)
    assert (found - wanted).abs().max() <= 1e-5
    control = as_in_the_paper(built, given, lengths=False)
    assert (found - control).abs().max() > 1e-2


@torch.no_grad()
def test_linear_is_one_layer_on_normalised_cells():
    built, given = head(decoder="linear"), features()
    norm, layer = built.decoder
    x = F.layer_norm(given.maps[-1].movedim(1, 3), (CHANNELS,), built.norm.weight, built.norm.bias, 1e-6)
    x = (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
    wanted = x @ layer.weight[:, :, 0, 0].T + layer.bias
    torch.testing.assert_close(built(given).cells.logits, wanted.movedim(3, 1))
    assert sum(p.numel() for p in built.parameters()) == (CHANNELS + 1) * CLASSES + 4 * CHANNELS


@torch.no_grad()
def test_cells_on_padding_are_not_seen():
    built, padding = head(), torch.zeros(2, 3, 4, dtype=torch.bool)
    padding[1, 2:], padding[1, :, 3:] = True, True
    given = features(padding)
    other = [x.clone() for x in given.maps]
    other[1][padding[:, None].expand_as(other[1])] = 50.0
    real = ~padding[:, None].expand(2, CLASSES, 3, 4)
    one, two = (built(given._replace(maps=maps)).cells.logits for maps in (given.maps, tuple(other)))
    torch.testing.assert_close(one[real], two[real])
    alone = built(given._replace(maps=tuple(x[1:, :, :2, :3] for x in given.maps), padding=None)).cells.logits
    torch.testing.assert_close(one[1:, :, :2, :3], alone)
    bare = built(given._replace(maps=tuple(other), padding=None)).cells.logits
    assert (bare[real] - one[real]).abs().max() > 1e-2  # control


def test_what_it_refuses():
    with pytest.raises(UsageError, match="decoder"):
        head(decoder="masks")
    with pytest.raises(UsageError, match="3 heads do not divide a width of 16"):
        head(heads=3)
