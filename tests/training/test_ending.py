"""What a run says where it starts from nothing, when it has ended, and how it stands for those who list runs."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from patchform import cli, report
from patchform.commands import recipes, train
from patchform.commands.runs import list_runs
from patchform.errors import DivergedError, Interrupted
from patchform.settings import DataSettings
from patchform.training import advice, loop, standing
from patchform.training.ending import next_commands
from patchform.training.run import lock

WORDS = ["--preprocessing.size", "16", "--training.epochs", "2", "--training.threads", "1", "--training.device", "cpu"]
WORDS += ["--training.loggers", "[]", "--model.options", "{patch: 8, width: 24, depth: 2, heads: 3}"]


@pytest.fixture(scope="module")
def flat(tmp_path_factory):
    """Class folders alone, in a place whose name has a space."""
    return tiny.pictures(tmp_path_factory.mktemp("data") / "my photos", count=40) / "train"


def test_a_run_leads_on_from_its_first_line_to_its_last(flat, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "classification", "--data", str(flat), "--name", "first run", *WORDS]) == 0
    out, err = capsys.readouterr()
    (number,) = [number for number, line in enumerate(err.splitlines()) if "that starts from nothing" in line]
    note, command = err.splitlines()[number : number + 2]
    assert note.startswith("32 pictures are few ")
    assert note.endswith("(88 MB, apache-2.0, fetched once):")
    assert command.startswith("  patchform train classification/fine_tune --data ")
    words = cli._take_settings(shlex.split(command)[1:])  # it can be typed
    arguments = cli._parser(words[0]).parse_args(words[0])
    assert (arguments.data, getattr(arguments, "from")) == (str(flat), "vit/dinov2_reg_s14.lvd142m")
    assert recipes.resolve(arguments.recipe, {"model": {"init_from": getattr(arguments, "from")}}).model.frozen == "all"
    lines = {line[:12].strip() or "meaning": line[12:] for line in reversed(out.splitlines())}
    best = re.fullmatch(r"top1 (0\.\d{4}) on 8 pictures, in epoch ([12]) of 2 \(higher is better\)", lines["best"])
    assert best
    assert lines["meaning"] == "share of pictures whose best class is the right one"
    assert lines["model"] == "runs/first run"
    page = Path(lines["page"]).read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    evaluation = json.loads((tmp_path / "runs/first run/evaluation.json").read_text())
    assert evaluation["samples"] == 8  # what was held out, and nothing that was learnt from
    assert f"{evaluation['numbers']['top1']:.4f}" == best[1]
    assert lines["next"] == "patchform predict 'runs/first run' PICTURES --out answers/"
    (row,) = list_runs()
    assert (row.name, row.task, row.model, row.metric) == ("first run", "classification", "vit/nano", "top1")
    assert (row.epoch, row.epochs, row.state, f"{row.score:.4f}") == (2, 2, "finished", best[1])


def test_a_page_that_cannot_be_written_harms_no_run(flat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "write_report", lambda *_, **__: [][0])
    words = ["train", "classification", "--data", str(flat), "--runs", str(tmp_path), "--name", "a", *WORDS, "--json"]
    assert cli.main(words) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert (said["page"], said["metric"], said["run"]) == (None, "top1", str(tmp_path / "a"))
    assert (
        f"the page was not written (list index out of range); to write one: patchform evaluate {tmp_path / 'a'}" in err
    )
    monkeypatch.setattr(report, "write_report", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        train._write_page(loop.train(tiny.recipe(flat.parent, tmp_path, "b"), progress=False), lambda _: None)
    assert f"the run has ended, its model is in {tmp_path / 'b'}" in capsys.readouterr().err


def command(recipe, number=32):
    class Listing:
        thing = "picture"

        def __len__(self):
            return number

    class Data:
        listing = Listing()

    return next(iter(advice.start_notes(recipe, Data())[1:]), None)


def test_only_who_starts_from_nothing_with_little_is_told():
    recipe = recipes.resolve("detection", {"data": {"path": "cells", "validation_share": 0.3, "workers": 2}})
    assert command(recipe).endswith(
        "patchform train detection/fine_tune --data cells --data.validation_share 0.3 --from pvt/v2_b0.in1k"
    )
    assert command(recipe, advice.FEW) is None
    assert command(replace(recipe, model=replace(recipe.model, init_from="x"))) is None
    assert command(replace(recipe, preprocessing=replace(recipe.preprocessing, channels=4))) is None
    assert command(recipes.resolve("pretraining")) is None  # it is to learn from nothing
    named = replace(recipe, data=DataSettings(path="-x y", classes=("a b", "c")))
    assert "--data './-x y' --data.classes '[\"a b\", \"c\"]' --from" in command(named)


def test_what_to_type_next_is_right_for_the_task():
    def commands(name, thing="picture"):
        return list(next_commands(recipes_task(name), Path("runs/a"), thing))

    assert [line.split()[1] for line in commands("detection")] == ["predict", "evaluate", "export"]
    assert "VIDEOS" in commands("video_classification", "video")[0]
    assert [line.split()[1] for line in commands("pretraining")] == ["probe", "train", "features"]
    for name, thing in (("detection", "picture"), ("pretraining", "picture"), ("video_classification", "video")):
        for line in commands(name, thing):
            words = shlex.split(line)[1:]
            assert cli._parser(words).parse_args(words).verb == words[0]


def recipes_task(name):
    from patchform.tasks.base import find_task

    return find_task(name)


# ------------------------------------------------------------------------------------------------------------- states


def state(folder):
    row = standing.look(folder)
    return row and (row.state, row.why)


def test_how_runs_end_is_listed(pictures, tmp_path, monkeypatch, capsys):
    calm = {"training": {"epochs": 1, "save_every": 0}}

    def run(name, take=None, **sections):
        with monkeypatch.context() as patch:
            if take:
                patch.setattr(loop.Learner, "take", take)
            return loop.train(tiny.recipe(pictures, tmp_path, name, **calm | sections), progress=False)

    def interrupted(*_, **__):
        raise Interrupted(143)

    def failing(*_, **__):
        raise RuntimeError("a bug")

    run("done")
    with pytest.raises(Interrupted):
        run("stopped", interrupted)
    with pytest.raises(RuntimeError):
        run("failed", failing)
    with pytest.raises(DivergedError):
        run("diverged", optimizer={"lr": 1e3, "clip": 0.0}, loss={}, training={"epochs": 9, "precision": "bfloat16"})
    for name in ("done", "stopped", "failed", "diverged"):
        wanted = "finished" if name == "done" else name
        assert state(tmp_path / name) == (wanted, ""), name
    with lock(tmp_path / "stopped"):
        assert state(tmp_path / "stopped") == ("running", "")
    killed = json.loads((tmp_path / "stopped" / standing.STANDING).read_text()) | {"state": "running"}
    (tmp_path / "stopped" / standing.STANDING).write_text(json.dumps(killed))
    assert state(tmp_path / "stopped") == ("stopped", "")
    (tmp_path / "done" / "model.json").unlink()
    assert state(tmp_path / "done") == ("broken", "model.json is missing")
    (tmp_path / "done" / standing.STANDING).unlink()  # as a run of an earlier version
    assert state(tmp_path / "done") == ("stopped", "")
    capsys.readouterr()
    os.utime(tmp_path / "failed" / standing.STANDING, (time.time() + 60,) * 2)
    assert cli.main(["runs", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["run", "task", "model", "best", "score", "epoch", "age", "state"]
    assert lines[1].split()[:3] == ["failed", "classification", "vit/nano"]  # the newest
    assert lines[-1] == f"to go on: patchform train {tmp_path / 'failed'} --resume"
    assert cli.main(["runs", str(tmp_path / "failed"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["state"] == "failed"


@pytest.mark.parametrize("name", ["run.json", "recipe.yaml", "metrics.csv", "run.lock"])
def test_strange_folders_are_listed_or_passed_over(name, tmp_path, monkeypatch, capsys):
    for number, content in enumerate(
        (b"\xff\xfe\0", b"{}", b"[" * 5000, b"epoch,step\n1\n,,,\n", b"format: 1", b"1e999")
    ):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / name).write_bytes(content)
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / name)
    (tmp_path / "deep" / name).mkdir(parents=True)
    (tmp_path / "nothing").symlink_to(tmp_path / "gone")
    (tmp_path / "a file").write_text("")
    rows = list_runs(tmp_path)
    runs = name in ("run.json", "recipe.yaml")
    assert len(rows) == 8 * runs
    assert all(row.state in ("broken", "stopped") for row in rows)
    assert cli.main(["runs", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert ("cannot be read" in out) == runs
    assert out.startswith("run " if runs else "no runs in ")
    assert cli.main(["runs", str(tmp_path / "gone")]) == 2
    monkeypatch.chdir(tmp_path)
    assert cli.main(["runs"]) == 0
    assert "begin one: patchform train " in capsys.readouterr().out


def test_runs_are_listed_without_torch(tmp_path):
    code = (
        f"import sys; from patchform import cli; cli.main(['runs', {str(tmp_path)!r}]); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "False"
