"""The verb: numbers on stdout, a classifier on the disk, and the backbone run once for both methods."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from reference import randomise
from safetensors.torch import save_file

import patchform as pf
from patchform import cli
from patchform.backbones.vit import ViT
from patchform.commands.probe import EXAMPLE
from patchform.loading import export_weights
from patchform.model import build_model, save
from patchform.records import Preprocessing

LEVELS = {"dark": 40, "grey": 120, "light": 200}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Ten pictures to learn from and four to judge by, of each class."""
    folder, dice = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for part, count in (("train", 10), ("val", 4)):
        for name, level in LEVELS.items():
            (folder / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(level + dice.normal(0, 15, (34, 36, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    preprocessing = Preprocessing(size=(32, 32))
    return build_model(
        "classification", backbone="vit/nano", head="linear", classes=("x", "y"), preprocessing=preprocessing
    )


@pytest.fixture
def run(backbone, tmp_path):
    save(backbone, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def looked_at(monkeypatch):
    """Images that any backbone has seen."""
    seen, forward = [], ViT.forward
    monkeypatch.setattr(
        ViT, "forward", lambda self, images, **more: (seen.append(len(images)), forward(self, images, **more))[1]
    )
    return seen


def said(capsys, *words):
    capsys.readouterr()
    assert cli.main([*map(str, words), "--device", "cpu"]) == 0
    return capsys.readouterr().out


def test_both_methods_look_once_and_the_classifier_is_what_was_judged(run, photos, tmp_path, looked_at, capsys):
    words = ("probe", run, "--data", photos, "--cache", tmp_path / "features")
    knn = json.loads(said(capsys, *words, "--neighbours", "5", "--json"))
    assert sum(looked_at) == 42
    assert knn["settings"] == {"neighbours": 5, "temperature": 0.07}
    assert knn["samples"] == 12
    assert knn["folder"] is None
    assert knn["numbers"]["top1"] > 0.9
    linear = json.loads(said(capsys, *words, "--method", "linear", "--out", tmp_path / "probe", "--json"))
    assert sum(looked_at) == 42
    assert linear["numbers"]["top1"] > 0.9
    judged = json.loads(said(capsys, "evaluate", tmp_path / "probe", "--data", photos, "--json"))
    assert judged["tables"]["confusion"] == linear["tables"]["confusion"]
    assert judged["numbers"]["log_loss"] == pytest.approx(linear["numbers"]["log_loss"], rel=1e-4)
    assert judged["numbers"]["log_loss"] != pytest.approx(knn["numbers"]["log_loss"], rel=1e-4)  # control
    text = said(capsys, *words, "--method", "linear")
    assert re.search(rf"^top1 +{linear['numbers']['top1']:.4f}$", text, re.MULTILINE)
    assert re.search(rf"^decay +{linear['settings']['decay']:g}$", text, re.MULTILINE)


def test_tokens_and_last_blocks_are_judged_and_kept_apart(run, photos, tmp_path, looked_at, capsys):
    words = ("probe", run, "--data", photos, "--cache", tmp_path / "features", "--json")
    attentive = json.loads(said(capsys, *words, "--method", "attentive"))
    assert attentive["settings"] == {"epochs": 60}
    assert attentive["numbers"]["top1"] > 0.9
    for number, (method, layers) in enumerate((("linear", 2), ("linear", 1), ("knn", 2)), start=2):
        blocks = json.loads(said(capsys, *words, "--method", method, "--layers", layers))
        assert blocks["numbers"]["top1"] > 0.9
        assert sum(looked_at) == 42 * min(number, 3)
    assert json.loads(said(capsys, *words, "--method", "attentive")) == attentive
    assert sum(looked_at) == 42 * 3


def test_a_backbone_with_weights_is_the_same_backbone(run, backbone, photos, tmp_path):
    save_file(export_weights(backbone, "timm"), tmp_path / "w.safetensors")
    options = {"cache": None, "device": "cpu"}
    named = pf.probe("vit/nano", photos, weights=tmp_path / "w.safetensors", **options)
    assert named.scores.numbers == pytest.approx(pf.probe(run, photos, **options).scores.numbers)
    save_file(
        export_weights(
            randomise(build_model("classification", backbone="vit/nano", head="linear", classes=("x", "y"))), "timm"
        ),
        tmp_path / "other.safetensors",
    )
    other = pf.probe("vit/nano", photos, weights=tmp_path / "other.safetensors", **options)
    assert other.scores.numbers["log_loss"] != named.scores.numbers["log_loss"]  # control


def test_without_a_validation_set_some_are_held_out(run, photos, tmp_path):
    sentences, steps = [], []
    found = pf.probe(
        run,
        photos / "train",
        method="linear",
        cache=None,
        device="cpu",
        batch_size=10,
        say=sentences.append,
        progress=lambda *step: steps.append(step),
    )
    assert found.scores.samples == 6
    assert any("held out" in sentence for sentence in sentences)
    assert steps == [
        ("training pictures", 10, 24),
        ("training pictures", 20, 24),
        ("training pictures", 24, 24),
        ("validation pictures", 6, 6),
    ]


def test_bad_pictures_stop_it_or_are_left_out(run, photos, tmp_path, capsys):
    bad = tmp_path / "data"
    for name in LEVELS:
        (bad / name).mkdir(parents=True)
        for source in (photos / "train" / name).iterdir():
            (bad / name / source.name).write_bytes(source.read_bytes())
    (bad / "grey" / "3.png").write_bytes(b"nothing")
    words = ["probe", str(run), "--data", str(bad), "--cache", "", "--device", "cpu"]
    assert cli.main(words) == 3
    assert "3.png" in capsys.readouterr().err
    assert cli.main([*words, "--skip-bad", "0.2"]) == 0
    assert "left out grey/3.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["vit/nano"], 2, "--weights FILE"),
        (["vit/nanoo", "--weights", "w"], 2, "did you mean"),
        (["{run}", "--weights", "w"], 2, "its own weights"),
        (["{photos}"], 4, "not an intact model"),
        (["{run}", "--out", "{run}"], 2, "make no model"),
        (["{run}", "--out", "{run}", "--method", "linear"], 5, "exists already"),
        (["{run}", "--out", "new", "--method", "attentive"], 2, "no head is an attentive probe; use the linear method"),
        (
            ["{run}", "--out", "new", "--method", "linear", "--layers", "2"],
            2,
            "no head sees several blocks, not 2 layers",
        ),
        (["{run}", "--method", "attentive", "--layers", "2"], 2, "leave out the number of layers"),
        (["{run}", "--layers", "3"], 2, "the last 3 blocks of 2; ask for one or more, and no more than there are"),
        (["{run}", "--layers", "0"], 2, "--layers: it is 0; it must be at least 1"),
        (["{run}", "--neighbours", "0"], 2, "--neighbours: it is 0; it must be at least 1"),
        (["{run}", "--method", "svm"], 2, "invalid choice"),
        (["{run}", "--device", "mps"], 2, "no mps device"),
    ],
)
def test_what_is_refused(words, code, message, run, photos, tmp_path, capsys):
    words = [word.format(run=run, photos=photos) for word in words]
    assert cli.main(["probe", *words, "--data", str(photos), "--cache", str(tmp_path / "c")]) == code
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["probe", "--help"])
    assert stopped.value.code == 0
    assert EXAMPLE in capsys.readouterr().out
