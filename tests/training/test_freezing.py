"""What is frozen: no gradient, no graph, no state, nothing that moves; and batch normalisation of any batch."""

import dataclasses

import pytest
import tiny
import torch
from losses import gradients
from torch import nn

from patchform import lookup
from patchform.distributed import SINGLE, Rank
from patchform.errors import UsageError
from patchform.model import build_backbone, build_model
from patchform.records import Batch, Label, Preprocessing
from patchform.settings import Recipe
from patchform.training import checkpoint, freezing, loop
from patchform.training.learner import Learner
from patchform.training.schedule import RunLength
from patchform.weights import files

SIDE = 64
BACKBONES = [name for name in lookup.names("backbones") if build_backbone(f"{name}/nano").frames is None]


def model_of(backbone="vit/nano", **options):
    torch.manual_seed(0)
    return build_model(
        "classification",
        backbone=backbone,
        head="linear",
        classes="ab",
        preprocessing=Preprocessing(size=(SIDE, SIDE)),
        backbone_options=options,
    )


def batch_of(count=4, side=SIDE, seed=1):
    images = torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(seed))
    targets = tuple(Label(torch.tensor([number % 2])) for number in range(count))
    return Batch(images, targets, ("",) * count, ((side, side),) * count)


def recipe(backbone_rate=1.0, clip=0.0, epochs=4, **model):
    made = Recipe()
    return dataclasses.replace(
        made,
        model=dataclasses.replace(made.model, **model),
        optimizer=dataclasses.replace(made.optimizer, lr=1e-2, backbone_rate=backbone_rate, clip=clip),
        schedule=dataclasses.replace(made.schedule, warmup_epochs=0.0),
        training=dataclasses.replace(made.training, epochs=epochs),
    )


def learner_of(model, made, epoch=2):
    found = Learner(model, made, RunLength(epoch, epoch * made.training.epochs), SINGLE)
    model.train()
    found.frozen.at(0)
    return found


def changed(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def copy_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# -------------------------------------------------------------------------------------------------------------- frozen


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("frozen", [1, "all"])
def test_what_is_frozen_stays_still_in_every_backbone(backbone, frozen):
    model = model_of(f"{backbone}/nano")
    own = learner_of(model, recipe(frozen=frozen))
    still = {id(tensor) for layer in model.backbone.layers()[: 1 if frozen == 1 else None] for tensor in tensors(layer)}
    names = {name for name, tensor in model.state_dict(keep_vars=True).items() if id(tensor) in still}
    assert names
    before = copy_of(model)
    assert own.take(0, batch_of(), counted=True).finite
    moved = changed(model, before)
    assert not moved & names
    assert any(name.startswith("head.") for name in moved)
    assert any(name.startswith("backbone.") for name in moved) == (frozen == 1)
    of_optimizer = {id(parameter) for group in own.optimizer.param_groups for parameter in group["params"]}
    assert not of_optimizer & still
    assert not any(layer.training for layer in model.backbone.layers()[0].modules())
    if frozen == "all":
        assert of_optimizer == {id(parameter) for parameter in model.head.parameters()}
        assert not model.features(batch_of()).maps[-1].requires_grad  # no graph


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def test_the_stem_is_frozen_with_the_first_layer_and_nothing_without():
    model = model_of()
    learner_of(model, recipe(frozen=1))
    backbone = model.backbone
    still = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert still == {name for name, _ in backbone.named_parameters() if not name.startswith(("blocks.1.", "norm."))}
    assert any(not name.startswith("blocks.") for name in still)
    outputs = []
    backbone.layers()[0].register_forward_hook(lambda *found: outputs.append(found[2]))
    model(batch_of())
    assert not outputs[0].requires_grad  # no graph
    free = model_of()
    learner_of(free, recipe())
    assert all(parameter.requires_grad for parameter in free.parameters())


def test_the_clipped_norm_is_that_of_what_moves():
    model = model_of("resnet/nano")
    learner_of(model, recipe(frozen="all"))
    _, norm = gradients(model, batch_of())
    head = torch.cat([parameter.grad.flatten() for parameter in model.head.parameters()])
    assert norm == pytest.approx(head.norm().item(), rel=1e-5)
    assert all(parameter.grad is None for parameter in model.backbone.parameters())


def test_a_rate_of_0_freezes():
    found = []
    for options in ({"backbone_rate": 0.0}, {"frozen": "all"}):
        model = model_of("resnet/nano")
        own = learner_of(model, recipe(**options))
        before = copy_of(model)
        for step in range(3):
            own.take(step, batch_of(), counted=True)
        assert changed(model, before) == {"head.classifier.weight", "head.classifier.bias"}
        found.append(copy_of(model))
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items())


def test_it_thaws_when_its_time_has_come():
    model = model_of("resnet/nano")
    own = learner_of(model, recipe(frozen="all", frozen_epochs=2))
    for step in range(6):
        before = copy_of(model)
        own.take(step, batch_of(), counted=True)
        moved = changed(model, before)
        assert any(name.startswith("backbone.") for name in moved) == (step >= 4)
        assert any("running_mean" in name for name in moved) == (step >= 4)
        state = {id(parameter) for parameter in own.optimizer.state}
        assert any(id(parameter) in state for parameter in model.backbone.parameters()) == (step >= 4)


def test_more_layers_than_there_are_are_refused():
    with pytest.raises(UsageError, match=r'model\.frozen is 9; this backbone has 2 layers; "all" is the whole of it'):
        learner_of(model_of(), recipe(frozen=9))


THAWING = {"model": {"backbone": "resnet/nano", "frozen": 2, "frozen_epochs": 1}, "training": {"ema": 0.9}}


class Cut(BaseException):
    """The end of a process, without one."""


@pytest.mark.parametrize("cut", [5, 11])  # two steps behind a save, before and after the thaw behind step 7
def test_a_run_resumes_to_the_same_bits_on_either_side_of_the_thaw(pictures, tmp_path, monkeypatch, cut):
    whole = loop.train(tiny.recipe(pictures, tmp_path, "whole", **THAWING), progress=False)
    passes = []

    def failpoint(name):
        passes.append(name)
        if len(passes) == cut:
            raise Cut

    made = tiny.recipe(pictures, tmp_path, "cut", **THAWING)
    with monkeypatch.context() as patched:
        patched.setattr(loop, "failpoint", failpoint)
        with pytest.raises(Cut):
            loop.train(made, progress=False)
    loop.train(made, resume=True, progress=False)
    first, second = (tmp_path / name / "steps.jsonl" for name in ("whole", "cut"))
    assert first.read_text() == second.read_text()
    last = [files.read_tensors(checkpoint.newest(tmp_path / name / "checkpoints")[0] / "model.safetensors")
            for name in ("whole", "cut")]  # fmt: skip
    assert all(torch.equal(tensor, last[1][name]) for name, tensor in last[0].items())
    assert whole.step == 14


# ------------------------------------------------------------------------------------------------- batch normalisation


def test_frozen_norms_keep_statistics_scales_and_shifts():
    model = model_of("resnet/nano")
    own = learner_of(model, recipe(norms="frozen"))
    before = copy_of(model)
    own.take(0, batch_of(), counted=True)
    norms = {name for name, module in model.backbone.named_modules() if isinstance(module, nn.BatchNorm2d)}
    moved = changed(model, before)
    assert not {name for name in moved if name.rpartition(".")[0] in norms}
    assert any("conv" in name for name in moved)
    batch = batch_of()
    _, whole = gradients(model, batch), flat(model)
    model.zero_grad()
    _, parted = gradients(model, batch, part=1), flat(model)
    assert (whole - parted).norm() < 1e-5 * whole.norm()  # so they are exact in parts


def flat(model):
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_batch_of_one_small_picture_trains_every_backbone(backbone):
    model = model_of(f"{backbone}/nano")
    own = learner_of(model, recipe())
    result = own.take(0, batch_of(1, side=32 if backbone == "resnet" else SIDE), counted=True)
    assert result.finite
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())


def test_the_last_batch_may_be_of_one_picture(tmp_path):
    few = tiny.pictures(tmp_path / "few", count=17)
    made = tiny.recipe(few, tmp_path, model={"backbone": "resnet/nano"}, training={"batch_size": 8})
    assert loop.train(made, progress=False).step == 6


def test_parts_of_batch_statistics_are_said_once(tmp_path, capsys):
    few = tiny.pictures(tmp_path / "few", count=16)
    sizes = {"batch_size": 8, "micro_batch": 4, "epochs": 1}
    words = "normalise by the statistics of a part of a batch"
    for name, backbone, norms, times in (
        ("said", "resnet/nano", "learn", 1),
        ("still", "resnet/nano", "frozen", 0),
        ("none", "vit/nano", "learn", 0),
    ):
        loop.train(tiny.recipe(few, tmp_path, name, model={"backbone": backbone, "norms": norms}, training=sizes))
        assert capsys.readouterr().err.count(words) == times


def test_parts_of_what_several_processes_normalise_together_are_refused():
    model, made = model_of("resnet/nano").train(), recipe(norms="synchronised")
    pair = Rank(0, 2)
    assert freezing.statistics_note(model, made, pair) is None
    learnt = dataclasses.replace(made, model=dataclasses.replace(made.model, norms="learn"))
    assert "a process's share" in freezing.statistics_note(model, learnt, pair)
    parted = dataclasses.replace(made, training=dataclasses.replace(made.training, micro_batch=4))
    with pytest.raises(UsageError, match=r"model\.norms synchronised needs each process's share of a batch at once"):
        freezing.statistics_note(model, parted, pair)
