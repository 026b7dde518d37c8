"""ViTDet from the weights of a plain ViT: from the names to the tokens, which are those without a class token."""

import pytest
import torch
from reference import randomise, rounding_of
from torch import nn

from patchform.loading import export_weights, load_weights
from patchform.model import build_model
from patchform.records import Preprocessing

timm = pytest.importorskip("timm")


class Plain(nn.Module):
    """timm's ViT of the size of ours below, run without its class token.

    `cells` says which of the positions are of cells: all but the first.
    """

    def __init__(self, cells=slice(1, None)):
        super().__init__()
        self.vit = timm.models.vision_transformer.VisionTransformer(
            img_size=32, patch_size=8, embed_dim=48, depth=4, num_heads=3, num_classes=10
        )
        self.cells = cells
        randomise(self, seed=0)
        self.eval()

    def forward(self, images):
        return self.vit.norm(self.vit.blocks(self.vit.patch_embed(images) + self.vit.pos_embed[:, self.cells]))


def model_of(side=32):
    """A detector whose window covers the grid of 32 pixels."""
    return build_model(
        "detection",
        backbone="vit_det/nano",
        head="faster_rcnn",
        classes="ab",
        preprocessing=Preprocessing(size=(side, side), resize="fit"),
        backbone_options={"window": 4},
        head_options={"neck": "simple", "channels_inside": 16, "boxes": {"width": 16}},
    ).eval()


@torch.no_grad()
def test_the_tokens_are_those_of_the_vit_without_its_class_token():
    plain, model = Plain(), model_of()
    report = load_weights(model, plain.vit.state_dict())
    assert report.layout == "timm"
    assert {entry.name for entry in report.dropped} == {"cls_token", "head.weight", "head.bias"}
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    tolerance = 10 * rounding_of(plain, images)
    found = model.backbone(images).tokens
    assert (found - plain(images)).abs().max() < tolerance
    assert (found - Plain(cells=slice(16))(images)).abs().max() > 1000 * tolerance


def test_files_of_pretraining_have_their_decoder_left_out_and_positions_are_resized():
    source = Plain().vit.state_dict()
    source = {name: tensor for name, tensor in source.items() if not name.startswith("head.")}
    model = model_of(side=48)
    report = load_weights(model, source | {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.bias": torch.zeros(8)})
    assert {entry.name for entry in report.dropped} == {"cls_token", "mask_token", "decoder_embed.bias"}
    assert [entry.name for entry in report.of("resized")] == ["backbone.position.table"]
    assert model.backbone.position.table.shape == (1, 36, 48)


def test_on_the_way_back_the_class_token_is_not_made():
    size = Preprocessing(size=(32, 32))
    model, other = (
        build_model("classification", backbone="vit_det/nano", head="linear", classes="ab", preprocessing=size)
        for _ in range(2)
    )
    written = export_weights(model, "timm")
    assert "cls_token" not in written
    assert not written["pos_embed"][:, 0].any()
    load_weights(other, written)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
