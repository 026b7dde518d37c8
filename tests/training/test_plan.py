"""Predicted memory against measured memory, at more pictures and at other sizes than were measured for it."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from losses import gradients

import patchform as pf
from patchform import cli
from patchform.data.collate import split, to_device
from patchform.data.detection_transforms import training_objects
from patchform.data.listing import Item, Listing, Objects
from patchform.errors import UsageError
from patchform.records import Batch, Instances, Label, Preprocessing
from patchform.settings import AugmentationSettings, ModelSettings, Recipe, TrainingSettings
from patchform.training import cost, peaks, plan
from patchform.training.cost import Cost, Growth, Held, Load

CPU = torch.device("cpu")


def recipe(backbone, size=64, task="classification", head="linear", **training):
    return Recipe(
        task=task,
        preprocessing=Preprocessing(
            size=(size, size) if isinstance(size, int) else size, resize="crop" if task == "classification" else "fit"
        ),
        model=ModelSettings(backbone=backbone, head=head),
        augmentation=AugmentationSettings(scale=(1.0, 1.0)),
        training=TrainingSettings(**{"batch_size": 32, "device": "cpu", "ema": 0.9} | training),
    )


def boxes(*sizes, each=3):
    """A listing of pictures that do not exist, of these sizes."""
    one = np.array([[2, 2, 12, 14]], dtype=np.float32).repeat(each, 0)
    classes = np.arange(each) % 2
    items = [Item(Path(f"{i}.png"), (0, 1), objects=Objects(one, classes, size)) for i, size in enumerate(sizes)]
    return Listing(classes=("a", "b"), items=tuple(items), root=Path())


# ----------------------------------------------------------------------------------------------------------- counting


def test_storages_are_counted_once_and_until_they_are_freed():
    weight = torch.zeros(1000)
    with peaks.measured(CPU) as found:
        first = weight + 1  # 4000 bytes
        second = first.view(10, 100).t()[2:]
        second.mul_(2)
        weight.view(-1)  # not made here
        third = torch.cat([first, first])  # 8000
        del first, second
        fourth = third[:500].clone()  # 2000, when the first is gone
        del third
    assert (found.most, found.left) == (12_000, 2_000)
    assert fourth.nbytes == 2_000


def test_room_is_the_least_that_any_file_says(tmp_path, monkeypatch):
    monkeypatch.setattr(peaks, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(peaks, "_GROUP", tmp_path)
    everything = peaks.room(CPU)
    assert everything > 1 << 28
    (tmp_path / "meminfo").write_text("MemTotal: 9999 kB\nMemAvailable:    2000 kB\nHugePages_Total: 0\n")
    assert peaks.room(CPU) == 2000 << 10
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    assert peaks.room(CPU) == 2000 << 10
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.stat").write_text("file 9\ninactive_file 50000\n")
    assert peaks.room(CPU) == 150_000


# --------------------------------------------------------------------------------------------------------- prediction


def test_what_is_frozen_takes_no_gradients_no_moments_and_no_graph():
    made = recipe("vit/nano")
    free, still, thawed = (
        predicted(dataclasses.replace(made, model=dataclasses.replace(made.model, **model)))
        for model in ({}, {"frozen": "all"}, {"frozen": "all", "frozen_epochs": 1})
    )
    assert still.held.gradients < 0.1 * free.held.gradients
    assert still.held.moments < 0.1 * free.held.moments
    assert still.image(64 * 64) < 0.5 * free.image(64 * 64)
    assert still.held.weights == free.held.weights
    assert thawed.held == free.held  # at the end of the run


def meter_of(made, listing=None):
    listing = listing or Listing(classes=tuple(map(str, range(10))), items=(), root=Path())
    return cost.Meter(made, listing, made.preprocessing, CPU)


def real_peak(made, images, size, listing=None):
    """Bytes of a second step of the recipe as the loop takes it, which begins without gradients."""
    meter = meter_of(made, listing)
    for count in (1, images):
        meter.optimizer.zero_grad(set_to_none=True)
        with peaks.measured(CPU) as step:
            batch = to_device(meter._random_batch(count, size, padded=listing is not None), CPU)
            gradients(meter.model, batch, part=made.training.micro_batch)
            meter.optimizer.step()
    held = meter._held()
    return step.most + held.weights + held.moments + held.average


def predicted(made, listing=None, batches=None):
    sizes = batches or [[made.preprocessing.size] * made.training.batch_size]
    found = meter_of(made, listing).cost(sizes, 1 << 40, lambda done, count: None, [])
    assert found.held.saved == found.held.weights + found.held.moments + found.held.average
    return found._replace(held=found.held._replace(saved=0))


@pytest.mark.parametrize("backbone", ["vit/nano", "pvt/nano"])
@pytest.mark.parametrize("part", [0, 8])
def test_predictions_hold_at_more_pictures_than_were_measured(backbone, part):
    made = recipe(backbone, micro_batch=part)
    found, real = predicted(made), real_peak(made, 32, (64, 64))
    images = part or 32
    assert found.peak(Load(images, (64, 64), 32, (64, 64))) == pytest.approx(real, rel=0.2)
    # controls: another model of growth is far off
    for wrong in (found._replace(image=Growth(0, 0, 0)), found._replace(image=Growth(0, 2 * found.image.linear, 0))):
        assert wrong.peak(Load(images, (64, 64), 32, (64, 64))) != pytest.approx(real, rel=0.2)


def test_sizes_between_and_beyond_what_was_measured():
    """Explicit attention grows with the square of the pixels: a bias that is learnt keeps the fused kernel away."""
    made = recipe("vit/nano", size=96, batch_size=4)
    made = dataclasses.replace(
        made, model=ModelSettings(backbone="vit/nano", options={"position": "relative_bias", "patch": 4})
    )
    found = predicted(made, batches=[[(64, 64)] * 4, [(96, 96)] * 4])
    for side in (80, 120):
        real = real_peak(made, 4, (side, side), listing=None)
        assert found.peak(Load(4, (side, side), 4, (side, side))) == pytest.approx(real, rel=0.2)
    straight = found._replace(image=Growth(0, found.image(96**2) / 96**2, 0))  # control
    assert straight.peak(Load(4, (120, 120), 4, (120, 120))) != pytest.approx(real, rel=0.2)


def test_growth_goes_through_its_points():
    for small, large in (((10, 30.0), (20, 100.0)), ((10, 30.0), (20, 40.0)), ((10, 30.0), (20, 60.0))):
        found = Growth.through(small, large)
        assert found(small[0]) == pytest.approx(small[1])
        assert found(large[0]) == pytest.approx(large[1])
        assert min(found) >= 0
    assert Growth.through((10, 30.0), (20, 100.0)).square > 0 < Growth.through((10, 30.0), (20, 40.0)).constant
    steep = Growth.through((10, 1.0), (20, 100.0))  # steeper than a square: through the larger
    assert (steep(20), steep.linear) == (pytest.approx(100), 0)


def test_large_pictures_are_not_tried_where_they_cannot_fit(monkeypatch):
    monkeypatch.setattr(cost, "LARGE", 64 * 64)
    made, tried = recipe("vit/nano", size=128, batch_size=2), []
    monkeypatch.setattr(cost.Meter, "_step", spied(cost.Meter._step, tried))
    found = plan.plan(made, room=1 << 20)
    assert max(tried) == 64
    assert any("extrapolated" in note for note in found.notes)
    tried.clear()
    assert not any("extrapolated" in note for note in plan.plan(made, room=1 << 32).notes)
    assert max(tried) == 128
    assert found.ways[0].peak == pytest.approx(plan.plan(made, room=1 << 32).ways[0].peak, rel=0.2)


def spied(step, tried):
    def through(self, images, size, **options):
        tried.append(max(size))
        return step(self, images, size, **options)

    return through


# --------------------------------------------------------------------------------------------------------------- ways


def simple(each=1000):
    """A step of 100 bytes that are held and so many for each pixel."""
    return Cost(Held(100, 0, 0, 0, 0), 0, 0.0, Growth(0.0, each, 0.0), 0.0, 0.0)


def ways(made, batches, room):
    return list(plan._options(made, batches, simple(), room, {}))


def test_the_largest_parts_that_fit_are_proposed():
    made = recipe("vit/nano", batch_size=10)
    first, second = ways(made, [[(2, 2)] * 10], room=round(1.2 * (100 + 4 * 4000)))
    assert (first.settings, first.images, first.fits) == ({}, 10, False)
    assert (second.settings, second.fits) == ({"training.micro_batch": 4}, True)  # 4, 4, 2
    assert ways(made, [[(2, 2)] * 10], room=round(1.2 * (100 + 7 * 4000)))[1].images == 5  # 7 and 3 are no better
    assert len(ways(made, [[(2, 2)] * 10], room=1000)) == 1  # nothing fits
    assert [way.fits for way in ways(made, [[(2, 2)] * 10], room=10**6)] == [True]
    mixed = dataclasses.replace(made, augmentation=AugmentationSettings(scale=(1.0, 1.0), mix_token=1.0))
    pairs = [ways(mixed, [[(2, 2)] * 10], room=round(1.2 * (100 + part * 4000)))[1:] for part in (8, 7, 5, 1)]
    assert [[way.images for way in found] for found in pairs] == [[6], [6], [4], []]  # as it takes pairs, not 5
    smaller = recipe("vit/nano", batch_size=10, micro_batch=2)
    assert [way.images for way in ways(smaller, [[(2, 2)] * 10], room=10**6)] == [2, 10]


def test_pixels_at_once_bound_the_padding():
    batches = [[(2, 8), (8, 2), (2, 2), (2, 2)], [(2, 2)] * 4]
    made = recipe("vit/nano", batch_size=4, micro_batch=2)
    found = ways(made, batches, room=round(1.2 * (100 + 64_000)))
    assert (found[0].size, found[0].images, found[0].fits) == ((8, 8), 2, False)  # all padding stays without a bound
    bound = found[-1]
    assert list(bound.settings) == ["training.pixels_at_once"]
    assert bound.fits
    loads = cost.loads(batches, 2, bound.settings["training.pixels_at_once"])
    assert max(load.images * math.prod(load.size) for load in loads) <= 64


def test_loads_are_what_split_makes():
    sizes = [(40, 30), (20, 60), (64, 16), (8, 8), (64, 64)]
    padding = torch.ones(5, 64, 64, dtype=torch.bool)
    for row, (height, width) in zip(padding, sizes):
        row[:height, :width] = False
    batch = Batch(
        torch.zeros(5, 3, 64, 64), tuple(Label(torch.tensor([0])) for _ in sizes), ("",) * 5, ((1, 1),) * 5, padding
    )
    for part, pixels in ((0, 0), (2, 0), (0, 4000), (2, 5000), (1, 10)):
        made = {(len(piece.images), tuple(piece.images.shape[-2:])) for piece in split(batch, part, pixels)}
        found = {(load.images, load.size) for load in cost.loads([sizes], part, pixels)}
        assert found == (made if pixels or 5 % (part or 5) == 0 else {max(made)})


@pytest.mark.parametrize(
    ("resize", "change"),
    [
        ("fit", {"scale": (0.5, 1.7)}),
        ("keep", {"scale": (0.5, 1.7)}),
        ("fit", {"scale": (1.0, 1.0)}),
        ("keep", {"sizes": (20, 40)}),
        ("fit", {"sizes": (20, 30)}),
        ("squash", {}),
        ("native", {}),
        ("fit", {"mosaic": 0.5, "scale": (0.5, 1.5)}),
    ],
)
def test_no_draw_is_larger_than_the_bound(resize, change):
    shape, dice = Preprocessing(size=(32, 48), resize=resize), np.random.default_rng(0)
    made = Recipe(task="detection", augmentation=AugmentationSettings(**change))
    transform = training_objects(shape, made.augmentation)
    torch.manual_seed(0)
    reached = 0.0
    for _ in range(12):
        size = tuple(dice.integers(16, 90, 2).tolist())
        bound = plan._largest(made, shape, size)
        picture = torch.zeros(3, *size), Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
        for _ in range(8):
            image, _ = transform(*picture, lambda picture=picture: picture)
            assert math.prod(image.shape[-2:]) <= math.prod(bound)
            reached = max(reached, math.prod(image.shape[-2:]) / math.prod(bound))
    assert reached > 0.9


def test_windows_are_proposed_for_a_large_picture():
    model = ModelSettings(backbone="vit/s16", options={"drop_path": 0.2, "summary": "mean"})
    found = plan._windowed(model, Preprocessing(size=(512, 512)))
    assert found.backbone == "vit_det/b"
    assert found.options == {"patch": 16, "width": 384, "depth": 12, "heads": 6, "drop_path": 0.2}
    assert plan._windowed(model, Preprocessing(size=(224, 224))) is None
    assert plan._windowed(ModelSettings(backbone="swin/t"), Preprocessing(size=(512, 512))) is None


# ------------------------------------------------------------------------------------------------------------ in whole


@pytest.mark.slow
def test_the_command_says_what_fits_and_leaves_nothing(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "classification", "--plan", "--data", str(pictures), "--preprocessing.size", "32"]
    words += ["--model.backbone", "vit/nano", "--training.device", "cpu", "--training.batch_size", "16"]
    assert cli.main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ways"][0] | {"peak": 0} == {"settings": {}, "images": 16, "size": [32, 32], "peak": 0, "fits": True}
    assert found["ways"][1]["settings"] == {"model.checkpointing": True}
    assert found["ways"][1]["peak"] < found["ways"][0]["peak"]
    monkeypatch.setattr(peaks, "room", lambda device: 1 << 20)
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "nothing fits" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_every_task_without_data(tmp_path):
    small, training = {"resize": "fit", "size": 64}, {"batch_size": 4, "device": "cpu"}
    detector = {"channels_inside": 32, "norm": "layer", "masks": {"convolutions": 1, "channels": 16}}
    for task, head, options in (
        ("semantic_segmentation", "semantic_fpn", {}),
        ("instance_segmentation", "mask_rcnn", detector),
    ):
        model = {"backbone": "pvt/nano", "head": head, "head_options": options}
        found = pf.plan(Recipe(task=task), preprocessing=small, model=model, training=training)
        assert found.ways[0].peak > sum(found.held) > found.held.saved > 0
        assert "no data given" in found.notes[0]
    with pytest.raises(UsageError, match="batch_size"):
        pf.plan(tiny.recipe("x", tmp_path), training={"batch_size": 0})


@pytest.mark.slow
def test_padded_pictures_of_a_detector():
    made = recipe("pvt/nano", size=(64, 96), task="detection", head="retinanet", batch_size=6)
    options = {"channels_inside": 32, "norm": "layer", "form": {"convolutions": 1}}
    made = dataclasses.replace(made, model=dataclasses.replace(made.model, head_options=options))
    listing = boxes((64, 96), (96, 64), (64, 64), (48, 96), (64, 90), (90, 64))
    batches = list(plan._batches(made, listing, made.preprocessing))
    found = predicted(made, listing, batches)
    for images, size in ((6, (64, 64)), (6, (96, 96))):
        real = real_peak(made, images, size, listing)
        assert found.peak(Load(images, size, images, size)) == pytest.approx(real, rel=0.2)
