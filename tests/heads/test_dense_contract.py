"""What every head for segmentation promises, above every backbone. A new file is tested by being there."""

import pytest
import torch
from losses import gradients, means
from reference import randomise
from torch.nn import functional as F

from patchform import lookup
from patchform.data.collate import split
from patchform.errors import DataError, UsageError
from patchform.geometry import grids
from patchform.heads.base import Cells, DenseHead, Head
from patchform.model import build_backbone, build_model, load, save
from patchform.records import Batch, FeatureInfo, Features, Preprocessing, Regions

TASK, CLASSES = "semantic_segmentation", 3
BACKBONES = [name for name in lookup.names("backbones") if build_backbone(f"{name}/nano").frames is None]
HEADS = [name for name in lookup.names("heads") if TASK in lookup.the_class("heads", name, Head).tasks]
SMALL = {"channels_inside": 16}
FORMS = {
    **{name: (name, {}) for name in HEADS},
    "setr": ("setr", SMALL),
    "setr pup": ("setr", {**SMALL, "decoder": "pup", "auxiliary": (0,)}),
    "setr mla": ("setr", {**SMALL, "decoder": "mla", "auxiliary": (0, -1)}),
    "segmenter": ("segmenter", SMALL),
    "segmenter linear": ("segmenter", {"decoder": "linear"}),
    "semantic_fpn": ("semantic_fpn", {**SMALL, "channels_pyramid": 16}),
    "upernet": ("upernet", SMALL),
    "upernet bare": ("upernet", {**SMALL, "norm": "none", "auxiliary": None}),
}
MIXTURE = {"cross_entropy": 1.0, "dice": 1.0, "focal": 0.5, "ohem": 0.5}
SIZES = [(64, 64), (50, 75)]


def whole(form, backbone, **options):
    torch.manual_seed(0)
    head, own = FORMS[form]
    return build_model(
        TASK,
        backbone=f"{backbone}/nano",
        head=head,
        classes=[f"class {number}" for number in range(CLASSES)],
        preprocessing=Preprocessing(size=(64, 64)),
        head_options={**own, **options},
    )


def scene(size, images=2, padded=False, seed=0):
    """Three upright bands of their own colours."""
    draw = torch.Generator().manual_seed(seed)
    bands = (torch.arange(size[1]) * CLASSES // size[1]).expand(images, *size).clone()
    pixels = 80 * bands[:, None] + torch.randint(60, (images, 3, *size), generator=draw)
    bands[torch.rand(bands.shape, generator=draw) < 0.1] = 255
    padding = None
    if padded:
        padding = torch.zeros(images, *size, dtype=torch.bool)
        padding[1, size[0] * 2 // 3 :], padding[1, :, size[1] * 3 // 4 :] = True, True
        bands[padding] = 255
    sizes = tuple((10 + number, 13) for number in range(images))
    return Batch(pixels.byte(), tuple(map(Regions, bands)), ("",) * images, sizes, padding)


# --------------------------------------------------------------------------------------------- every head and backbone


def one_step_one_prediction(form, backbone, size, padded):
    model, batch = whole(form, backbone, losses=MIXTURE), scene(size, padded=padded)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = means(model(batch))
    assert set(losses) - {"auxiliary"} == set(MIXTURE)
    sum(losses.values()).backward()
    for name, parameter in model.head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert max(p.grad.abs().max() for p in model.backbone.parameters() if p.grad is not None) > 0
    optimizer.step()

    optimizer.zero_grad()
    nothing = batch._replace(targets=tuple(Regions(torch.full(size, 255)) for _ in batch.targets))
    losses = means(model(nothing))
    sum(losses.values()).backward()
    assert [loss.item() for loss in losses.values()] == [0.0] * len(losses)
    assert all(p.grad.abs().max() == 0 for p in model.head.parameters())

    with torch.no_grad():
        together = model.eval().head.decode(model.head(model.features(batch)), batch.sizes)
    for regions in (model.predict(batch), together):
        for region, wanted in zip(regions, batch.sizes, strict=True):
            assert region.classes.shape == wanted
            assert region.classes.dtype == torch.int64
            assert region.scores.shape == (CLASSES, *wanted)
            assert torch.equal(region.scores.argmax(0), region.classes)
            torch.testing.assert_close(region.scores.sum(0), torch.ones(wanted))


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("backbone", BACKBONES)
def test_one_step_one_prediction(form, backbone):
    one_step_one_prediction(form, backbone, (64, 64), padded=False)
    one_step_one_prediction(form, backbone, (50, 75), padded=True)


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.parametrize("backbone", ["vit", "pvt"])
def test_learns_one_batch(form, backbone):
    model, batch = whole(form, backbone), scene((48, 64))
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(25):
        parts = means(model(batch))
        losses.append(parts["cross_entropy"].item())
        optimizer.zero_grad()
        sum(parts.values()).backward()
        optimizer.step()
    assert losses[-1] < 0.75 * losses[0]  # the last map of pvt has four cells


@pytest.mark.parametrize("form", list(FORMS))
def test_state_goes_round(form, tmp_path):
    options = {"losses": MIXTURE, "class_weights": (1.0, 2.0, 0.5), "smoothing": 0.1}
    model, batch = randomise(whole(form, "pvt", **options)).eval(), scene((64, 64))
    save(model, tmp_path / "model")
    again = load(tmp_path / "model")
    for one, two in zip(model.predict(batch), again.predict(batch), strict=True):
        assert torch.equal(one.scores, two.scores)
    with torch.no_grad():
        assert means(model(batch)) == means(again(batch))


@pytest.mark.parametrize("form", list(FORMS))
def test_parts_of_a_batch_weighted_by_their_count_make_the_whole(form):
    model = whole(form, "pvt", losses=MIXTURE, class_weights=(1.0, 2.0, 0.5)).eval()  # in training norms see the batch
    batch = scene((64, 64), images=3)
    batch.targets[1].classes[10:] = 255
    parts = [model(part) for part in split(batch, 1)]
    counts = model.counts(batch.targets)
    for name, loss in model(batch).items():
        torch.testing.assert_close(sum(part[name].sum for part in parts), loss.sum)
        torch.testing.assert_close(sum(part[name].count for part in parts), loss.count)
        torch.testing.assert_close(counts[name], loss.count)


def test_the_loop_steps_over_a_batch_of_which_nothing_counts():
    model, batch = whole("setr", "vit", losses=MIXTURE), scene((64, 64))
    batch.targets[0].classes[:] = 255
    loss, norm = gradients(model, batch, part=1)
    assert loss > 0
    assert norm > 0
    batch.targets[1].classes[:] = 255
    model.zero_grad()
    assert gradients(model, batch, part=1) == (0.0, 0.0)


@pytest.mark.parametrize("form", list(FORMS))
def test_mixed_precision_is_close(form):
    model, batch = whole(form, "pvt").eval(), scene((64, 64))
    with torch.no_grad():
        exact = means(model(batch))["cross_entropy"]
        with torch.autocast("cpu", torch.bfloat16):
            rough = means(model(batch))["cross_entropy"]
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.05, atol=0.05)


# ------------------------------------------------------------------------------------------ what is written down once


class Bare(DenseHead):
    """Says what it is told."""

    def forward(self, features, targets=None):
        return self.raw(features, Cells(features.maps[0], self.covered(features, 0)))


def bare(stride=1, **options):
    return Bare(FeatureInfo((CLASSES,), (stride,), 0), classes=CLASSES, auxiliary_weight=0.4, **options)


def told(logits, *, stride=1, size=None, **padding):
    size = size or (stride * logits.shape[2], stride * logits.shape[3])
    return bare(stride)(Features((logits,), (stride,), size, **padding))


def test_a_perfect_output_decodes_to_the_target():
    truth = torch.randint(CLASSES, (2, 6, 8), generator=torch.Generator().manual_seed(0))
    raw = told(50.0 * F.one_hot(truth).movedim(3, 1))
    for region, wanted in zip(bare().decode(raw, [(6, 8), (6, 8)]), truth, strict=True):
        assert torch.equal(region.classes, wanted)
        torch.testing.assert_close(region.scores.sum(0), torch.ones(6, 8))
    assert means(bare().loss(raw, [Regions(one) for one in truth]))["cross_entropy"] < 1e-6
    larger = bare().decode(raw, [(90, 40), (7, 9)])
    assert [region.classes.shape for region in larger] == [(90, 40), (7, 9)]
    other = bare().decode(told(raw.cells.logits.roll(1, 1)), [(6, 8), (6, 8)])  # control
    assert not any((region.classes == wanted).any() for region, wanted in zip(other, truth))


def test_padding_is_left_out_of_predictions():
    logits = torch.randn(2, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0))
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, 3:], padding[1, :, 2:] = True, True
    found = bare().decode(told(logits, padding=padding), [(8, 10), (6, 4)])
    alone = bare().decode(told(logits[1:, :, :3, :2]), [(6, 4)])
    torch.testing.assert_close(found[1].scores, alone[0].scores)
    torch.testing.assert_close(found[0].scores, bare().decode(told(logits[:1]), [(8, 10)])[0].scores)
    assert not torch.allclose(bare().decode(told(logits), [(8, 10), (6, 4)])[1].scores, alone[0].scores)  # control


def test_padding_is_left_out_to_the_pixel():
    logits = torch.randn(2, CLASSES, 4, 5, generator=torch.Generator().manual_seed(0))
    pixels = torch.zeros(2, 32, 40, dtype=torch.bool)
    pixels[1, 19:], pixels[1, :, 11:] = True, True  # 2.4 cells of 8 pixels by 1.4
    cells = grids.shrink_mask(pixels, 8)
    raw = told(logits, stride=8, padding=cells, pixel_padding=pixels)
    found = bare(8).decode(raw, [(32, 40), (19, 11)])[1].scores
    wanted = Cells(logits[1:], (32, 40)).enlarged((32, 40))[0, :, :19, :11].softmax(0)
    torch.testing.assert_close(found, wanted)
    rough = bare(8).decode(told(logits, stride=8, padding=cells), [(32, 40), (19, 11)])[1].scores
    assert (rough - wanted).abs().max() > 1e-2  # control: all of the last cells, stretched
    model, batch = whole("setr", "pvt"), scene((50, 75), padded=True)  # the model hands the pixels on
    assert torch.equal(model.head(model.features(batch)).padding, batch.padding)


def test_cells_stay_where_they_are_when_the_stride_does_not_divide():
    column = torch.arange(4.0).expand(1, 1, 3, 4)
    cells = Cells(column, (24, 32))
    plain = F.interpolate(column, size=(24, 32), mode="bilinear")
    assert torch.equal(cells.enlarged((24, 32)), plain)
    assert torch.equal(cells.enlarged((19, 27)), plain[..., :19, :27])
    assert cells.enlarged((25, 33)).shape == (1, 1, 25, 33)  # a stride rounded down
    logits = column.expand(1, CLASSES, 3, 4) * torch.arange(CLASSES)[:, None, None]
    found = bare(8).decode(told(logits, stride=8, size=(19, 27)), [(19, 27)])[0].scores
    wanted = F.interpolate(logits, size=(24, 32), mode="bilinear")[0, :, :19, :27].softmax(0)
    torch.testing.assert_close(found, wanted)
    shrunk = F.interpolate(logits, size=(19, 27), mode="bilinear")[0].softmax(0)  # control: not the plain resize
    assert (found - shrunk).abs().max() > 1e-2


@pytest.mark.parametrize(("cells", "covered", "size"), [((3, 4), (24, 32), (19, 27)), ((5, 6), (20, 24), (25, 33))])
def test_chosen_pixels_are_those_of_the_enlarged_map(cells, covered, size):
    map_ = Cells(torch.randn(2, CLASSES, *cells, generator=torch.Generator().manual_seed(0)), covered)
    rows, columns = torch.arange(1, size[0], 3), torch.arange(2, size[1], 4)
    wanted = map_.enlarged(size)[:, :, rows[:, None], columns]
    torch.testing.assert_close(map_.sampled(size, rows, columns), wanted)
    assert (map_.sampled(size, rows - 1, columns) - wanted).abs().max() > 1e-2  # control


def test_fewer_pixels_are_learnt_from_alike():
    draw = torch.Generator().manual_seed(0)
    raw, truth = (
        told(torch.randn(2, CLASSES, 12, 12, generator=draw)),
        torch.randint(CLASSES, (2, 12, 12), generator=draw),
    )
    truth[:, :, 3:9] = 255
    regions, head = [Regions(one) for one in truth], bare().train()
    whole_loss = means(head.loss(raw, regions))["cross_entropy"]
    head = bare(pixel_stride=3).train()
    torch.manual_seed(0)
    found = {means(head.loss(raw, regions))["cross_entropy"].item() for _ in range(200)}
    assert len(found) == 9  # every beginning
    assert sum(found) / 9 == pytest.approx(whole_loss.item())  # each has as many pixels that count
    assert min(found) < whole_loss < max(found)
    assert means(head.eval().loss(raw, regions))["cross_entropy"] == whole_loss


def test_auxiliary_losses_are_added_at_their_weight():
    draw = torch.Generator().manual_seed(0)
    logits, rough = torch.randn(2, CLASSES, 8, 8, generator=draw), torch.randn(2, CLASSES, 4, 4, generator=draw)
    truth = torch.randint(CLASSES, (2, 8, 8), generator=draw)
    raw = told(logits)._replace(auxiliary=(Cells(rough, (8, 8)), Cells(logits, (8, 8))))
    found = means(bare().loss(raw, [Regions(one) for one in truth]))
    first = F.cross_entropy(F.interpolate(rough, size=(8, 8), mode="bilinear"), truth)
    main = F.cross_entropy(logits, truth)
    torch.testing.assert_close(found, {"cross_entropy": main, "auxiliary": 0.4 * (first + main)})


def test_masks_may_be_bytes():
    logits, truth = torch.randn(1, CLASSES, 6, 8), torch.randint(CLASSES, (6, 8))
    truth[:2] = 255
    long, byte = [Regions(truth)], [Regions(truth.byte())]
    assert means(bare().loss(told(logits), long)) == means(bare().loss(told(logits), byte))
    assert bare().counts(long) == bare().counts(byte) == {"cross_entropy": 32, "auxiliary": 32}


def test_what_it_refuses():
    with pytest.raises(DataError, match=r"a mask of \(5, 8\) pixels for an input of \(6, 8\)"):
        bare().loss(told(torch.zeros(1, CLASSES, 6, 8)), [Regions(torch.zeros(5, 8, dtype=torch.int64))])
    with pytest.raises(UsageError, match="auxiliary_weight is -1"):
        whole("setr", "pvt", auxiliary_weight=-1)
    with pytest.raises(UsageError, match='did you mean "dice"'):
        whole("setr", "pvt", losses={"dise": 1.0})
