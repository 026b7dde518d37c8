"""The model of a run that has not ended."""

import json
import shutil

import pytest
import torch
from PIL import Image

from patchform import cli
from patchform.errors import ModelFileError
from patchform.loading import load_weights
from patchform.model import build_model, describe, load, save
from patchform.records import Preprocessing
from patchform.weights import files
from patchform.weights.stopped import find_model

NAMES = ("cat", "dog")


def a_model(seed=0):
    torch.manual_seed(seed)
    return build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=NAMES,
        preprocessing=Preprocessing(size=(32, 32)),
    )


def checkpoint(folder, model, average=None):
    """As a run writes it."""
    description = describe(model)
    identity = description["architecture"] | {name: description[name] for name in ("classes", "preprocessing")}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with files.atomic_folder(folder) as unfinished:
        files.write_tensors(unfinished / "model.safetensors", model.state_dict())
        if average is not None:
            files.write_tensors(unfinished / "average.safetensors", average.state_dict())
        state = {"format": 1, "counters": {"step": 3}, "identity": identity | {"seed": 0, "average": False}}
        files.write_json(unfinished / "state.json", state)
    return folder


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True))


def opened(folder):
    said = []
    return load(folder, say=said.append), said


def test_the_best_so_far_is_taken(tmp_path):
    run = tmp_path / "run"
    checkpoint(run / "checkpoints" / "step-00000003", a_model(1))
    save(a_model(2), run / "best")
    with pytest.warns(UserWarning, match="its best so far"):
        load(run)
    model, said = opened(run)
    assert same(model, a_model(2))
    assert said == [f"{run} has not ended: the model is its best so far, best"]
    save(a_model(3), run)  # it ended
    model, said = opened(run)
    assert same(model, a_model(3))
    assert said == []


def test_a_copy_of_the_best_where_that_is_damaged(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    save(a_model(2), run / "best")
    save(a_model(4), run / "checkpoints" / "best-00000004")
    (run / "best" / "model.safetensors").write_bytes(b"cut")
    model, said = opened(run)
    assert same(model, a_model(4))
    assert "best-00000004" in said[0]


@pytest.mark.parametrize("averaged", [False, True])
def test_the_newest_whole_checkpoint_where_nothing_is_best(averaged, tmp_path):
    run = tmp_path / "run"
    average = a_model(7) if averaged else None
    for step in (1, 2, 3):
        checkpoint(run / "checkpoints" / f"step-0000000{step}", a_model(step), average)
    (run / "checkpoints" / "step-00000003" / "model.safetensors").write_bytes(b"cut")
    model, said = opened(run)
    assert same(model, a_model(7 if averaged else 2))
    assert "step-00000002, which no validation has chosen" in said[0]
    assert model.classes == NAMES
    assert not model.training
    model, said = opened(run / "checkpoints" / "step-00000001")
    assert same(model, a_model(7 if averaged else 1))
    assert "step-00000001" in said[0]
    with pytest.raises(ModelFileError, match="not an intact checkpoint"):
        load(run / "checkpoints" / "step-00000003")


def test_a_run_that_saved_nothing_says_how_to_go_on(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelFileError, match=r"has not ended and has no whole model yet.*resume"):
        load(tmp_path / "run")
    with pytest.raises(ModelFileError, match="not an intact model"):
        load(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.update(identity=None),
        lambda state: state.update(identity=[1]),
        lambda state: state["identity"].pop("head"),
        lambda state: state["identity"].update(classes="cat"),
        lambda state: state["identity"].update(backbone_options={"depth": 100_000}),
        lambda state: state["identity"].update(backbone="os/system"),
        lambda state: state["identity"].pop("preprocessing"),
    ],
)
def test_what_a_checkpoint_says_is_checked(change, tmp_path):
    folder = checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001", a_model())
    state = json.loads((folder / "state.json").read_text())
    change(state)
    (folder / "state.json").write_text(json.dumps(state))
    names = [file.name for file in folder.iterdir() if file.name != files.MANIFEST]
    sums = {name: {"bytes": (folder / name).stat().st_size, "sha256": files.sha256_of(folder / name)} for name in names}
    (folder / files.MANIFEST).write_text(json.dumps({"files": sums}))
    with pytest.raises(ModelFileError):
        opened(tmp_path / "run")


def test_weights_want_the_best_by_its_name(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    with pytest.raises(ModelFileError, match=r"has not ended.*resume it"):
        load_weights(a_model(), run)
    save(a_model(2), run / "best")
    with pytest.raises(ModelFileError, match=r"has not ended.*best"):
        load_weights(a_model(), run)
    model = a_model()
    load_weights(model, run / "best")
    assert same(model, a_model(2))


def test_windows_of_a_run_that_has_not_ended(tmp_path):
    checkpoint(tmp_path / "run" / "checkpoints" / "step-00000001", a_model())
    assert find_model(tmp_path / "run").description["architecture"]["task"] == "classification"


def test_commands_take_such_a_run_and_say_so(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    save(a_model(), tmp_path / "run" / "best")
    for name in NAMES:
        for part in ("train", "val"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            Image.new("RGB", (40, 30), "red" if name == "cat" else "blue").save(
                tmp_path / "data" / part / name / "1.png"
            )
    run, data = str(tmp_path / "run"), str(tmp_path / "data")
    for words in (
        ["predict", run, data],
        ["evaluate", run, "--data", data],
        ["probe", run, "--data", data, "--cache", "", "--json"],
        ["features", run, data, "--out", str(tmp_path / "f.safetensors")],
    ):
        assert cli.main(words) == 0
        assert capsys.readouterr().err.count("has not ended: the model is its best so far, best") == 1
    assert (tmp_path / "run" / "report.html").is_file()
    shutil.rmtree(tmp_path / "run" / "best")
    assert cli.main(["predict", run, data]) == 4
