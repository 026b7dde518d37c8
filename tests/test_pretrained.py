"""A row of WEIGHTS becomes a model that preprocesses, computes and names classes as its file wants it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from reference import randomise
from safetensors.torch import load_file, save_file

import patchform as pf
from patchform import cli, lookup
from patchform.data.images import decode
from patchform.data.transforms import evaluation_transform
from patchform.errors import ModelFileError, UsageError
from patchform.loading import export_weights
from patchform.model import build_model, load, save
from patchform.published import vit
from patchform.published_models import class_names
from patchform.records import Batch, Preprocessing, WeightsFile

PREPROCESSING = Preprocessing(size=(32, 32), crop_share=0.5, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
OPTIONS = {"layer_scale": 0.1, "gelu": "tanh"}


def row(tag, **more):
    fields = {
        "variant": "nano",
        "tag": tag,
        "place": f"hub:owner/{tag}/model.safetensors",
        "megabytes": 0,
        "licence": "mit",
        "layout": "timm",
        "preprocessing": PREPROCESSING,
        "classes": 1000,
        "labels": "imagenet-1k",
        "backbone_options": OPTIONS,
    }
    return WeightsFile(**fields | more)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The model whose tensors are published under three names: whole, with other classes, and without a classifier."""
    rows = (row("whole"), row("wide", classes=5, labels=""), row("backbone", classes=0, labels=""))
    monkeypatch.setattr(vit, "WEIGHTS", rows)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network"))
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    models = {}
    for tag, count in (("whole", 1000), ("wide", 5), ("backbone", 1)):
        model = build_model(
            "classification",
            backbone="vit/nano",
            head="linear",
            classes=tuple(map(str, range(count))),
            preprocessing=PREPROCESSING,
            backbone_options=OPTIONS,
        )
        models[tag] = randomise(model).eval()
        home = tmp_path / f"models--owner--{tag}"
        folder = home / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0" * 40)
        tensors = export_weights(model, "timm")
        if tag == "backbone":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
        save_file(tensors, folder / "model.safetensors")
    return models


def logits(model):
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        return model.head(model.backbone(model.normalise(images)))


def test_it_is_the_published_model(source):
    said = []
    model = pf.pretrained("vit/nano.whole", say=said.append)
    assert torch.equal(logits(model), logits(source["whole"]))
    assert not torch.equal(logits(model), logits(source["wide"])[:, :1].expand(-1, 1000))  # control
    assert model.preprocessing == PREPROCESSING
    assert not model.training
    assert model.classes[:2] == ("tench", "goldfish")
    assert said == ["layout timm: 35 matched, 1 converted", "  matched, grid assumed square: backbone.position.table"]


def test_names_of_imagenet_are_all_different():
    names = class_names("imagenet-1k")
    assert len(names) == len(set(names)) == 1000
    assert class_names("") == class_names("imagenet-21k") == ()


def test_other_classes_go_by_name(source):
    model = pf.pretrained("vit/nano.whole", classes=("goldfish", "my cat"))
    theirs = source["whole"].head.classifier.weight
    assert torch.equal(model.head.classifier.weight[0], theirs[1])
    assert not (model.head.classifier.weight[1] == theirs).all(1).any()
    assert torch.equal(model.backbone.norm.weight, source["whole"].backbone.norm.weight)


def test_classes_without_names_have_to_be_named(source):
    with pytest.raises(UsageError, match="5 classes have no names"):
        pf.pretrained("vit/nano.wide")
    assert torch.equal(logits(pf.pretrained("vit/nano.wide", classes="abcde")), logits(source["wide"]))
    model = pf.pretrained("vit/nano.backbone", classes=("a", "b"))
    assert torch.equal(model.backbone.norm.weight, source["backbone"].backbone.norm.weight)
    assert model.head.classifier.out_features == 2


def test_without_a_classifier_the_backbone_comes_by_itself(source):
    model = pf.pretrained("vit/nano.backbone")
    theirs = source["backbone"]
    assert (model.architecture.head, model.classes, model.preprocessing) == ("none", (), PREPROCESSING)
    assert {f"backbone.{name}" for name in theirs.backbone.state_dict()} == set(model.state_dict())
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.head(model.backbone(images))
        assert torch.equal(found, theirs.backbone(images).summary)
        predicted = model.predict(Batch(images, (), ("", ""), ((32, 32),) * 2))
        (feature,) = model.head.to_outputs(found[:1])
    assert predicted[0].scores.shape == feature[0].shape
    with pytest.raises(UsageError, match="learns nothing"):
        model(Batch(images, (), ("", ""), ((32, 32),) * 2))


def test_rows_of_both_heads_of_a_distilled_model_go_by_name(source, tmp_path, monkeypatch):
    two = {"class_tokens": 2}
    more = {"layout": "timm_distilled", "backbone_options": two, "head_options": {"parts": (48, 48)}}
    monkeypatch.setattr(vit, "WEIGHTS", (row("distilled", **more),))
    theirs = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=class_names("imagenet-1k"),
        preprocessing=PREPROCESSING,
        backbone_options=two,
        head_options={"parts": (48, 48)},
    )
    save_file(export_weights(randomise(theirs).eval(), "timm_distilled"), tmp_path / "distilled.safetensors")
    model = pf.pretrained("vit/nano.distilled", source=tmp_path / "distilled.safetensors")
    assert torch.equal(logits(model), logits(theirs))
    some = pf.pretrained(
        "vit/nano.distilled", source=tmp_path / "distilled.safetensors", classes=("goldfish", "my cat", "tench")
    )
    assert torch.equal(logits(some)[:, [0, 2]], logits(theirs)[:, [1, 0]])
    assert not torch.isclose(logits(some)[:, 1:2], logits(theirs)).any()


def test_options_go_over_those_of_the_weights(source):
    for tag in ("whole", "backbone"):
        model = pf.pretrained(f"vit/nano.{tag}", options={"image_size": 48, "gelu": "none"})
        assert model.preprocessing.size == (48, 48)
        assert model.backbone.position.grid == (6, 6)
        assert model.architecture.backbone_options == {"layer_scale": 0.1, "gelu": "none", "image_size": 48}
    with pytest.raises(UsageError, match="did you mean"):
        pf.pretrained("vit/nano.whole", options={"gellu": "none"})
    for side in (0, "large", (8, 8, 8)):
        with pytest.raises(UsageError, match="an image size of"):
            pf.pretrained("vit/nano.whole", options={"image_size": side})


def test_a_backbone_of_published_weights_is_prepared_as_they_want_it(source, tmp_path):
    by_name = pf.load_backbone("vit/nano.whole")
    by_both = pf.load_backbone("vit/nano", weights="vit/nano.whole")
    path = tmp_path / "other.safetensors"
    save_file(export_weights(source["whole"], "timm"), path)
    by_file = pf.load_backbone("vit/nano.backbone", weights=path)
    for model in (by_name, by_both, by_file):
        assert model.preprocessing == PREPROCESSING
        assert all(
            torch.equal(tensor, source["whole"].state_dict()[name]) for name, tensor in model.state_dict().items()
        )
    with pytest.raises(UsageError, match="the weights are of vit/nano, not of vit/s16"):
        pf.load_backbone("vit/s16", weights="vit/nano.whole")
    with pytest.raises(UsageError, match="--weights FILE"):
        pf.load_backbone("vit/nano")
    with pytest.raises(ModelFileError, match=r"give --option layer_scale=1 \(in a recipe model.options\)"):
        pf.load_backbone("vit/nano", weights=path)


# --------------------------------------------------------------------------------------------------------- the verbs


@pytest.fixture
def photos(tmp_path):
    dice = np.random.default_rng(0)
    for name, level in (("dark", 60), ("light", 190)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(6):
            pixels = np.clip(level + dice.normal(0, 15, (34, 36, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{index}.png")
    return tmp_path / "photos"


def ran(capsys, *words, code=0):
    capsys.readouterr()
    assert cli.main([*map(str, words), "--device", "cpu"]) == code
    return capsys.readouterr()


def rows(model, photos):
    """Features that the verb has to give."""
    change = evaluation_transform(model.preprocessing)
    files = sorted(photos.rglob("*.png"))
    pixels = torch.stack([change(decode(file, model.preprocessing)) for file in files])
    with torch.no_grad():
        return model.backbone(model.normalise(pixels)).summary


def test_names_and_options_work_in_features_and_probe(source, photos, tmp_path, capsys):
    ran(capsys, "features", "vit/nano.backbone", photos, "--out", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")["features"]
    torch.testing.assert_close(found, rows(pf.pretrained("vit/nano.backbone"), photos))
    options = ("--option", "image_size=48", "--option", "gelu=none")
    ran(capsys, "features", "vit/nano.whole", photos, "--out", tmp_path / "b.safetensors", *options)
    other = load_file(tmp_path / "b.safetensors")["features"]
    whole = pf.load_backbone("vit/nano.whole", options={"image_size": 48, "gelu": "none"})
    torch.testing.assert_close(other, rows(whole, photos))
    assert not torch.allclose(other, rows(pf.load_backbone("vit/nano.whole"), photos))  # control
    save_file(export_weights(source["backbone"], "timm"), tmp_path / "w.safetensors")
    words = ("probe", "vit/nano", "--data", photos, "--cache", "", "--weights", tmp_path / "w.safetensors")
    assert "give --option layer_scale=1" in ran(capsys, *words, code=4).err
    given = ran(capsys, *words, "--option", "layer_scale=1", "--option", "gelu=tanh", "--json").out
    assert json.loads(given)["samples"] == 2
    named = ran(capsys, "probe", "vit/nano.backbone", "--data", photos, "--cache", "", "--json").out
    assert json.loads(named)["samples"] == 2


def test_a_folder_of_a_backbone_goes_everywhere_but_into_predict(source, photos, tmp_path, capsys):
    bare = tmp_path / "bare"
    assert cli.main(["weights", "convert", "vit/nano.backbone", "--to", "patchform", "--out", str(bare)]) == 0
    ran(capsys, "features", bare, photos, "--out", tmp_path / "a.safetensors")
    found = load_file(tmp_path / "a.safetensors")["features"]
    torch.testing.assert_close(found, rows(pf.pretrained("vit/nano.backbone"), photos))
    words = ("probe", bare, "--data", photos, "--cache", "", "--method", "linear", "--out", tmp_path / "probed")
    ran(capsys, *words)
    assert len(ran(capsys, "predict", tmp_path / "probed", photos).out.splitlines()) == 12
    for named in (bare, "vit/nano.backbone"):
        refused = ran(capsys, "predict", named, photos, code=2).err.splitlines()[-1]
        assert "a backbone without a head predicts nothing" in refused
    assert "has its own options" in ran(capsys, "features", bare, photos, "--out", tmp_path / "b.safetensors",
                                        "--option", "depth=3", code=2).err  # fmt: skip
    assert "a trained model has its own options" in ran(capsys, "predict", bare, photos, "--option", "depth=3",
                                                        code=2).err  # fmt: skip
    lines = ran(capsys, "predict", "vit/nano.whole", photos, "--option", "gelu=none").out.splitlines()
    assert len(lines) == 12
    refused = ["train", "pretraining", "--data", str(photos), "--runs", str(tmp_path), "--model.head", "none"]
    assert cli.main([*refused, "--model.backbone", "vit/nano"]) == 2
    assert "a backbone without a head learns nothing" in capsys.readouterr().err


TRAINED = ("--training.epochs", "1", "--preprocessing.size", "32", "--training.device", "cpu", "--optimizer.lr", "1e-9",
           "--optimizer.weight_decay", "0", "--training.ema", "0", "--no-page")  # fmt: skip


def test_training_starts_from_names_and_from_a_folder_of_a_backbone(source, photos, tmp_path, capsys):
    words = ["train", "classification", "--data", str(photos), "--runs", str(tmp_path), *TRAINED]
    ways = {
        "backbone": ["--model.backbone", "vit/nano.backbone"],
        "start": ["--model.init_from", "vit/nano.backbone"],
        "option": ["--from", "vit/nano.backbone", "--option", "drop_path=0.1"],
    }
    for name, way in ways.items():
        assert cli.main([*words, "--name", name, *way]) == 0
        assert "vit/nano as backbone of it was published: layer_scale 0.1, gelu" in capsys.readouterr().err
        model = load(tmp_path / name)
        options = {"layer_scale": 0.1, "gelu": "tanh"} | ({"drop_path": 0.1} if name == "option" else {})
        assert model.architecture.backbone_options == options
        assert model.preprocessing.std == PREPROCESSING.std
        torch.testing.assert_close(model.backbone.norm.weight, source["backbone"].backbone.norm.weight)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("task: classification\nmodel:\n  backbone: vit/nano.backbone\n  options: {gelu: none}\n")
    assert cli.main(["train", str(recipe), *words[2:], "--name", "recipe"]) == 0
    assert load(tmp_path / "recipe").architecture.backbone_options == {"layer_scale": 0.1, "gelu": "none"}
    bare = tmp_path / "bare"
    save(pf.pretrained("vit/nano.backbone"), bare)
    assert cli.main([*words, "--name", "refused", "--from", str(bare), "--model.backbone", "vit/ti16"]) == 4
    start = ["--model.init_from", str(bare), "--model.backbone", "vit/nano"]
    options = ["--option", "layer_scale=0.1", "--model.options.gelu", "tanh"]
    for name, way in {"typed": [*start, *options], "taken": ["--from", str(bare)]}.items():
        assert cli.main([*words, "--name", name, *way]) == 0
        started = load(tmp_path / name)
        torch.testing.assert_close(started.backbone.norm.weight, source["backbone"].backbone.norm.weight)
        assert started.architecture.backbone_options == {"layer_scale": 0.1, "gelu": "tanh"}
    assert started.preprocessing.std == PREPROCESSING.std
    assert f"vit/nano as it is in {bare}: layer_scale 0.1, gelu tanh, " in capsys.readouterr().err


def test_a_file_on_the_disk_serves_too(source, tmp_path):
    other = randomise(source["whole"], seed=1)
    save_file(export_weights(other, "timm"), tmp_path / "other.safetensors")
    model = pf.pretrained("vit/nano.whole", source=tmp_path / "other.safetensors")
    assert torch.equal(logits(model), logits(other))
    assert not torch.equal(logits(model), logits(pf.pretrained("vit/nano.whole")))  # control


def test_load_weights_takes_a_name(source):
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=class_names("imagenet-1k"),
        preprocessing=PREPROCESSING,
        backbone_options=OPTIONS,
    )
    pf.load_weights(model, "vit/nano.whole")
    assert torch.equal(logits(model.eval()), logits(source["whole"]))


def test_an_unknown_name_is_not_fetched(source):
    with pytest.raises(UsageError, match="no published weights"):
        pf.pretrained("vit/nano.hole")
    assert list(lookup.weights_files("vit")) == ["vit/nano.whole", "vit/nano.wide", "vit/nano.backbone"]
