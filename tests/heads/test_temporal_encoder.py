"""Clips under heads: what depends on the order of frames and what does not."""

import pytest
import torch
from losses import means
from reference import randomise

from patchform.backbones.base import over_frames
from patchform.errors import UsageError
from patchform.heads.linear import Linear
from patchform.heads.temporal_encoder import TemporalEncoder
from patchform.model import build_backbone
from patchform.records import FeatureInfo, Label


def features_of(name="vit/nano", frames=5, padding=None):
    backbone = build_backbone(name).eval()
    randomise(backbone)
    clips = torch.randn(2, frames, 3, 32, 40, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return backbone, clips, over_frames(backbone, clips, padding=padding)


@pytest.mark.parametrize("name", ["vit/nano", "pvt/nano"])
def test_a_clip_is_its_frames_one_by_one(name):
    backbone, clips, features = features_of(name)
    with torch.no_grad():
        one = backbone(clips[1])
    torch.testing.assert_close(features.frames[1], one.summary)
    torch.testing.assert_close(features.summary[1], one.summary.mean(0))
    torch.testing.assert_close(features.tokens[1], one.tokens.flatten(0, 1))
    for scene, alone in zip(features.maps, one.maps):
        torch.testing.assert_close(scene[1], alone.mean(0))


def test_padding_is_that_of_all_frames():
    hidden = torch.zeros(2, 32, 40, dtype=torch.bool)
    hidden[0, :, 24:] = True
    backbone, clips, features = features_of(padding=hidden)
    with torch.no_grad():
        one = backbone(clips[0], padding=hidden[:1].expand(5, -1, -1))
    torch.testing.assert_close(features.frames[0], one.summary)
    torch.testing.assert_close(features.padding[0], one.padding[0])


def heads(width):
    features = FeatureInfo((), (), width)
    return Linear(features, classes=4), TemporalEncoder(features, classes=4, inner=24, heads=2, depth=2)


def test_the_order_of_frames_counts_for_the_encoder_alone():
    backbone, clips, features = features_of()
    pooled, ordered = heads(backbone.width)
    randomise(pooled)
    randomise(ordered)
    backwards = over_frames(backbone, clips.flip(1))
    with torch.no_grad():
        torch.testing.assert_close(pooled.eval()(features), pooled(backwards))
        assert (ordered.eval()(features) - ordered(backwards)).abs().max() > 1e-2


def test_any_number_of_frames_and_gradients_to_all():
    for frames in (1, 2, 7):
        backbone, _, features = features_of(frames=frames)
        head = heads(backbone.width)[1]
        loss = means(head.loss(head(features), [Label(torch.tensor([0])), Label(torch.tensor([3]))]))["loss"]
        loss.backward()
        assert loss.isfinite()
        assert all(parameter.grad is not None for parameter in head.parameters())


def test_without_frames_it_says_what_is_missing():
    backbone, _, features = features_of()
    with pytest.raises(UsageError, match="summary of each frame"):
        heads(backbone.width)[1](features._replace(frames=None))
