"""Class tokens of the last blocks: timm's numbers; refused where a backbone is not like that."""

import pytest
import timm
import torch
from reference import randomise

from patchform import lookup
from patchform.errors import UsageError
from patchform.loading import load_weights
from patchform.model import build_backbone, build_model
from patchform.probing.last_blocks import last_blocks
from patchform.records import Batch, Label, Preprocessing


def model_of(backbone, **options):
    preprocessing = Preprocessing(size=(32, 32))
    model = build_model(
        "classification", backbone=backbone, head="linear", classes="ab", preprocessing=preprocessing,
        backbone_options=options,
    )  # fmt: skip
    return randomise(model).eval()


def batch_of(model):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, (Label(torch.tensor([0])),) * 3, ("",) * 3, ((32, 32),) * 3)


def test_they_are_what_timm_gives():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 5, "num_heads": 3}
    theirs = randomise(timm.models.VisionTransformer(**sizes, num_classes=2)).eval()
    model = model_of("vit/nano", depth=5)
    load_weights(model, theirs.state_dict(), layout="timm")
    batch = batch_of(model)
    with torch.no_grad():
        found = last_blocks(model, batch, 4)
        pairs = theirs.forward_intermediates(
            model.normalise(batch.images),
            indices=4,
            return_prefix_tokens=True,
            norm=True,
            output_fmt="NLC",
            intermediates_only=True,
        )
        wanted = torch.cat([*(prefix[:, 0] for _, prefix in pairs), pairs[-1][0].mean(1)], 1)
    assert found.shape == (3, 5 * 48)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found[:, :48], found[:, 48:96], atol=1e-2)  # the control: another block, other numbers


def test_registers_are_neither():
    model = model_of("vit/nano", registers=3)
    with torch.no_grad():
        found, features = last_blocks(model, batch_of(model), 2), model.features(batch_of(model))
    torch.testing.assert_close(found[:, 48:], torch.cat([features.summary, features.tokens.mean(1)], 1))


def test_without_a_class_token_means_stand_for_it():
    model = model_of("vit/nano", summary="mean")
    with torch.no_grad():
        found, features = last_blocks(model, batch_of(model), 1), model.features(batch_of(model))
    torch.testing.assert_close(found, torch.cat([features.summary, features.summary], 1))


def test_it_is_taken_where_it_is_what_the_backbone_gives_and_nowhere_else():
    known = set()
    for family in lookup.names("backbones"):
        if build_backbone(f"{family}/nano").frames is None:
            model = model_of(f"{family}/nano")
            try:
                with torch.no_grad():
                    last_blocks(model, batch_of(model), 1)
            except UsageError as error:
                assert "are not those of its last block after its norm; leave out" in str(error)  # noqa: PT017
            else:
                known.add(family)
    assert {"vit", "hybrid"} <= known
    assert not known & {"resnet", "swin", "pvt", "twins", "cross_vit", "volo", "dual_vit", "parnet", "region_vit"}


@pytest.mark.parametrize("part", ["tokens", "summary"])
def test_a_backbone_that_gives_something_else_is_refused(part, monkeypatch):
    model = model_of("vit/nano")
    forward = model.backbone.forward

    def other(images, padding=None):
        features = forward(images, padding=padding)
        return features._replace(**{part: 1.1 * getattr(features, part)})

    monkeypatch.setattr(model.backbone, "forward", other)
    with pytest.raises(UsageError, match="are not those of its last block after its norm"), torch.no_grad():
        last_blocks(model, batch_of(model), 1)


def test_nothing_listens_afterwards():
    model = model_of("vit/nano")
    with pytest.raises(UsageError, match="the last 3 blocks of 2"):
        last_blocks(model, batch_of(model), 3)
    last_blocks(model, batch_of(model), 2)
    assert not any(block._forward_hooks for block in model.backbone.layers())
