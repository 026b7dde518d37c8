"""One step, and the run around it: what is computed, what is refused, what is left on disk."""

import csv
import errno
import json
import os

import pytest
import tiny
import torch
import yaml
from losses import gradients, total_loss
from safetensors.torch import save_file
from torch import nn

from patchform import lookup
from patchform import model as models
from patchform.data import samples
from patchform.data.collate import collate, split
from patchform.distributed import SINGLE
from patchform.errors import DataError, DivergedError, FolderError, ResourceError, UsageError
from patchform.evaluation import evaluate_run
from patchform.heads.base import Head
from patchform.model import Model, build_model
from patchform.records import Batch, Features, Instances, Label, Loss, Preprocessing, Sample
from patchform.training import checkpoint, learner, loop, saving, step
from patchform.training.schedule import RunLength
from patchform.weights import files


def model_of(*, backbone_options=None, **head_options):
    torch.manual_seed(0)
    return build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes="abc",
        preprocessing=Preprocessing(size=(32, 32)),
        backbone_options=backbone_options,
        head_options=head_options,
    )


def batch_of(count, *, soft=False):
    torch.manual_seed(1)
    targets = [Label(torch.tensor([index % 3]), torch.rand(3).softmax(0) if soft else None) for index in range(count)]
    return Batch(
        torch.randint(256, (count, 3, 32, 32), dtype=torch.uint8), tuple(targets), ("",) * count, ((32, 32),) * count
    )


def gradient(model, batch, part):
    model.zero_grad()
    loss, norm = gradients(model, batch, part=part)
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert norm == pytest.approx(flat.norm().item(), rel=1e-5)
    return loss, flat


# ---------------------------------------------------------------------------------------------------------- one step


class Exact(Head):
    """A weighted cross-entropy that stays in float64."""

    tasks = ("classification",)

    def __init__(self):
        super().__init__()
        self.classifier, self.weights = nn.Linear(48, 3), torch.tensor([0.2, 1.0, 5.0], dtype=torch.float64)

    def forward(self, features, targets=None):
        return self.classifier(features.summary)

    def loss(self, raw, targets):
        classes = torch.cat([target.classes for target in targets])
        total = nn.functional.cross_entropy(raw, classes, self.weights, reduction="sum")
        return {"loss": Loss(total, self.counts(targets)["loss"])}

    def counts(self, targets):
        return {"loss": self.weights[torch.cat([target.classes for target in targets])].sum()}

    def decode(self, raw, sizes):
        raise NotImplementedError


def exact():
    model = model_of()
    return Model(model.backbone, Exact(), classes="abc", preprocessing=model.preprocessing).double()


@pytest.mark.parametrize("part", [1, 3, 4, 8])
def test_parts_give_the_gradient_of_the_whole_batch(part):
    model, batch = exact(), batch_of(11)
    loss, whole = gradient(model, batch, 0)
    other, parted = gradient(model, batch, part)
    assert other == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("options", [{}, {"class_weights": [0.2, 1.0, 5.0], "smoothing": 0.1}])
def test_parts_give_the_gradient_of_the_whole_batch_under_the_linear_head(options, soft):
    model, batch = model_of(**options), batch_of(11, soft=soft)
    _, whole = gradient(model, batch, 0)
    _, parted = gradient(model, batch, 4)
    torch.testing.assert_close(parted, whole, rtol=0, atol=5e-6 * whole.abs().max().item())


class Pixels(nn.Module):
    """Each pixel by itself, so that padding changes none."""

    prefers_channels_last = False

    def __init__(self):
        super().__init__()
        self.mix = nn.Conv2d(3, 4, 1)

    def forward(self, images, *, padding=None):
        return Features(maps=(self.mix(images).tanh(),), strides=(1,), size=images.shape[-2:])


class Centers(Head):
    """Says of each object's box what its class is: the mean over its pixels decides."""

    tasks = ("detection",)

    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(4, 3)

    def forward(self, features, targets=None):
        (found,) = features.maps
        boxes = [target.boxes.int().tolist() for target in targets]
        means = [image[:, y:v, x:u].mean((1, 2)) for image, some in zip(found, boxes) for x, y, u, v in some]
        return self.classifier(torch.stack([*means, found.mean((0, 2, 3)) * 0]))

    def loss(self, raw, targets):
        classes = torch.cat([target.classes for target in targets])
        total = nn.functional.cross_entropy(raw[:-1], classes, reduction="sum")
        return {"loss": Loss(total + 0 * raw.sum(), self.counts(targets)["loss"])}

    def counts(self, targets):
        return {"loss": torch.tensor(sum(len(target.classes) for target in targets), dtype=torch.float64)}


@pytest.mark.parametrize(("part", "pixels", "pieces"), [(2, 0, 3), (0, 400, 3), (1, 700, 5), (0, 1, 5), (0, 10**6, 1)])
def test_parts_of_unequal_pictures_give_the_gradient_of_the_whole_batch(part, pixels, pieces):
    torch.manual_seed(0)
    model = Model(Pixels(), Centers(), classes="abc", preprocessing=Preprocessing()).double()
    samples = []
    for number, (height, width) in enumerate([(9, 12), (16, 8), (14, 15), (5, 30), (6, 6)]):
        boxes = torch.tensor([[1.0, 1, 4, 4], [2, 0, 6, 5], [0, 0, 5, 3]])[: (3, 1, 0, 2, 3)[number]]
        image = torch.randint(256, (3, height, width), dtype=torch.uint8)
        samples.append(Sample(image, Instances(boxes, torch.arange(len(boxes))), str(number), (height, width)))
    batch = collate(samples)
    seen = list(split(batch, part, pixels))
    assert len(seen) == pieces
    loss, whole = gradient(model, batch, 0)
    model.zero_grad()
    other, norm = gradients(model, batch, part=part, pixels=pixels)
    parted = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert other == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(parted, whole, rtol=1e-9, atol=1e-12)
    assert norm == pytest.approx(whole.norm().item())


def test_a_mean_of_means_would_be_another_gradient():
    model, batch = exact(), batch_of(11)
    _, whole = gradient(model, batch, 0)
    model.zero_grad()
    pieces = list(split(batch, 4))
    for piece in pieces:
        (total_loss(model(piece)) / len(pieces)).backward()
    naive = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert (naive - whole).abs().max() > 1e-3 * whole.abs().max()


def test_recomputing_activations_changes_no_gradient_nor_random_number():
    batch, found = batch_of(6), []
    for recomputed in (False, True):
        model = model_of(backbone_options={"drop_path": 0.5}, dropout=0.2).train()
        if recomputed:
            learner.recompute_activations(model)
        torch.manual_seed(2)
        found.append((*gradient(model, batch, 4), torch.get_rng_state()))
        with torch.no_grad():
            assert model.eval().predict(batch)
    assert found[0][0] == found[1][0]
    assert torch.equal(found[0][1], found[1][1])
    assert torch.equal(found[0][2], found[1][2])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_learner_recomputes_where_the_recipe_says_so(checkpointing):
    model, calls = model_of().train(), []
    made = tiny.recipe("", "", model={"checkpointing": checkpointing})
    own = learner.Learner(model, made, RunLength(1, 1), SINGLE)
    model.backbone.layers()[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    own.take(0, batch_of(2), counted=True)
    assert len(calls) == 1 + checkpointing


@pytest.mark.parametrize(
    ("training", "parts"), [({}, 1), ({"micro_batch": 2}, 3), ({"pixels_at_once": 3 * 32 * 32}, 2)]
)
def test_a_learner_takes_a_batch_in_the_parts_that_the_recipe_allows(training, parts):
    model, calls = model_of().train(), []
    own = learner.Learner(model, tiny.recipe("", "", training=training), RunLength(1, 1), SINGLE)
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    own.take(0, batch_of(6), counted=True)
    assert len(calls) == parts


def test_not_finite_is_noticed_wherever_it_is():
    model = model_of()
    assert saving.all_finite(model, None)
    for value in (float("nan"), float("inf")):
        with torch.no_grad():
            model.head.classifier.bias[1] = value
        assert not saving.all_finite(model, None)


# ------------------------------------------------------------------------------------------------------- a whole run


def test_a_run_learns_and_leaves_all_that_the_other_commands_need(pictures, tmp_path):
    recipe = tiny.recipe(pictures, tmp_path, name=None, training={"epochs": 12, "save_every": 0, "ema": 0.5})
    done = loop.train(recipe, progress=False)
    assert done.folder == tmp_path / "classification-vit-nano-1"
    assert done.step == 84
    assert done.best > 0.5
    rows = list(csv.DictReader((done.folder / "metrics.csv").read_text().splitlines()))
    assert [int(row["step"]) for row in rows] == list(range(7, 85, 7))
    assert max(float(row["top1"]) for row in rows) == done.best
    assert float(rows[done.best_step // 7 - 1]["top1"]) == done.best
    assert float(rows[-1]["train_loss"]) < 0.8 * float(rows[0]["train_loss"])
    assert len((done.folder / "steps.jsonl").read_text().splitlines()) == 84
    assert yaml.safe_load((done.folder / "recipe.yaml").read_text())["name"] == done.folder.name
    loaded = models.load(done.folder)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, done.model.state_dict()[name])
    assert evaluate_run(done.folder, pictures).numbers["top1"] == done.best
    assert files.verify(done.folder) == []
    assert [path.name for path in checkpoint.steps(done.folder / "checkpoints")] == ["step-00000077", "step-00000084"]
    with pytest.raises(FolderError):
        loop.train(tiny.recipe(pictures, tmp_path, name=done.folder.name), progress=False)


def test_a_set_smaller_than_the_batch_trains(tmp_path, capsys):
    few = tiny.pictures(tmp_path / "few", count=20)
    done = loop.train(tiny.recipe(few, tmp_path, training={"batch_size": 64}), progress=False)
    assert done.step == 2
    assert "batches of 20; 1 step an epoch" in capsys.readouterr().err


def test_it_stops_when_nothing_gets_better(pictures, tmp_path):
    done = loop.train(
        tiny.recipe(pictures, tmp_path, optimizer={"lr": 1e-9}, training={"epochs": 9, "patience": 2}), progress=False
    )
    assert done.step == 21
    assert done.best_step == 7


def test_it_starts_from_the_weights_of_another_run(pictures, tmp_path):
    first = loop.train(tiny.recipe(pictures, tmp_path, "first"), progress=False)
    recipe = tiny.recipe(
        pictures,
        tmp_path,
        "second",
        model={"init_from": str(first.folder)},
        optimizer={"lr": 1e-9, "weight_decay": 0.0},
    )
    second = loop.train(recipe, progress=False)
    for one, other in zip(first.model.parameters(), second.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_it_starts_from_published_weights(pictures, tmp_path, capsys):
    torch.manual_seed(7)
    published = lookup.published("vit").layouts["timm"].dump(model_of().state_dict(), sizes={"patch": 8, "channels": 3})
    file = tmp_path / "published.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in published.items()}, file)
    recipe = tiny.recipe(
        pictures, tmp_path, model={"init_from": str(file)}, optimizer={"lr": 1e-9, "weight_decay": 0.0}
    )
    done = loop.train(recipe)
    torch.testing.assert_close(done.model.backbone.norm.weight.data, published["norm.weight"], rtol=0, atol=1e-6)
    table = done.model.backbone.position.table.data
    torch.testing.assert_close(table, published["pos_embed"], rtol=0, atol=1e-6)
    assert "layout timm: " in capsys.readouterr().err


@pytest.mark.slow
def test_a_compiled_model_trains_alike(pictures, tmp_path):
    plain = loop.train(tiny.recipe(pictures, tmp_path, "plain"), progress=False)
    fast = loop.train(tiny.recipe(pictures, tmp_path, "fast", model={"compile": True}), progress=False)
    assert (fast.folder / "model.safetensors").stat().st_size == (plain.folder / "model.safetensors").stat().st_size
    for one, other in zip(plain.model.parameters(), fast.model.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-3)


def test_it_validates_as_often_as_asked_and_at_the_end(few, tmp_path):
    done = loop.train(tiny.recipe(few, tmp_path, training={"epochs": 5, "validate_every": 2}), progress=False)
    rows = csv.DictReader((done.folder / "metrics.csv").read_text().splitlines())
    assert [int(row["step"]) for row in rows if row["top1"]] == [2, 4, 5]


def test_tensorboard_events_are_written(pictures, tmp_path):
    done = loop.train(
        tiny.recipe(pictures, tmp_path, training={"loggers": ("tensorboard",), "epochs": 1}), progress=True
    )
    assert list((done.folder / "tensorboard").glob("events.*"))


# ------------------------------------------------------------------------------------------------- a run of one step


ONE_STEP = {
    "optimizer": {"name": "sgd", "lr": 0.5, "momentum": 0.0, "weight_decay": 0.0},
    "schedule": {"name": "constant", "warmup_epochs": 0.0},
}
"""A step is the learning rate times the gradient."""


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """20 pictures: one batch."""
    return tiny.pictures(tmp_path_factory.mktemp("few"), count=20)


@pytest.fixture(scope="module")
def beginning(few, tmp_path_factory):
    """A finished run to start from."""
    return loop.train(tiny.recipe(few, tmp_path_factory.mktemp("beginning")), progress=False).folder


def one_step(few, beginning, runs, name, steps=1, **sections):
    """The checkpoint behind the first step of a run, by default the only one, and what was logged of it."""
    sections = {key: {**ONE_STEP.get(key, {}), **sections.get(key, {})} for key in {*ONE_STEP, *sections}}
    sections["model"] = {"init_from": str(beginning), **sections.get("model", {})}
    sections["training"] = {"epochs": 1, **sections.get("training", {})}
    done = loop.train(tiny.recipe(few, runs, name, **sections), progress=False)
    assert done.step == steps
    line = json.loads((done.folder / "steps.jsonl").read_text().splitlines()[0])
    return done.folder / "checkpoints/step-00000001", {key: float.fromhex(line[key]) for key in ("loss", "norm", "lr")}


def moved_by(beginning, checkpoint_folder, part="model"):
    before, after = models.load(beginning).state_dict(), files.read_tensors(checkpoint_folder / f"{part}.safetensors")
    return torch.cat([(after[name] - tensor).flatten() for name, tensor in before.items()])


def test_a_run_clips(few, beginning, tmp_path):
    free, said = one_step(few, beginning, tmp_path, "free")
    assert said["norm"] > 0.02
    assert moved_by(beginning, free).norm().item() == pytest.approx(0.5 * said["norm"], rel=1e-3)
    clipped, again = one_step(few, beginning, tmp_path, "clipped", optimizer={"clip": 0.01})
    assert again == said  # what is logged is the norm before it is clipped
    assert moved_by(beginning, clipped).norm().item() == pytest.approx(0.5 * 0.01, rel=1e-3)


def test_a_run_has_a_rate_for_each_layer(few, beginning, tmp_path):
    alike, slower = (
        files.read_tensors(
            one_step(few, beginning, tmp_path, f"decay {decay}", optimizer={"layer_decay": decay})[0]
            / "model.safetensors"
        )
        for decay in (1.0, 0.5)
    )
    before = models.load(beginning).state_dict()
    for name, share in (("head.classifier.weight", 1.0), ("backbone.blocks.1.mlp.fc1.weight", 0.5),
                        ("backbone.blocks.0.mlp.fc1.weight", 0.25)):  # fmt: skip
        step, shorter = alike[name] - before[name], slower[name] - before[name]
        assert step.norm() > 1e-4
        torch.testing.assert_close(shorter, share * step, rtol=0, atol=1e-6)


def test_a_run_mixes(few, beginning, tmp_path):
    plain, again, mixed = (
        one_step(few, beginning, tmp_path, name, augmentation={"mixup": alpha})[1]
        for name, alpha in (("plain", 0.0), ("again", 0.0), ("mixed", 1.0))
    )
    assert plain == again
    assert mixed["loss"] > plain["loss"] + 0.01  # who has seen these pictures has not seen two in one


def test_a_run_casts_to_bfloat16(few, beginning, tmp_path):
    exact, rough = (
        one_step(few, beginning, tmp_path, precision, training={"precision": precision})[1]
        for precision in ("float32", "bfloat16")
    )
    assert 1e-6 < abs(rough["loss"] - exact["loss"]) < 0.05 * exact["loss"]


def test_a_run_validates_in_its_own_precision(few, beginning, tmp_path):
    found = []
    for precision in ("float32", "bfloat16"):
        still = {"optimizer": {"lr": 1e-9}, "training": {"precision": precision}}
        folder = one_step(few, beginning, tmp_path, precision, **still)[0].parents[1]
        (row,) = csv.DictReader((folder / "metrics.csv").read_text().splitlines())
        found.append(float(row["log_loss"]))
    exact, rough = found
    assert 1e-5 < abs(rough - exact) < 0.05 * exact


def test_a_run_averages_after_each_step(few, beginning, tmp_path):
    training = {"ema": 0.15, "epochs": 2, "save_every": 1, "keep": 2, "batch_size": 20}
    folder, _ = one_step(few, beginning, tmp_path, "averaged", steps=2, training=training)
    first, second = (moved_by(beginning, folder.with_name(f"step-0000000{step}")) for step in (1, 2))
    assert first.norm() > 1e-3
    average = moved_by(beginning, folder.with_name("step-00000002"), "average")
    # the first step's decay is 1 / 10, of the warm-up; the second one's 2 / 11 would be above the 0.15 that is set
    torch.testing.assert_close(average, 0.15 * 0.9 * first + 0.85 * second, rtol=0, atol=1e-6)


# --------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    ("section", "values"),
    [
        ("optimizer", {"lr": 0.0}),
        ("optimizer", {"lr": -1.0}),
        ("optimizer", {"lr": float("nan")}),
        ("optimizer", {"lr": 1e9}),
        ("optimizer", {"backbone_rate": -0.1}),
        ("schedule", {"name": "steps"}),
        ("schedule", {"name": "steps", "milestones": (0.0, 8.0)}),
        ("schedule", {"name": "steps", "milestones": (8.0,), "gamma": 0.0}),
        ("training", {"epochs": 0}),
        ("training", {"batch_size": 0}),
        ("training", {"ema": 1.0}),
        ("training", {"pixels_at_once": -1}),
        ("augmentation", {"sizes": (480, 0)}),
        ("augmentation", {"mosaic": 1.5}),
        ("augmentation", {"copy_paste": -0.1}),
        ("preprocessing", {"size": (0, 0)}),
    ],
)
def test_settings_out_of_range_stop_before_anything_is_read(tmp_path, section, values):
    with pytest.raises(UsageError, match=rf"{section}\.\w+ is .*; it must be"):
        loop.train(tiny.recipe("nowhere", tmp_path, **{section: values}), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_missing_data_leave_no_folder(tmp_path):
    with pytest.raises(DataError):
        loop.train(tiny.recipe(tmp_path / "nowhere", tmp_path / "runs"), progress=False)
    assert list((tmp_path / "runs").iterdir()) == []


def finite_files(folder):
    found = list(folder.rglob("*.safetensors"))
    for path in found:
        assert all(t.isfinite().all() for t in files.read_tensors(path).values() if t.is_floating_point()), path
    return found


def break_gradient(monkeypatch, number):
    """The gradient of one parameter becomes NaN at a step."""
    plain, calls = step.gradients, []

    def broken(model, batch, **options):
        calls.append(1)
        hooks = []
        if len(calls) == number:
            parameter = next(model.parameters())
            hooks.append(parameter.register_hook(lambda gradient: gradient * float("nan")))
        try:
            return plain(model, batch, **options)
        finally:
            for hook in hooks:
                hook.remove()

    monkeypatch.setattr(step, "gradients", broken)


def test_a_gradient_that_is_not_finite_stops_with_the_weights_before_it(pictures, tmp_path, monkeypatch):
    break_gradient(monkeypatch, 5)
    with pytest.raises(DivergedError, match=r"norm nan at step 5 \(learning rate 0\.\d+\) in \w/\d+\.png, ") as caught:
        loop.train(tiny.recipe(pictures, tmp_path, training={"ema": 0.9}), progress=False)
    assert caught.value.exit_code == 6
    last, _ = checkpoint.newest(tmp_path / "run/checkpoints")
    assert last.name == "step-00000004"
    assert len(json.loads((tmp_path / "run/diverged.json").read_text())["files"]) == 32
    assert len(finite_files(tmp_path / "run")) == 8


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_rate_that_is_far_too_high_leaves_only_finite_files(pictures, tmp_path, save_every):
    recipe = tiny.recipe(
        pictures,
        tmp_path,
        optimizer={"name": "sgd", "lr": 1000.0, "weight_decay": 10.0},
        training={"save_every": save_every, "epochs": 8},
    )
    with pytest.raises(DivergedError):
        loop.train(recipe, progress=False)
    finite_files(tmp_path / "run")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)
def test_out_of_memory_says_what_to_lower_and_smaller_parts_resume(pictures, tmp_path, monkeypatch, error):
    plain, calls = step.gradients, []

    def hungry(*arguments, **options):
        calls.append(1)
        if len(calls) == 7:
            raise error
        return plain(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(step, "gradients", hungry)
        with pytest.raises(
            ResourceError, match=r"out of memory with 32 images of 32x32 at once; lower training\.micro_b"
        ):
            loop.train(tiny.recipe(pictures, tmp_path), progress=False)
    recipe = tiny.recipe(pictures, tmp_path, training={"micro_batch": 8})
    assert loop.train(recipe, resume=True, progress=False).step == 14


def test_a_picture_that_vanishes_stops_the_run_after_it_was_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "CACHE_BYTES", 0)
    few, plain = tiny.pictures(tmp_path / "few", count=64), step.gradients

    def vanish(*arguments, **options):
        for path in (few / "train/h").glob("*.png"):
            path.unlink()
        return plain(*arguments, **options)

    monkeypatch.setattr(step, "gradients", vanish)
    with pytest.raises(DataError, match=r"h/\d+\.png"):
        loop.train(tiny.recipe(few, tmp_path, training={"batch_size": 16}), progress=False)
    assert checkpoint.newest(tmp_path / "run/checkpoints")[0].name == "step-00000001"


def full_disk(monkeypatch, after):
    """Every flush after so many fails."""
    plain, calls = os.fsync, []

    def fsync(descriptor):
        calls.append(1)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_stops_the_run_and_harms_nothing(pictures, tmp_path, monkeypatch):
    full_disk(monkeypatch, after=14)  # one checkpoint and a part of the next
    with pytest.raises(ResourceError, match=r"cannot write \d+ bytes \(No space left .* bytes are free\) in .*\.tmp-"):
        loop.train(tiny.recipe(pictures, tmp_path), progress=False)
    monkeypatch.undo()
    assert checkpoint.newest(tmp_path / "run/checkpoints")[0].name == "step-00000003"
    assert not list(tmp_path.rglob(".tmp-*"))
    assert loop.train(tiny.recipe(pictures, tmp_path), resume=True, progress=False).step == 14


def test_a_full_disk_can_be_lived_with_until_the_end(pictures, tmp_path, monkeypatch, capsys):
    full_disk(monkeypatch, after=14)
    with pytest.raises(ResourceError):  # the model itself
        loop.train(tiny.recipe(pictures, tmp_path, training={"on_save_error": "continue"}), progress=False)
    assert capsys.readouterr().err.count("not saved, going on: cannot write") >= 4
    assert len((tmp_path / "run/steps.jsonl").read_text().splitlines()) == 14
