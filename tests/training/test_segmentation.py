"""Semantic segmentation through the very loop, evaluation, prediction and page that labels go through."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import patchform as pf
from patchform.commands import predict as predict_command
from patchform.evaluation import evaluate_run
from patchform.inference import SlidingWindow
from patchform.training import step

COLOURS = ((220, 60, 40), (40, 200, 60), (50, 70, 230))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Pictures of coloured squares; their colour is their class. Another part of each is ignored."""
    root, numbers = tmp_path_factory.mktemp("scenes"), np.random.default_rng(0)
    for part, count in (("training", 12), ("validation", 5)):
        for number in range(count):
            ids = numbers.integers(0, 3, (4, 6)).repeat(10, 0).repeat(10, 1).astype(np.uint8)
            noise = numbers.integers(-20, 20, (*ids.shape, 3))
            pixels = (np.array(COLOURS)[ids] + noise).clip(0, 255).astype(np.uint8)
            ids[:3] = 255
            for folder, array in (("images", pixels), ("annotations", ids)):
                (root / folder / part).mkdir(parents=True, exist_ok=True)
                Image.fromarray(array).save(root / folder / part / f"{number}.png")
    (root / "classes.txt").write_text("red\ngreen\nblue\n")
    return root


def settings(scenes, runs, **training):
    return {
        "data": {"path": str(scenes)},
        "preprocessing": {"size": [32, 32]},
        "runs": str(runs),
        "name": "first",
        "model": {"backbone": "pvt/nano", "head_options": {"channels_pyramid": 16, "channels_inside": 16}},
        "augmentation": {"color_jitter": 0.0},
        "loss": {"class_weights": "balanced", "smoothing": 0.02},
        "optimizer": {"lr": 5e-3},
        "training": {"epochs": 80, "batch_size": 4, "validate_every": 20, "loggers": (), **training},
    }


@pytest.fixture(scope="module")
def run(scenes, tmp_path_factory):
    return pf.train("semantic_segmentation", progress=False, **settings(scenes, tmp_path_factory.mktemp("runs")))


def test_it_learns_and_is_evaluated_in_the_pixels_of_the_pictures(run, scenes):
    scores = pf.evaluate(run.folder, device="cpu")
    assert scores.numbers["mean_iou"] > 0.6  # by chance 0.2
    assert scores.samples == 5
    written = json.loads((run.folder / "evaluation.json").read_text())
    assert written["numbers"]["mean_iou"] == scores.numbers["mean_iou"]
    assert any("255 is ignored" in note for note in written["notes"])
    assert scores.tables["classes"].rows == ("red", "green", "blue")
    assert sum(row[2] for row in scores.tables["classes"].values) == 5 * 37 * 60  # 3 of 40 rows are ignored
    page = (run.folder / "report.html").read_text()
    assert page.count("the truth") >= 5
    assert "mean_iou" in page
    losses = [row["val_loss"] for row in run.history if row["mean_iou"] is not None]
    assert 0 < losses[-1] <= losses[0]


def test_windows_judge_it_too(run, scenes):
    whole = evaluate_run(run.folder, scenes, out=run.folder / "whole", device="cpu")
    windows = evaluate_run(
        run.folder, scenes, out=run.folder / "w", device="cpu", infer=SlidingWindow((32, 32), (16, 16))
    )
    assert min(windows.numbers["mean_iou"], whole.numbers["mean_iou"]) > 0.5  # by chance 0.2
    assert windows.numbers["mean_iou"] != whole.numbers["mean_iou"]
    assert windows.numbers["ece"] is None  # windows give no probabilities


def test_predictions_are_pictures_numbers_and_lines(run, scenes, tmp_path, capsys):
    odd = tmp_path / "odd.png"
    Image.fromarray(np.full((23, 71, 3), COLOURS[1], np.uint8)).save(odd)
    predictor = pf.load(run.folder, device="cpu")
    (answer,) = predictor.predict([odd])
    assert answer.target.classes.shape == (23, 71)
    assert answer.target.scores.shape == (3, 23, 71)
    assert (answer.target.classes == 1).float().mean() > 0.9
    from patchform.prediction import write

    done = write(predictor, [odd], out=tmp_path / "out")
    assert (done.images, done.failed) == (1, 0)
    ids = np.asarray(Image.open(tmp_path / "out" / "odd.png.classes.png"))
    assert np.array_equal(ids, answer.target.classes.numpy())
    line = json.loads((tmp_path / "out" / "predictions.jsonl").read_text())
    assert next(iter(line["shares"])) == "green"
    assert predict_command.EXAMPLE


def test_a_killed_run_goes_on_to_the_same_bits(scenes, tmp_path):
    whole = pf.train("semantic_segmentation", progress=False, **settings(scenes, tmp_path / "a", epochs=2))
    stopped = settings(scenes, tmp_path / "b", epochs=2, save_every=2)
    calls = {"left": 4}
    usual = step.gradients

    def interrupted(*arguments, **options):
        if not calls["left"]:
            raise KeyboardInterrupt
        calls["left"] -= 1
        return usual(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pf.train("semantic_segmentation", progress=False, **stopped)
    resumed = pf.train(tmp_path / "b" / "first", resume=True, progress=False)
    for one, other in zip(whole.model.state_dict().values(), resumed.model.state_dict().values()):
        assert torch.equal(one, other)


def test_settings_for_labels_are_refused(scenes, tmp_path):
    crop = {"preprocessing": {"resize": "crop"}}
    for wrong in ({"augmentation": {"mixup": 0.2}}, crop, {"model": {"head": "linear"}}):
        given = settings(scenes, tmp_path)
        for section, values in wrong.items():
            given[section] = {**given.get(section, {}), **values}
        with pytest.raises(pf.PatchformError):
            pf.train("semantic_segmentation", progress=False, **given)
