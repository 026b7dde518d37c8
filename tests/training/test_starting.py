"""What a run takes from the weights that it is started from."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file

from patchform import cli, lookup
from patchform.commands import conversion, recipes
from patchform.descriptions import Preprocessing
from patchform.errors import ModelFileError
from patchform.loading import export_weights
from patchform.model import build_model, load, save
from patchform.tasks.base import find_task

FREE = {"apache-2.0", "mit", "bsd-3-clause"}
SHORT = ["--training.epochs", "1", "--training.threads", "1", "--training.device", "cpu", "--training.precision"]
SHORT += ["float32", "--training.tensorboard", "false", "--no-page"]


def grey():
    """A model of one's own whose backbone is no row, of grey pictures of 16 pixels."""
    torch.manual_seed(0)
    return build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=("x", "y"),
        preprocessing=Preprocessing(size=(16, 16), channels=1, resize="squash", mean=(0.3,), std=(0.2,)),
        backbone_options={"depth": 1, "patch": 4, "drop_path": 0.2},
        head_options={"smoothing": 0.1, "dropout": 0.2},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("own") / "first run"
    save(grey(), place)
    return place


def test_a_folder_says_its_backbone_its_head_and_how_it_sees(folder):
    recipe, origin = recipes.traced("classification", {"model": {"init_from": folder}})
    assert origin.name == "classification/fine_tune"
    assert (recipe.model.backbone, recipe.model.options) == ("vit/nano", {"depth": 1, "patch": 4})
    assert (recipe.model.head, recipe.model.head_options) == ("linear", {"dropout": 0.2})  # smoothing is the loss's
    seen = recipe.preprocessing
    assert (seen.size, seen.channels, seen.resize, seen.mean, seen.std) == ((16, 16), 1, "squash", (0.3,), (0.2,))
    assert origin.notes[0].startswith(f"vit/nano as it is in {folder}: depth 1, patch 4, head linear, size [16, 16], ")
    typed = {"model": {"init_from": folder, "head": "token_label"}, "preprocessing": {"size": 32, "mean": [0.5]}}
    recipe = recipes.traced("classification/small", typed)[0]
    assert (recipe.model.head, recipe.model.head_options, recipe.model.options["depth"]) == ("token_label", {}, 1)
    assert (recipe.preprocessing.size, recipe.preprocessing.mean) == ((32, 32), (0.5,))
    assert "width" not in recipe.model.options  # of the recipe's own sizes none is left


def test_another_task_takes_the_backbone_and_the_pixels_alone(folder):
    recipe = recipes.traced("semantic_segmentation", {"model": {"init_from": str(folder / "model.safetensors")}})[0]
    assert (recipe.model.backbone, recipe.model.options) == ("vit/nano", {"depth": 1, "patch": 4})
    assert recipe.model.head == "semantic_fpn"
    seen = recipe.preprocessing
    assert (seen.size, seen.resize, seen.channels, seen.mean) == ((192, 256), "native", 1, (0.3,))
    clips = recipes.traced("video_classification", {"model": {"init_from": folder}})[0].preprocessing
    assert (clips.size, clips.frames, clips.channels) == ((16, 16), 8, 1)


def test_what_is_named_stays_and_what_is_not_there_is_said(folder, tmp_path):
    named = recipes.traced("classification", {"model": {"init_from": folder, "backbone": "vit/s16"}})[0]
    assert (named.model.backbone, named.model.options, named.preprocessing.size) == ("vit/s16", {}, (224, 224))
    assert (named.preprocessing.channels, named.preprocessing.mean) == (1, (0.3,))  # as the weights have learnt them
    same = recipes.resolve("classification", {"model": {"init_from": folder, "backbone": "vit/nano"}})
    assert (same.model.options, same.preprocessing.size) == ({"depth": 1, "patch": 4}, (16, 16))
    own = tmp_path / "own.yaml"
    own.write_text(f"task: classification\nmodel: {{init_from: '{folder}'}}\n")  # in a recipe as on a command line
    assert recipes.resolve(own).model.options == {"depth": 1, "patch": 4}
    kept = recipes.resolve(recipes.resolve(own), {"training": {"epochs": 3}})  # as a resumed run has it
    assert kept.model == recipes.resolve(own).model
    with pytest.raises(ModelFileError, match=r"nothing to start from: there is no such .* in .*weights list"):
        recipes.traced("classification", {"model": {"init_from": tmp_path / "nothing"}})
    with pytest.raises(ModelFileError, match=r"in swin/t; published are swin/t\.ms_in1k, .*, swin/t\.torchvision_v1$"):
        recipes.traced("classification", {"model": {"init_from": "swin/t"}})
    damaged = tmp_path / "damaged"
    save(grey(), damaged)
    (damaged / "model.json").write_text("{}")
    with pytest.raises(ModelFileError, match="not an intact model"):
        recipes.traced("classification", {"model": {"init_from": damaged}})


def test_a_run_starts_from_a_folder_and_from_a_file(folder, pictures, tmp_path, monkeypatch, capsys):
    look = conversion.look  # of all backbones it would take seconds
    monkeypatch.setattr(conversion, "look", lambda source, prefix: look(source, prefix=prefix, model="vit/nano"))
    words = ["train", "classification", "--data", str(pictures), "--runs", str(tmp_path), *SHORT]
    assert cli.main([*words, "--name", "on", "--from", str(folder)]) == 0
    said = capsys.readouterr().err
    assert f"vit/nano as it is in {folder}: depth 1" in said
    assert "frozen      the backbone for 2 epochs, all of this run" in said
    assert "few for a model that starts from nothing" not in said
    for name, tensor in grey().backbone.state_dict().items():  # it stayed as it was
        assert torch.equal(load(tmp_path / "on").backbone.state_dict()[name], tensor), name
    file = tmp_path / "a file.safetensors"
    coloured = build_model("classification", backbone="vit/nano", head="linear", classes=("x",))
    save_file(export_weights(coloured, "timm"), file)
    more = ["--from", str(file), "--preprocessing.size", "32", "--name"]
    assert cli.main([*words, *more, "filed", "--model.backbone", "vit/nano"]) == 0
    assert torch.equal(load(tmp_path / "filed").backbone.norm.weight, coloured.backbone.norm.weight)
    capsys.readouterr()
    assert cli.main([*words, *more, "found"]) == 0  # which backbone it is of is looked for
    assert f"{file} fits vit/nano; how its pixels were scaled it does not say" in capsys.readouterr().err
    assert torch.equal(load(tmp_path / "found").backbone.norm.weight, coloured.backbone.norm.weight)
    nothing = tmp_path / "nothing.safetensors"
    save_file({"a": torch.zeros(3)}, nothing)
    assert cli.main([*words, "--name", "none", "--from", str(nothing)]) == 4
    assert f"weights show {nothing} says what is near" in capsys.readouterr().err
    assert cli.main([*words, *more, "other", "--model.backbone", "swin/nano"]) == 4
    assert capsys.readouterr().err.splitlines()[-1].startswith("patchform: error E-model: ")
    assert not (tmp_path / "other").exists()
    assert cli.main([*words, "--name", "none", "--from", str(tmp_path / "none.safetensors")]) == 4
    assert cli.main([*words, "--from", str(file), "--model.init_from", str(folder)]) == 2
    assert "which it is short for; give one of them" in capsys.readouterr().err
    again = [*words, "--name", "on", "--from", str(folder), "--resume", "--training.epochs", "2"]
    assert cli.main(again) == 0  # the command that began it, with --resume
    assert "resuming after step" in capsys.readouterr().err
    assert cli.main(["train", str(tmp_path / "on"), "--resume", "--from", str(file)]) == 2
    assert "a run that goes on has its weights already" in capsys.readouterr().err


def test_each_task_with_labels_can_be_fine_tuned_from_something_that_is_free_to_use():
    for name in lookup.names("tasks"):
        task = find_task(name)
        if not task.labelled:
            assert not task.suggested
            continue
        recipe, row = recipes.resolve(f"{name}/fine_tune"), lookup.weights_file(task.suggested)
        assert recipe.model.backbone == task.suggested.partition(".")[0]
        assert (recipe.model.frozen, recipe.model.init_from) == ("all", None)  # nothing is fetched that nobody named
        assert 0 < recipe.model.frozen_epochs < recipe.training.epochs
        assert recipe.optimizer.layer_decay < 1
        assert row.licence in FREE
        assert row.megabytes < 100
        assert not row.gated
        assert not row.by_hand
        text = (recipes.PACKAGED / f"{name}/fine_tune.yaml").read_text()
        assert re.match(r"# .*--from", text.partition("\ntask:")[0].replace("\n# ", " "))


@pytest.mark.parametrize("place", ["above", "below"])
def test_statistics_go_with_published_weights_however_the_backbone_is_named(place, tmp_path):
    def resolved(**model):
        text = "task: classification\n"
        if place == "below":
            text += f"model: {json.dumps(model)}\n"
        (tmp_path / "own.yaml").write_text(text)
        return recipes.traced(tmp_path / "own.yaml", {"model": model} if place == "above" else {})

    half, weights = (0.5, 0.5, 0.5), "vit/s16.augreg_in21k_ft_in1k"
    for model in ({"init_from": weights}, {"init_from": weights, "backbone": "vit/s16"}, {"backbone": weights}):
        recipe, origin = resolved(**model)
        assert (recipe.model.backbone, recipe.model.init_from, recipe.preprocessing.mean) == ("vit/s16", weights, half)
        assert origin.notes[0].startswith("vit/s16 as augreg_in21k_ft_in1k of it was published: mean [0.5, 0.5, 0.5]")
    other = resolved(init_from=weights, backbone="vit/s32")[0]
    assert (other.model.backbone, other.preprocessing.mean) == ("vit/s32", half)
    written = tmp_path / "recipe.yaml"  # of a run that goes on: as it was
    written.write_text(
        f"model: {{init_from: {weights}, backbone: vit/s16}}\npreprocessing: {{mean: null, std: null}}\n"
    )
    recipe, origin = recipes.traced(tmp_path)
    assert (recipe.preprocessing.mean, origin.notes) == (None, ())


def test_a_task_alone_means_fine_tuning_where_weights_are_named():
    started = recipes.traced("detection", {"model": {"backbone": "pvt/v2_b0.in1k"}})[1]
    assert started.name == "detection/fine_tune"
    assert recipes.traced("detection", {"model": {"backbone": "pvt/v2_b0"}})[1].name == "detection/small"
    assert recipes.traced("detection/small", {"model": {"init_from": "pvt/v2_b0.in1k"}})[1].name == "detection/small"
    assert recipes.traced("pretraining", {"model": {"init_from": "vit/s16.dino"}})[1].name == "pretraining/small"
