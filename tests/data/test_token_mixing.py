"""MixToken: cells of pairs exchanged behind the embedding, labels shared by area, tokens given back."""

import numpy as np
import pytest
import torch
from losses import means
from torch.nn import functional as F

from patchform import lookup
from patchform.backbones.base import exchanged
from patchform.data.token_mixing import TokenMixing
from patchform.errors import UsageError
from patchform.layers.token_mixing import exchange, partners
from patchform.model import build_backbone, build_model
from patchform.records import Batch, Label, Preprocessing
from patchform.settings import AugmentationSettings, ModelSettings, Recipe, TrainingSettings, check
from patchform.tasks.base import find_task
from patchform.training import preparation

CLASSES, SIDE = 4, 64


def draw(seed=0):
    return torch.Generator().manual_seed(seed)


def batch_of(count=5, side=SIDE):
    squares = torch.randint(256, (count, 3, 4, 4), generator=draw()).byte()
    images = squares.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    labels = tuple(Label(torch.tensor([number % CLASSES])) for number in range(count))
    return Batch(images, labels, ("",) * count, ((side, side),) * count)


def model_of(backbone, head="token_label", side=SIDE):
    torch.manual_seed(0)
    made = build_model(
        "classification",
        backbone=f"{backbone}/nano",
        head=head,
        classes=[str(number) for number in range(CLASSES)],
        preprocessing=Preprocessing(size=(side, side)),
    )
    with torch.no_grad():
        for number, parameter in enumerate(made.parameters()):
            fan = parameter[0].numel() if parameter.ndim > 1 else 12
            parameter.normal_(mean=0.5 * (parameter.ndim < 2), std=1.5 * fan**-0.5, generator=draw(number))
    return made.eval()


def mixed(batch, stride, seed=3, **settings):
    mixing = TokenMixing(AugmentationSettings(mix_token=1.0, **settings), CLASSES, stride, 0.1)
    return mixing.mix(batch, draw(seed))


def test_neighbours_change_places_and_the_last_of_an_odd_number_stays():
    assert partners(torch.arange(5)).tolist() == [1, 0, 3, 2, 4]
    assert partners(torch.arange(4)).tolist() == [1, 0, 3, 2]
    cells = torch.randn(5, 6, 8, 3, generator=draw())
    once = exchange(cells, (1, 1, 2, 3), 2)
    wanted = cells.clone()
    for one, other in ((0, 1), (1, 0), (2, 3), (3, 2)):
        for row in (2, 3):
            for column in (2, 3, 4, 5):
                wanted[one, row, column] = cells[other, row, column]
    assert torch.equal(once, wanted)
    assert torch.equal(exchange(once, (1, 1, 2, 3), 2), cells)


@torch.no_grad()
def test_a_vit_sees_what_it_would_see_of_pasted_patches():
    """Patches do not overlap: exchanged embeddings are those of exchanged pixels, and tokens go back."""
    model, batch = model_of("vit"), batch_of()
    patch = model.backbone.patch
    box = (3, 5, 9, 14)
    mixed_features = model.features(batch._replace(exchanged=box))
    rows, columns = slice(3 * patch, 9 * patch), slice(5 * patch, 14 * patch)
    pixels = batch.images.clone()
    pixels[:4, :, rows, columns] = batch.images[[1, 0, 3, 2]][..., rows, columns]
    pasted = model.features(batch._replace(images=pixels))
    torch.testing.assert_close(mixed_features.summary, pasted.summary, rtol=0, atol=1e-6)
    grid = pasted.maps[-1].shape[-2:]
    wanted = pasted.tokens.unflatten(1, grid).clone()
    for one, other in ((0, 1), (2, 3)):
        there, here = wanted[other, 3:9, 5:14].clone(), wanted[one, 3:9, 5:14].clone()
        wanted[one, 3:9, 5:14], wanted[other, 3:9, 5:14] = there, here
    torch.testing.assert_close(mixed_features.tokens, wanted.flatten(1, 2), rtol=0, atol=1e-6)
    assert not torch.allclose(mixed_features.tokens, pasted.tokens, atol=1e-2)  # control
    assert not model.backbone.patches._forward_hooks


@torch.no_grad()
@pytest.mark.parametrize(("backbone", "side"), [("dual_vit", 128), ("volo", 64), ("dual_vit", 100)])
def test_the_stem_is_mixed_in_whole_cells_of_the_last_map(backbone, side):
    model, batch = model_of(backbone, side=side), batch_of(4, side)
    strides, box = model.backbone.strides, (0, 1, 2, 3)
    scale = strides[-1] // strides[0]
    outputs = []
    hook = model.backbone.stem.register_forward_hook(lambda part, inputs, output: outputs.append(output))
    plain = model.features(batch)
    hook.remove()
    (cells,) = outputs
    assert cells.shape[1:3] == plain.maps[0].shape[-2:]
    by_hand = cells.clone()
    for one in range(4):
        for row in range(0, 2 * scale):
            for column in range(scale, min(3 * scale, cells.shape[2])):
                by_hand[one, row, column] = cells[one ^ 1, row, column]
    hook = model.backbone.stem.register_forward_hook(lambda part, inputs, output: by_hand)
    wanted = model.features(batch)
    hook.remove()
    found = model.features(batch._replace(exchanged=box))
    assert torch.equal(found.summary, wanted.summary)
    grid = wanted.maps[-1].shape[-2:]
    tokens = wanted.tokens.unflatten(1, grid)
    back = tokens.clone()
    back[:, 0:2, 1:3] = tokens[[1, 0, 3, 2], 0:2, 1:3]
    assert torch.equal(found.tokens, back.flatten(1, 2))
    assert not torch.allclose(found.summary, plain.summary, atol=1e-4)  # control


def embeds(family):
    return build_backbone(f"{family}/nano").embedding


@torch.no_grad()
@pytest.mark.parametrize("family", list(filter(embeds, lookup.names("backbones"))))
@pytest.mark.parametrize("side", [64, 72])
def test_to_exchange_all_cells_is_to_exchange_the_images(family, side):
    """Of every backbone that names an embedding: cells of `strides[0]` pixels, from which all else follows."""
    backbone, images = build_backbone(f"{family}/nano"), batch_of(4, side).images / 255
    outputs = []
    part = backbone.eval().get_submodule(backbone.embedding)
    hook = part.register_forward_hook(lambda part, inputs, output: outputs.append(output))
    plain = backbone(images)
    hook.remove()
    assert outputs[0].shape[:3] == (4, -(-side // backbone.strides[0]), -(-side // backbone.strides[0]))
    with exchanged(backbone, (0, 0, *plain.maps[-1].shape[-2:])):
        found = backbone(images)
    torch.testing.assert_close(found.summary, partners(plain.summary), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.tokens, partners(plain.tokens), rtol=0, atol=1e-5)
    assert not torch.allclose(found.summary, plain.summary, atol=1e-6)


def test_labels_are_shared_by_area_and_tokens_have_their_own():
    batch = mixed(batch_of(), 8)
    top, left, bottom, right = batch.exchanged
    share = (bottom - top) * (right - left) / 64
    assert 0 < share < 1
    for number, label in enumerate(batch.targets):
        other = number if number == 4 else number ^ 1
        wanted = torch.zeros(CLASSES)
        wanted[number % CLASSES] += 1 - share
        wanted[other % CLASSES] += share
        torch.testing.assert_close(label.scores, wanted)
        own = torch.full((CLASSES,), 0.1 / CLASSES)
        own[number % CLASSES] += 0.9
        torch.testing.assert_close(label.tokens, own[:, None, None])
    assert torch.equal(batch.images, batch_of().images)
    assert mixed(batch_of(), 8).exchanged == batch.exchanged


def test_boxes_are_as_large_as_the_share_that_is_drawn():
    """Areas of a share from Beta(1, 1) are even, but for boxes that are cut off at the edges, as CutMix's."""
    kept = []
    for seed in range(300):
        box = mixed(batch_of(2), 4, seed).exchanged
        kept.append(1.0 if box is None else 1 - (box[2] - box[0]) * (box[3] - box[1]) / 256)
    assert 0.5 < np.mean(kept) < 0.75
    assert len(set(kept)) > 50
    assert any(mixed(batch_of(2), 4, seed, mix_probability=0.5).exchanged is None for seed in range(5))


@torch.no_grad()
def test_the_loss_is_that_of_a_plain_loop():
    """Jiang et al. 2021, section 3.3: the class by area, each token by its own image, beta of 0.5."""
    model, plain = model_of("volo"), batch_of(4)
    batch = mixed(plain, model.backbone.strides[-1])
    top, left, bottom, right = batch.exchanged
    raw = model.head(model.features(batch))
    share = (bottom - top) * (right - left) / raw.tokens.shape[1]
    truth = torch.arange(4)
    image = (1 - share) * F.cross_entropy(raw.summary, truth) + share * F.cross_entropy(
        raw.summary, truth[[1, 0, 3, 2]]
    )
    token = F.cross_entropy(
        raw.tokens.transpose(1, 2), truth[:, None].expand(-1, raw.tokens.shape[1]), label_smoothing=0.1
    )
    found = means(model(batch))
    assert found["loss"].item() == pytest.approx(image.item(), rel=1e-6)
    assert found["auxiliary"].item() == pytest.approx(0.5 * token.item(), rel=1e-6)
    assert abs(F.cross_entropy(raw.summary, truth) - image) > 1e-4  # control


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"training": TrainingSettings(micro_batch=3)}, "images go in pairs"),
        ({"training": TrainingSettings(pixels_at_once=10)}, "pixels_at_once"),
        ({"preprocessing": Preprocessing(resize="keep")}, "several sizes"),
        ({"preprocessing": Preprocessing(frames=3)}, "clips"),
        ({"model": ModelSettings(compile=True)}, "compile"),
    ],
)
def test_what_does_not_go_with_it_is_refused(sections, said):
    recipe = Recipe(augmentation=AugmentationSettings(mix_token=1.0), **sections)
    with pytest.raises(UsageError, match=said):
        check(recipe)


def test_backbones_and_tasks_without_it_refuse_it():
    mix = AugmentationSettings(mix_token=1.0)
    with pytest.raises(UsageError, match="swin/nano names no embedding"):
        preparation.check_model(Recipe(augmentation=mix, model=ModelSettings(backbone="swin/nano")))
    hybrid = build_backbone("hybrid/nano")
    hybrid.embedding = "patches"
    with pytest.raises(UsageError, match="no squares of 4 pixels"), exchanged(hybrid, (0, 0, 1, 1)):
        hybrid(torch.zeros(2, 3, SIDE, SIDE))
    with pytest.raises(UsageError, match="shares labels of whole images"):
        find_task("semantic_segmentation").token_mixing(mix, 3, 8, 0.0)
    with pytest.raises(UsageError, match="one label an image"):
        type(find_task("classification"))("multi").token_mixing(mix, 3, 8, 0.0)
    model = model_of("volo")
    with pytest.raises(UsageError, match="targets of 3 tokens for"):
        model(batch_of(1)._replace(targets=(Label(torch.tensor([0]), None, torch.zeros(CLASSES, 1, 3)),)))
