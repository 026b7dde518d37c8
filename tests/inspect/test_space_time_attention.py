import pytest
import torch
from reference import randomise

import patchform as pf
from patchform.inspect.class_attention import ClassAttention
from patchform.inspect.space_time_attention import SpaceTimeAttention
from patchform.records import Preprocessing

FRAMES = 4


def a_model(backbone):
    usual = {"head": "linear", "classes": ("a", "b"), "preprocessing": Preprocessing(size=(32, 48), frames=FRAMES)}
    model = pf.build_model("video_classification", backbone=backbone, **usual).eval()
    randomise(model)
    return model


def clips():
    return torch.randint(0, 256, (2, FRAMES, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("backbone", "moments", "together"),
    [
        ("timesformer/nano", FRAMES, False),
        ("timesformer/nano_joint", FRAMES, True),
        ("timesformer/nano_space", FRAMES, False),
        ("vivit/nano", FRAMES // 2, True),
        ("vivit/nano_fe", FRAMES // 2, False),
        ("vit/nano", FRAMES, False),
    ],
)
def test_a_map_a_moment(backbone, moments, together):
    found = SpaceTimeAttention().measure(a_model(backbone), clips())
    assert found.shape == (2, moments, 4, 6)
    shares = found.sum((1, 2, 3)) if together else found.sum((2, 3))
    assert ((shares > 0) & (shares < 1)).all()  # the class token itself has the rest


def test_a_frame_that_stands_out_is_seen_where_it_is():
    model, black = a_model("timesformer/nano_space"), torch.zeros(1, FRAMES, 3, 32, 48, dtype=torch.uint8)
    other = black.clone()
    other[:, 2, :, :8, 8:16] = 255
    before, after = (SpaceTimeAttention().measure(model, images)[0] for images in (black, other))
    changed = (after - before).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [False, False, True, False]


def test_pictures_and_backbones_without_a_class_token_have_none():
    assert SpaceTimeAttention().measure(a_model("vit/nano"), clips()[:, 0]) is None
    assert SpaceTimeAttention().measure(a_model("pvt/nano"), clips()) is None
    assert ClassAttention().measure(a_model("vivit/nano"), clips()) is None


def test_it_is_drawn():
    picture = SpaceTimeAttention()
    assert picture.draw(picture.measure(a_model("vivit/nano"), clips()), clips())[:4] == b"\x89PNG"
