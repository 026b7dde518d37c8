"""What every method of learning without labels promises, above every backbone. A new file is tested by being there."""

import pytest
import torch
from losses import gradients

from patchform import lookup
from patchform.errors import UsageError
from patchform.loading import load_weights
from patchform.model import Model, build_backbone, build_model, load, save
from patchform.records import Batch, Embedding, Label, Preprocessing
from patchform.settings import OptimizerSettings
from patchform.tasks.base import task_of
from patchform.training import optimizer
from patchform.training.preparation import seed_everything

FAMILIES = lookup.names("backbones")
VIDEO = {family for family in FAMILIES if build_backbone(f"{family}/nano").frames}
BACKBONES = [family for family in FAMILIES if family not in VIDEO]
METHODS = lookup.names("pretraining")
SMALL = {
    "mae": {"width": 16, "depth": 1, "heads": 4},
    "dino": {"outputs": 32, "hidden": 16, "bottleneck": 8, "frozen_epochs": 0},
}
SIDE = 64


def method(name, backbone="vit", **options):
    seed_everything(0)
    return build_model(
        "pretraining",
        backbone=f"{backbone}/nano",
        head=name,
        classes=(),
        preprocessing=Preprocessing(size=(SIDE, SIDE)),
        head_options=SMALL.get(name, {}) | options,
    )


def pictures(name, count=4):
    draw = torch.Generator().manual_seed(0)
    crops = (2,) if name == "dino" else ()
    images = torch.randint(256, (count, *crops, 3, SIDE, SIDE), generator=draw).byte()
    views = torch.randint(256, (count, 2, 3, SIDE // 2, SIDE // 2), generator=draw).byte() if crops else None
    targets = tuple(Label(torch.empty(0, dtype=torch.int64)) for _ in range(count))
    return Batch(images, targets, ("",) * count, ((SIDE, SIDE),) * count, views=views)


def one(batch):
    """Of the first crops alone, as they come to be judged."""
    return batch._replace(images=batch.images[:, 0] if batch.images.dim() == 5 else batch.images, views=None)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("name", METHODS)
def test_a_step_moves_the_backbone_and_the_result_is_an_ordinary_one(name, backbone, tmp_path):
    model, batch = method(name, backbone).train(), pictures(name)
    model.begin(step=0, steps=4, epoch=2)
    mover = optimizer.build(model, OptimizerSettings(lr=1e-3))
    optimizer.set_rate(mover, 1e-3)
    before = {key: tensor.clone() for key, tensor in model.backbone.named_parameters()}
    loss, norm = gradients(model, batch, part=0)
    assert 0 < loss < 100
    assert 0 < norm < float("inf")
    reached = {key for key, parameter in model.trained.named_parameters() if parameter.grad is not None}
    largest = max(parameter.grad.abs().max() for parameter in model.trained.parameters() if parameter.grad is not None)
    assert largest > 0
    mover.step()
    model.after_step(0)
    moved = {key for key, tensor in model.backbone.named_parameters() if not torch.equal(tensor, before[key])}
    assert moved
    assert moved <= reached
    found = model.eval().predict(one(batch))
    assert all(isinstance(vector, Embedding) and vector.scores.shape == (model.backbone.width,) for vector in found)

    save(model, tmp_path)
    again = load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    assert all(torch.equal(a.scores, b.scores) for a, b in zip(again.predict(one(batch)), found))
    assert task_of(again.architecture, again.head).record(found[0], ())["embedding"]
    classifier = build_model(
        "classification", backbone=f"{backbone}/nano", head="linear", classes="ab", preprocessing=model.preprocessing
    )
    report = load_weights(classifier, tmp_path)
    assert all(entry.name.startswith("head.") for entry in report.dropped)
    trained_backbone = classifier.backbone.state_dict()
    assert all(torch.equal(trained_backbone[key], tensor) for key, tensor in model.backbone.state_dict().items())


@pytest.mark.parametrize("name", METHODS)
def test_what_is_asked_for_is_checked(name):
    with pytest.raises(UsageError, match="no option of method"):
        method(name, widht=3)
    with pytest.raises(UsageError, match="looks at clips"):
        method(name, min(VIDEO))
    model, batch = method(name), pictures(name)
    other = batch._replace(images=batch.images[:, 0] if name == "dino" else batch.images[:, None], views=None)
    with pytest.raises(UsageError, match="crop"):
        model(other)


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_weigh_as_images(name):
    model, batch = method(name).train(), pictures(name, 6)
    counts = model.counts(batch.targets)
    assert all(loss.count == counts[name] == 6 for name, loss in model(batch).items())
    assert isinstance(model, Model)
    assert model.classes == ()


def test_a_method_that_is_not_there():
    with pytest.raises(UsageError, match='did you mean "mae"'):
        method("maee")
