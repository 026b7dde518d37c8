"""LoRA: peft's numbers, step after step; a plain model that computes the same; and all that a run keeps of it."""

import copy
import dataclasses

import peft
import pytest
import tiny
import torch
from losses import gradients
from torch import nn

from patchform import lookup
from patchform.distributed import SINGLE
from patchform.errors import ModelFileError, UsageError
from patchform.model import build_backbone, build_model, load
from patchform.records import Batch, Label, Preprocessing
from patchform.settings import LoRASettings, ModelSettings, Recipe
from patchform.training import adapters, checkpoint, freezing, loop
from patchform.training.learner import Learner
from patchform.training.schedule import RunLength
from patchform.weights import files

SIDE = 64
EVERY = ("qkv", "proj", "mlp")
BACKBONES = [name for name in lookup.names("backbones") if adapters.products(build_backbone(f"{name}/nano"))]


def model_of(backbone="vit/nano"):
    """All parameters and buffers at random, so that nothing hides behind a zero."""
    torch.manual_seed(0)
    frames = build_backbone(backbone).frames or 0
    preprocessing = Preprocessing(size=(SIDE, SIDE), frames=frames)
    task = "video_classification" if frames else "classification"
    model = build_model(task, backbone=backbone, head="linear", classes="abc", preprocessing=preprocessing)
    for name, parameter in model.named_parameters():
        scale = parameter.ndim == 1 and name.endswith("weight")  # of a norm
        nn.init.normal_(parameter, mean=float(scale), std=0.1)
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 2)
    return model


def batch_of(model, count=4, seed=1):
    frames, numbers = model.preprocessing.frames, torch.Generator().manual_seed(seed)
    images = torch.rand(count, *(frames,) * (frames > 0), 3, SIDE, SIDE, generator=numbers)
    targets = tuple(Label(torch.tensor([number % 3])) for number in range(count))
    return Batch(images, targets, ("",) * count, ((SIDE, SIDE),) * count)


def lora(model, products=EVERY, rank=4, alpha=6.0, dropout=0.0, **more):
    """The settings of a model that was given the adapter, and `up` at random: at 0 it would be none."""
    options = LoRASettings(rank=rank, alpha=alpha, dropout=dropout, products=products)
    settings = ModelSettings(backbone="vit/nano", adapter="lora", lora=options, **more)
    adapters.add(model, settings)
    for layer in adapters.adapted(model).values():
        nn.init.normal_(layer.up, std=0.1)
    return settings


def logits(model, batch):
    return model.head(model.features(batch))


def kinds_of(backbone):
    return tuple(kind for kind in EVERY if kind in {product.kind for product in adapters.products(backbone)})


# ----------------------------------------------------------------------------------------------------------------- peft


def with_peft(model, settings):
    """The same model under peft, its matrices those of ours."""
    names = [name for name, _ in adapters.adapted(model).items()]
    theirs = copy.deepcopy(adapters.merged(model))  # plain; its weights are then put back
    for name, layer in adapters.adapted(model).items():
        theirs.get_submodule(name).weight.data.copy_(layer.base.weight)
    config = peft.LoraConfig(
        r=settings.lora.rank, lora_alpha=settings.lora.alpha, lora_dropout=settings.lora.dropout, target_modules=names
    )
    peft.inject_adapter_in_model(config, theirs)
    theirs.head.requires_grad_(True)
    for name, layer in adapters.adapted(model).items():
        pair = theirs.get_submodule(name)
        pair.lora_A["default"].weight.data.copy_(layer.down)
        pair.lora_B["default"].weight.data.copy_(layer.up)
    return theirs


@pytest.mark.parametrize("backbone", BACKBONES)
def test_it_computes_and_learns_what_peft_does(backbone):
    model = model_of(f"{backbone}/nano").double()
    settings = lora(model, kinds_of(model.backbone))
    theirs, batch = with_peft(model, settings), batch_of(model)
    batch = batch._replace(images=batch.images.double())
    own, other = logits(model.train(), batch), logits(theirs.train(), batch)  # peft is not seen by folded norms
    torch.testing.assert_close(own, other, rtol=1e-9, atol=1e-9)
    gradients(model, batch)
    gradients(theirs, batch)
    for name, layer in adapters.adapted(model).items():
        pair = theirs.get_submodule(name)
        for one, twin in ((layer.down, pair.lora_A), (layer.up, pair.lora_B)):
            assert one.grad.abs().max() > 0
            torch.testing.assert_close(one.grad, twin["default"].weight.grad, rtol=1e-8, atol=1e-9)
    learning = [sum(parameter.grad is not None for parameter in one.parameters()) for one in (model, theirs)]
    assert learning == [2 * len(adapters.adapted(model)) + 2] * 2


def test_it_learns_what_peft_does_step_after_step():
    model = model_of()
    settings = ModelSettings(adapter="lora", lora=LoRASettings(rank=4, alpha=6.0, products=EVERY))
    own = learner_of(model, recipe_of(settings))
    for layer in adapters.adapted(model).values():
        nn.init.normal_(layer.up, std=0.1)
    theirs, start = with_peft(model, settings), logits(model, batch_of(model)).detach()
    decayed = [p for p in theirs.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in theirs.parameters() if p.requires_grad and p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    theirs.train()
    for step in range(6):
        batch = batch_of(model, seed=step)
        own.take(step, batch, counted=True)
        loss = nn.functional.cross_entropy(logits(theirs, batch), torch.tensor([0, 1, 2, 0]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = [logits(one, batch_of(model)).detach() for one in (model, theirs)]
    assert (after[0] - after[1]).abs().max() < 1e-6 * after[0].abs().max()
    assert (after[0] - start).abs().max() > 0.01 * start.abs().max()
    for name, layer in adapters.adapted(model).items():
        pair = theirs.get_submodule(name)
        assert (layer.down - pair.lora_A["default"].weight).abs().max() < 1e-6
        assert (layer.up - pair.lora_B["default"].weight).abs().max() < 1e-6
        pair.scaling["default"] *= 1.01  # the control
    assert (logits(theirs, batch_of(model)) - after[0]).abs().max() > 1e-3 * after[0].abs().max()


def test_dropout_is_on_the_input_of_what_is_added_as_in_peft():
    model = model_of()
    settings = lora(model, dropout=0.5)
    theirs, batch = with_peft(model, settings), batch_of(model)
    seen = []
    for one, training in ((model, True), (theirs, True), (theirs, False)):
        torch.manual_seed(5)
        seen.append(logits(one.train(training), batch))
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-5, atol=1e-5)
    assert (seen[0] - seen[2]).abs().max() > 1e-2


def test_dropout_is_refused_where_a_layer_is_not_called():
    model = model_of("axial/nano")
    lora(model, ("qkv",), dropout=0.5)
    model.train()
    assert logits(model, batch_of(model)).isfinite().all()
    freezing.Freezing(model, Recipe(model=ModelSettings(adapter="lora")), 1)  # norms are folded into the product
    with pytest.raises(UsageError, match=r"computed with its norm, in one product.*model\.lora\.dropout 0"):
        logits(model, batch_of(model))
    assert logits(model.eval(), batch_of(model)).isfinite().all()


# ---------------------------------------------------------------------------------------------------- of one, the other


@pytest.mark.parametrize("backbone", BACKBONES)
def test_what_is_merged_is_plain_and_computes_the_same(backbone):
    model, base = model_of(f"{backbone}/nano").double().eval(), model_of(f"{backbone}/nano").double().eval()
    lora(model, ("all",))
    batch = batch_of(model)
    batch = batch._replace(images=batch.images.double())
    plain = adapters.merged(model).eval()
    assert plain.state_dict().keys() == base.state_dict().keys()
    assert not adapters.adapted(plain)
    assert all(parameter.requires_grad for parameter in plain.parameters())
    whole = logits(model, batch)
    torch.testing.assert_close(logits(plain, batch), whole, rtol=1e-9, atol=1e-9)
    with torch.no_grad():  # other kernels, some of which are given the weight and not the layer
        torch.testing.assert_close(logits(model, batch), whole, rtol=1e-9, atol=1e-9)
    assert (logits(base, batch) - whole).abs().max() > 1e-3  # the control
    state = adapters.state_of(model)
    assert all(torch.equal(state.plain[name], tensor) for name, tensor in plain.state_dict().items())
    lora(base, ("all",))
    base.load_state_dict(adapters.own_state(base, state))
    assert all(torch.equal(tensor, base.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_what_is_merged_has_all_its_digits():
    model = model_of()
    lora(model)
    plain = adapters.merged(model).state_dict()
    with torch.autocast("cpu", torch.bfloat16):
        other = adapters.merged(model).state_dict()
        layer = next(iter(adapters.adapted(model).values()))
        rounded = layer.base.weight + layer.scale * (layer.up @ layer.down)
    assert all(torch.equal(other[name], tensor) for name, tensor in plain.items())
    assert not torch.equal(rounded, layer.weight)  # the control


def test_it_starts_as_the_model_was():
    model, base = model_of(), model_of()
    adapters.add(model, ModelSettings(adapter="lora"))
    assert torch.equal(logits(model, batch_of(model)), logits(base, batch_of(base)))
    assert adapters.merged(base) is base


@pytest.mark.parametrize("backbone", ["swin/v2_nano", "twins/nano", "dual_vit/nano", "volo/nano", "axial/nano"])
def test_only_the_kinds_that_are_named_have_it(backbone):
    for kind in kinds_of(build_backbone(backbone)):
        model = model_of(backbone)
        lora(model, (kind,))
        names = adapters.adapted(model)
        assert names
        assert not any("position" in name or "reduction" in name or name.startswith("head") for name in names)
        assert all(("mlp" in name) == (kind == "mlp") for name in names)
        assert all(name.endswith("proj") == (kind == "proj") for name in names)


def test_frozen_layers_have_none():
    model = model_of()
    lora(model, frozen=1)
    assert adapters.adapted(model)
    assert all(name.startswith("backbone.blocks.1.") for name in adapters.adapted(model))


# --------------------------------------------------------------------------------------------------------- in training


def recipe_of(model, **training):
    made = Recipe(model=model)
    return dataclasses.replace(
        made,
        optimizer=dataclasses.replace(made.optimizer, lr=1e-3, weight_decay=0.05),
        schedule=dataclasses.replace(made.schedule, warmup_epochs=0.0, name="constant"),
        training=dataclasses.replace(made.training, epochs=4, **training),
    )


def learner_of(model, recipe):
    found = Learner(model, recipe, RunLength(2, 8), SINGLE)
    model.train()
    found.frozen.at(0)
    return found


def moved(model, before):
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("backbone", ["vit/nano", "botnet/nano", "hybrid/nano"])
def test_only_adapters_and_the_head_move(backbone):
    model = model_of(backbone)
    settings = ModelSettings(backbone=backbone, adapter="lora", lora=LoRASettings(products=("all",)))
    own = learner_of(model, recipe_of(settings, ema=0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for step in range(3):
        own.take(step, batch_of(model, seed=step), counted=True)
    changed = moved(model, before)
    assert changed == {name for name in before if name.endswith((".up", ".down")) or name.startswith("head.")}
    assert moved(own.average, before) == changed
    of_optimizer = {id(parameter) for group in own.optimizer.param_groups for parameter in group["params"]}
    named = dict(model.named_parameters())
    assert of_optimizer == {id(named[name]) for name in changed}


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    found = []
    for part in (0, 1, 3):
        model = model_of()
        lora(model)
        gradients(model, batch_of(model), part=part)
        found.append([parameter.grad for parameter in adapters.parameters(model)])
    assert all(gradient.abs().max() > 0 for gradient in found[0])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-6)


def adapted_run(pictures, runs, name="run", model=None, **sections):
    model = {"adapter": "lora", "lora": LoRASettings(rank=2)} | (model or {})
    return tiny.recipe(pictures, runs, name, model=model, **sections)


@pytest.fixture(scope="module")
def finished(pictures, tmp_path_factory):
    """A run that learnt everything, and one that adapts it; the middle block alone has rate enough to be seen."""
    runs = tmp_path_factory.mktemp("adapted")
    loop.train(tiny.recipe(pictures, runs, "first", training={"epochs": 1}), progress=False)
    start = {"init_from": str(runs / "first")}
    ended = loop.train(
        adapted_run(pictures, runs, "second", start, training={"ema": 0.5, "save_every": 7}), progress=False
    )
    return runs, ended


def test_a_run_leaves_a_plain_model(finished):
    runs, ended = finished
    first, second = (files.read_tensors(runs / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    changed = {name for name, tensor in second.items() if not torch.equal(tensor, first[name])}
    assert changed == {name for name in first if "qkv.weight" in name or name.startswith("head.")}
    assert not adapters.adapted(ended.model)
    model = load(runs / "second")
    batch = batch_of(model)._replace(images=torch.rand(4, 3, 32, 32))
    assert torch.equal(logits(model, batch), logits(ended.model, batch))


def test_its_checkpoints_are_plain_for_others_and_whole_for_itself(finished):
    runs, _ = finished
    path, _ = checkpoint.newest(runs / "second/checkpoints")
    plain, apart = (files.read_tensors(path / f"{name}.safetensors") for name in ("average", "average-apart"))
    assert {name.rpartition("qkv.")[2] for name in apart} == {"base.weight", "base.bias", "up", "down"}
    model = load(path, say=lambda note: None)  # as of a run that has not ended
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in plain.items())
    name = "backbone.blocks.0.attention.qkv"
    added = 4 * apart[f"{name}.up"] @ apart[f"{name}.down"]
    torch.testing.assert_close(plain[f"{name}.weight"], apart[f"{name}.base.weight"] + added)


@pytest.mark.parametrize(("setting", "value"), [("rank", 3), ("alpha", 9.0), ("products", ("mlp",))])
def test_another_adapter_is_another_run(finished, pictures, setting, value):
    runs, _ = finished
    other = {"lora": dataclasses.replace(LoRASettings(rank=2), **{setting: value}), "init_from": str(runs / "first")}
    recipe = adapted_run(pictures, runs, "second", other, training={"ema": 0.5})
    with pytest.raises(ModelFileError, match="the checkpoint is of another run: adapter differ"):
        loop.train(recipe, resume=True, progress=False)


def test_a_run_says_what_it_adapts(pictures, tmp_path, capsys):
    loop.train(adapted_run(pictures, tmp_path, training={"epochs": 1}), progress=False)
    said = capsys.readouterr().err
    assert "backbone    vit/nano, 66,768 parameters\n" in said
    assert "adapter     lora of rank 2, alpha 8, on qkv: 768 parameters in 2 products\n" in said
    assert "parameters  964 of 67,732 train\n" in said
    assert "frozen      the backbone but for its adapter\n" in said
    assert "the backbone's weights are random and stay so: --from" in said
    loop.train(tiny.recipe(pictures, tmp_path, "whole", training={"epochs": 1}), progress=False)
    assert "stay so" not in capsys.readouterr().err


REFUSED = [
    ({"frozen": "all"}, {}, "model.frozen is all under model.adapter lora; it must be a number of layers, which then"),
    ({"frozen": 2}, {}, r"the layers of vit/nano that are not frozen have no linear products \(model.lora.products\)"),
    ({"frozen_epochs": 1}, {}, "model.frozen_epochs is 1 under model.adapter lora; it must be 0"),
    ({}, {"optimizer": {"backbone_rate": 0.0}}, "optimizer.backbone_rate is 0 under model.adapter lora; it must be ab"),
    ({"backbone": "resnet/nano"}, {}, "the layers of resnet/nano .* no linear products .*; let it learn as a whole"),
    ({"backbone": "botnet/nano", "lora": LoRASettings(products=("mlp",))}, {}, "of kind mlp .*; name some of qkv, all"),
    ({"adapter": "none"}, {}, "model.lora is set and model.adapter is none; set model.adapter lora, or leave out"),
    ({"lora": LoRASettings(rank=0)}, {}, r"model.lora.rank is 0; it must be at least 1"),
    (
        {"lora": LoRASettings(products=("query",))},
        {},
        "model.lora.products cannot be .*; it is a list, each one of qkv",
    ),
    (
        {"head": "mae"},
        {"task": "pretraining"},
        "model.adapter is lora; it must be none: the backbone is what is learnt",
    ),
]


@pytest.mark.parametrize(("model", "sections", "words"), REFUSED)
def test_what_cannot_be_adapted_is_refused_before_data_are_read(tmp_path, model, sections, words):
    recipe = adapted_run("nowhere", tmp_path, model=model, **sections)
    with pytest.raises(UsageError, match=words):
        loop.train(recipe, progress=False)
    assert list(tmp_path.iterdir()) == []
