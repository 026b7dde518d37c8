import pytest
import torch
from reference import randomise

from patchform.inspect.reconstructions import Reconstructions
from patchform.model import build_model
from patchform.pretraining.base import patchify, random_mask
from patchform.records import Preprocessing


def mae(**options):
    return build_model(
        "pretraining",
        backbone="vit/nano",
        head="mae",
        classes=(),
        preprocessing=Preprocessing(size=(32, 32)),
        head_options={"width": 16, "depth": 1, "heads": 4, **options},
    ).eval()


@pytest.mark.parametrize("normed", [False, True])
def test_visible_patches_are_as_they_are_and_hidden_ones_are_not(normed):
    model = randomise(mae(norm_pixels=normed))
    images = torch.randint(256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    state = torch.get_rng_state()
    values = Reconstructions().measure(model, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert values.shape == (2, 2, 3, 32, 32)
    assert 0 <= values.min() < values.max() <= 1
    mask = random_mask(torch.rand(2, 16, generator=torch.Generator().manual_seed(0)), 0.75).mask
    real, seen, filled = (patchify(each, 8) for each in (images / 255, values[:, 0], values[:, 1]))
    for part in (seen, filled):
        torch.testing.assert_close(part[~mask], real[~mask], rtol=0, atol=1e-6)
    assert (filled[mask] - real[mask]).abs().mean() > 0.01
    assert seen[mask].std(0).max() < 1e-6  # one grey for all
    assert torch.equal(Reconstructions().measure(model, images), values)
    assert Reconstructions().draw(values, images).startswith(b"\x89PNG")


def test_what_a_perfect_model_would_say_is_the_picture():
    model = mae(norm_pixels=True)
    images = torch.rand(2, 3, 32, 32)
    reconstruct = model.reconstruct
    model.reconstruct = lambda x, noise: reconstruct(x, noise)._replace(patches=model.targets(x))
    torch.testing.assert_close(Reconstructions().measure(model, images)[:, 1], images, rtol=0, atol=1e-5)


def test_other_models_have_none():
    model = build_model("classification", backbone="vit/nano", head="linear", classes="ab")
    assert Reconstructions().measure(model, torch.rand(1, 3, 32, 32)) is None
