"""The shell's side: what is printed, on which stream, with which exit code."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from patchform import cli, lookup
from patchform.commands import demo, evaluate, models, predict, train

SMALL = [
    "--preprocessing.size", "16", "--model.backbone", "vit/nano", "--model.options", "{patch: 8, width: 24, depth: 2}",
    "--training.epochs", "2", "--training.batch_size", "16", "--training.threads", "1", "--training.device", "cpu",
    "--training.loggers", "[]", "--schedule.warmup_epochs", "0",
]  # fmt: skip


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder, dice = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for name, level in (("dark", 40), ("light", 200)):
        (folder / name).mkdir()
        for index in range(20):
            pixels = np.clip(level + dice.normal(0, 15, (18, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def run(photos, tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    code = cli.main(["train", "classification", "--data", str(photos), "--name", "first", "--runs", str(runs), *SMALL])
    assert code == 0
    return runs / "first"


def test_help_is_quick_to_import_and_shows_an_example_for_every_verb(capsys):
    code = (
        "import sys\nfrom patchform import cli\ntry:\n    cli.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([m for m in ('torch', 'torchvision', 'numpy', 'PIL', 'matplotlib') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[]"
    for verb in (demo, models, train, evaluate, predict):
        assert verb.EXAMPLE in out
    for name in cli.VERBS:
        with pytest.raises(SystemExit) as stopped:
            cli.main([name, "--help"])
        assert stopped.value.code == 0
        assert "example: patchform" in capsys.readouterr().out


def test_a_run_is_evaluated_and_predicts(run, photos, tmp_path, capsys):
    capsys.readouterr()
    assert cli.main(["evaluate", str(run), "--data", str(photos), "--out", str(tmp_path / "e"), "--json"]) == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores["samples"] == 40
    assert (tmp_path / "e" / "report.html").is_file()
    source = photos / "dark" / "3.png"
    assert cli.main(["predict", str(run), str(source), "--out", str(tmp_path / "p")]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[0])
    assert line["label"] in ("dark", "light")
    assert 0 <= line["score"] <= 1


def test_one_bad_file_among_others_is_code_8(run, photos, tmp_path, capsys):
    (tmp_path / "bad.jpg").write_bytes(b"<html>not found</html>")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    capsys.readouterr()
    assert cli.main(["predict", str(run), str(tmp_path)]) == 8
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted("error" in line for line in lines) == [False, True]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["train", "no/such"], 2, "no recipe"),
        (["train", "classification", "--optimizer.lrr", "1"], 2, "did you mean optimizer.lr"),
        (["train", "classification", "--optimizer.lr", "-1", "--data", "."], 2, "optimizer.lr is -1"),
        (["train", "classification", "--data", "no/such/place"], 3, "no/such/place"),
        (["train", "classification", "--model.backbone", "swim/t", "--data", "{photos}"], 2, "did you mean"),
        (["evaluate", "no/such/run", "--data", "."], 4, "no/such/run"),
        (["predict", "{run}", "no/such/*.jpg"], 3, "no/such"),
        (["models", "no_such/*"], 2, "no backbone"),
        (["fly"], 2, "no such verb: patchform fly"),
        (["predict", "{run}", "x.jpg", "--plugin", "no/such"], 2, "plug-in"),
    ],
)
def test_an_error_is_one_line_with_its_code(words, code, message, run, photos, tmp_path, capsys):
    words = [word.format(run=run, photos=photos) for word in words]
    capsys.readouterr()
    assert cli.main([*words, *(["--runs", str(tmp_path)] if words[0] == "train" else [])]) == code
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("patchform: error E-")
    assert message in said[-1]


def test_errors_speak_json_too(capsys):
    assert cli.main(["train", "no/such", "--json"]) == 2
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["exit_code"] == 2
    assert error["kind"] == "E-usage"


def test_an_unforeseen_error_is_code_1_with_a_saved_traceback(monkeypatch, capsys):
    monkeypatch.setattr(models, "run", lambda arguments: 1 / 0)
    assert cli.main(["models"]) == 1
    said = capsys.readouterr().err
    assert "ZeroDivisionError" in said
    file = said.split()[-1]
    assert "1 / 0" in Path(file).read_text(encoding="utf-8")


def test_models_in_numbers(capsys):
    assert cli.main(["models", "vit/s16", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["parameters"] == 22_050_664
    assert row["multiply_adds"] == pytest.approx(4.599e9, rel=1e-3)
    assert cli.main(["models", "*/nano", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == lookup.backbones("*/nano")
    assert all(row["multiply_adds"] > 0 for row in rows)


def test_python_says_the_same(run, photos, tmp_path):
    import patchform as pf

    scores = pf.evaluate(run, photos, out=tmp_path / "out")
    assert scores.samples == 40
    (answer,) = pf.load(run).predict([photos / "light" / "0.png"])
    assert answer.error is None
    again = pf.train(
        "classification",
        data=photos,
        name="second",
        runs=tmp_path,
        progress=False,
        model={"backbone": "vit/nano", "options": {"patch": 8, "width": 24, "depth": 1}},
        training={"epochs": 1, "batch_size": 16, "threads": 1, "loggers": (), "device": "cpu"},
    )
    assert (again.folder / "model.json").is_file()
