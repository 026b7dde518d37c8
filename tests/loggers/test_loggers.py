"""Loggers take a run's numbers, settings and end; and a run goes on without one that is lost."""

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from patchform import lookup
from patchform.errors import ResourceError, UsageError
from patchform.loggers.base import LoggedRun, Logger, hand_over, opened
from patchform.training.metrics_log import MetricsLog

SETTINGS = {"task": "classification", "training.epochs": 3, "model.options": {}}


@pytest.fixture
def wandb(monkeypatch):
    """A package of the name that notes what it is told."""
    told = []

    class Run:
        def __init__(self, **named):
            told.append(("init", named))

        def define_metric(self, *names, **named):
            told.append(("define_metric", names, named))

        def log(self, numbers):
            told.append(("log", numbers))

        def save(self, file, **named):
            told.append(("save", file))

        def finish(self, exit_code):
            told.append(("finish", exit_code))

    package = ModuleType("wandb")
    package.init, package.Settings, package.Image = Run, SimpleNamespace, lambda file: ("image", file)
    package.told = told
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


@pytest.fixture
def mlflow(monkeypatch):
    """Likewise."""
    told = []

    class Client:
        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            told.append(("experiment", name))
            return "7"

        def create_run(self, experiment, run_name):
            told.append(("run", experiment, run_name))
            return SimpleNamespace(info=SimpleNamespace(run_id="abc"))

        def log_batch(self, run, metrics=(), params=()):
            assert len(metrics) <= 1000
            assert len(params) <= 100
            told.append(("batch", run, list(metrics), list(params)))

        def log_artifact(self, run, file):
            told.append(("artifact", run, file))

        def set_terminated(self, run, status):
            told.append(("end", run, status))

    package, entities = ModuleType("mlflow"), ModuleType("mlflow.entities")
    package.MlflowClient, entities.Metric, entities.Param = Client, lambda *values: values, lambda *values: values
    package.told = told
    monkeypatch.setitem(sys.modules, "mlflow", package)
    monkeypatch.setitem(sys.modules, "mlflow.entities", entities)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return package


def log(folder, *loggers, step=0, **named):
    return MetricsLog(folder, step, step, loggers=loggers, settings=SETTINGS, **named)


def test_every_logger_is_one_file():
    assert lookup.names("loggers") == ["mlflow", "tensorboard", "wandb"]
    for name in lookup.names("loggers"):
        assert lookup.the_class("loggers", name, Logger).__doc__


def test_wandb_takes_numbers_over_the_step_and_goes_on_as_the_same_run(wandb, tmp_path):
    with log(tmp_path, "wandb") as writes:
        writes.step(1, loss=2.5)
        writes.epoch(1, 1, {"top1": 0.5, "top5": None})
    (_, init), (_, star, over), *logged, end = wandb.told
    assert (init["config"], init["name"]) == (SETTINGS, tmp_path.name)
    assert (init["settings"].save_code, init["settings"].disable_git, init["settings"].console) == (False, True, "off")
    assert (star, over) == (("*",), {"step_metric": "step"})
    assert logged == [("log", {"step": 1, "step/loss": 2.5}), ("log", {"step": 1, "epoch/top1": 0.5})]
    assert end == ("finish", 0)
    wandb.told.clear()
    log(tmp_path, "wandb", step=1).__exit__(None, None, None)
    assert wandb.told[0][1]["id"] == init["id"]
    wandb.told.clear()
    with pytest.raises(ZeroDivisionError), log(tmp_path, "wandb"):  # from the start: another one
        raise ZeroDivisionError
    assert wandb.told[0][1]["id"] != init["id"]
    assert wandb.told[-1] == ("finish", 1)


def test_mlflow_takes_numbers_in_batches(mlflow, tmp_path):
    with log(tmp_path, "mlflow") as writes:
        for step in range(1, 4):
            writes.step(step, loss=float(step), lr=0.1)
        assert not any(word == "batch" and metrics for word, *rest in mlflow.told for metrics in rest[1:2])
        writes.epoch(1, 3, {"top1": 0.5})
    told = mlflow.told
    assert told[:2] == [("experiment", "patchform"), ("run", "7", tmp_path.name)]
    assert told[2][3] == [("task", "classification"), ("training.epochs", "3"), ("model.options", "{}")]
    sent = [(name, value, step) for name, value, _, step in told[3][2]]
    assert len(sent) == 7
    assert sent[-1] == ("epoch/top1", 0.5, 3)
    assert told[-1] == ("end", "abc", "FINISHED")
    told.clear()
    log(tmp_path, "mlflow", step=3).__exit__(None, None, None)
    assert told == [("end", "abc", "FINISHED")]  # goes on, is not made anew


def test_tensorboard_shows_numbers_and_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(tmp_path / "a.png")
    logger = opened(["tensorboard"], LoggedRun("a", tmp_path, {}, 0))["tensorboard"]
    logger.numbers(3, {"epoch/top1": 0.25})
    logger.picture("confusion", tmp_path / "a.png")
    logger.close(failed=False)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("epoch/top1")] == [(3, 0.25)]
    assert (events.Images("confusion")[0].width, events.Images("confusion")[0].height) == (6, 4)


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_what_is_not_installed_is_said(name, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UsageError, match=rf"{name} is not installed.*pip install \"patchform\[{name}\]\""):
        lookup.the_class("loggers", name, Logger).check()
    with pytest.raises(UsageError, match="is not installed"):
        log(tmp_path, name)


def test_a_run_goes_on_without_a_logger_that_is_lost(wandb, mlflow, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(wandb, "init", lambda **named: 1 / 0)
    with log(tmp_path, "wandb", "mlflow", say=said.append) as writes:
        assert said == ["going on without the logger wandb: ZeroDivisionError: division by zero"]
        monkeypatch.setattr(
            mlflow.MlflowClient, "log_batch", lambda *a, **n: Path("/nowhere").read_text(encoding="utf-8")
        )
        writes.epoch(1, 1, {"top1": 0.5})
        assert said[1].startswith("going on without the logger mlflow: FileNotFoundError")
        writes.epoch(2, 2, {"top1": 0.75})
    assert len(said) == 2
    assert [row["top1"] for row in writes.rows] == [0.5, 0.75]


def test_a_full_disk_is_no_lost_logger(tmp_path, monkeypatch):
    """Control: what the disk refuses is told as of any other file."""
    writes = log(tmp_path, "tensorboard")
    monkeypatch.setattr(
        type(writes._loggers["tensorboard"]), "numbers", lambda *a: Path("/nowhere").read_text(encoding="utf-8")
    )
    with pytest.raises(ResourceError, match=r"cannot write.*tensorboard"):
        writes.step(1, loss=1.0)
    writes.__exit__(None, None, None)


def test_wandb_itself_offline(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with log(tmp_path, "wandb", say=pytest.fail) as writes:
        writes.step(1, loss=2.5)
        writes.epoch(1, 1, {"top1": 0.5})
        writes._loggers["wandb"].file(tmp_path / "metrics.csv")
    records = b"".join(file.read_bytes() for file in (tmp_path / "wandb").rglob("*.wandb"))
    assert b"epoch/top1" in records
    assert b"training.epochs" in records


def test_mlflow_itself_in_a_folder(tmp_path, monkeypatch):
    package = pytest.importorskip("mlflow", reason="mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    package.set_tracking_uri(f"file:{tmp_path / 'tracked'}")
    with log(tmp_path, "mlflow", say=pytest.fail) as writes:
        writes.step(1, loss=2.5)
        writes.epoch(1, 1, {"top1": 0.5})
        writes._loggers["mlflow"].file(tmp_path / "metrics.csv")
    identity = (tmp_path / "mlflow-id.txt").read_text().strip()
    kept = package.MlflowClient().get_run(identity)
    assert kept.data.metrics == {"step/loss": 2.5, "epoch/top1": 0.5}
    assert kept.data.params["training.epochs"] == "3"
    assert kept.info.status == "FINISHED"


class Numbers(Logger):
    """Has no place for pictures or files."""

    def __init__(self, run):
        super().__init__(run)
        NUMBERS.append(run.step)

    def numbers(self, step, numbers):
        """Leaves them."""

    def close(self, *, failed):
        """Nothing."""


NUMBERS = []


def test_the_page_and_pictures_reach_those_that_have_a_place_for_them(wandb, mlflow, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    import patchform as pf

    dice = np.random.default_rng(0)
    for number in range(20):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(dice.integers(0, 255, (40, 900, 3), np.uint8)).save(path)
    small = {"options": {"width": 24, "depth": 1, "heads": 2}}
    training = {"epochs": 1, "batch_size": 8, "threads": 1, "loggers": ["tensorboard", "wandb", "mlflow", Numbers]}
    settings = {"data": tmp_path / "photos", "model": small, "training": training, "runs": tmp_path, "progress": False}
    NUMBERS.clear()
    run = pf.train("classification/small", name="with page", **settings)
    names = [f"validation/{item.path.parent.name}/{item.path.name}" for item in run.data.splits.validation.items]
    assert len(names) == 4
    assert [told[1] for told in wandb.told if told[0] == "save"] == [str(run.folder / "report.html")]
    logged = [next(iter(told[1])) for told in wandb.told if told[0] == "log" and "step" not in told[1]]
    assert logged == [*names, "confusion"]
    assert [told[0] for told in wandb.told].count("init") == 2
    assert len({told[1]["id"] for told in wandb.told if told[0] == "init"}) == 1
    files = [Path(told[2]).name for told in mlflow.told if told[0] == "artifact"]
    assert files == [*(f"validation-{number}.png" for number in range(1, 5)), "confusion.png", "report.html"]
    assert [told[0] for told in mlflow.told].count("run") == 1
    events = EventAccumulator(str(run.folder / "tensorboard"))
    events.Reload()
    assert sorted(events.Tags()["images"]) == sorted([*names, "confusion"])
    assert {(shown.step, shown.width <= 720) for shown in events.Images(names[0])} == {(run.step, True)}
    assert events.Scalars("step/loss")[-1].step == run.step  # still there
    assert NUMBERS == [0]  # not opened again

    wandb.told.clear()  # control: without a page there is nothing to give
    pf.train("classification/small", name="without", page=False, **settings)
    assert not [told for told in wandb.told if told[0] == "save"]


def test_a_logger_that_is_lost_at_the_end_is_said(wandb, mlflow, tmp_path):
    (tmp_path / "report.html").write_text("page")
    said, run = [], LoggedRun("a", tmp_path, {}, 3)
    wandb.init = lambda **named: 1 / 0
    hand_over(["wandb", "mlflow"], run, pictures={}, files=[tmp_path / "report.html"], say=said.append)
    assert said == ["the logger wandb has not got the page and the pictures: ZeroDivisionError: division by zero"]
    assert ("artifact", "abc", str(tmp_path / "report.html")) in mlflow.told
