import pytest
import torch

import patchform as pf
from patchform import lookup
from patchform.inspect.position_similarity import PositionSimilarity

ADDS = {"clip", "eva02", "hybrid", "parallel_vit", "siglip", "sparse", "timesformer", "vit", "vit_det", "vivit"}
"""Families that keep one absolute position by that name."""


@pytest.mark.parametrize("family", lookup.names("backbones"))
def test_every_family_has_a_picture_or_says_that_it_has_none(family):
    model = pf.build_model("classification", backbone=f"{family}/nano", head="linear", classes=("a", "b"))
    clip = (model.backbone.frames,) if model.backbone.frames else ()
    found = PositionSimilarity().measure(model, torch.zeros(1, *clip, 3, 64, 48))
    assert (found is not None) == (family in ADDS)
    if found is not None:
        height, width = found.shape[:2]
        assert found.shape == (height, width, height, width)
        own = found.flatten(2).flatten(0, 1).diagonal()
        torch.testing.assert_close(own, torch.ones(height * width))  # each place is like itself
        assert found.min() < 0.99
