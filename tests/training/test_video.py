"""Clips through the whole path: train, resume, evaluate, predict, report; a square that goes left or right."""

import json

import numpy as np
import pytest
from PIL import Image

import patchform as pf
from patchform.evaluation import evaluate_run
from patchform.inference import MultiView
from patchform.prediction import write

SIDE, COUNT = 24, 6


def put(folder, number, way):
    """Frames of a bright square whose middle frame tells nothing."""
    draw = np.random.default_rng([number, way + 1])
    top, middle = draw.integers(0, SIDE - 8), draw.integers(5, SIDE - 13)
    folder.mkdir(parents=True)
    for frame in range(COUNT):
        pixels = draw.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
        left = middle + round(way * 2 * (frame - (COUNT - 1) / 2))
        pixels[top : top + 8, max(left, 0) : left + 8] += 150
        Image.fromarray(pixels).save(folder / f"{frame}.png")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for part, start, count in (("train", 0, 40), ("val", 100, 8)):
        for number in range(count):
            for name, way in (("left", -1), ("right", 1)):
                put(folder / part / name / f"{number}", start + number, way)
    return folder


def settings(films, runs, **training):
    usual = {"epochs": 20, "batch_size": 16, "seed": 0, "threads": 1, "loggers": (), "device": "cpu"}
    return {
        "data": {"path": str(films)},
        "preprocessing": {"size": SIDE, "resize": "squash", "frames": 4},
        "model": {
            "backbone": "vivit/nano",
            "options": {"patch": 6, "tube": 2, "width": 48, "depth": 2, "heads": 4},
            "head": "linear",
        },
        "augmentation": {"crop_scale": [1.0, 1.0], "flip": 0.0},
        "optimizer": {"lr": 3e-3, "clip": 1.0},
        "schedule": {"warmup_epochs": 1},
        "training": usual | training,
        "runs": str(runs),
    }


@pytest.fixture(scope="module")
def run(films, tmp_path_factory):
    return pf.train("video_classification", progress=False, **settings(films, tmp_path_factory.mktemp("runs")))


def test_it_learns_what_a_single_frame_does_not_tell(run, films):
    scores = pf.evaluate(run.folder)
    assert scores.numbers["top1"] >= 0.9  # by chance 0.5
    assert (run.folder / "confusion.png").is_file()
    page = (run.folder / "report.html").read_text()
    assert "Attention over space and time" in page


def test_several_views_of_a_video(run, films):
    scores = evaluate_run(run.folder, films, infer=MultiView(clips=3, crops=1), out=run.folder / "views", device="cpu")
    predictor = pf.load(run.folder, device="cpu", infer=MultiView(clips=3, crops=1))
    labels = [predictor.record(one)["label"] for one in predictor.predict(films / "val")]
    names = [one.name for one in predictor.predict(films / "val")]
    assert scores.numbers["top1"] == np.mean([label in name for label, name in zip(labels, names, strict=True)])
    once = evaluate_run(run.folder, films, out=run.folder / "once", device="cpu")
    assert scores.numbers["clip_top1"] == once.numbers["top1"]
    assert "clip_top1" not in once.numbers
    assert scores.numbers["log_loss"] != pytest.approx(once.numbers["log_loss"], rel=1e-3)  # other frames are seen too


def test_predictions_of_a_folder_of_videos(run, films, tmp_path):
    done = write(pf.load(run.folder, device="cpu"), films / "val", out=tmp_path / "out")
    assert (done.images, done.failed) == (16, 0)
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    right = [line["label"] in line["file"] for line in lines]
    assert np.mean(right) >= 0.9


def test_another_backbone_over_frames_and_a_resume(films, tmp_path):
    over = {"model": {"backbone": "pvt/nano", "head": "temporal_encoder", "head_options": {"inner": 24, "heads": 2}}}
    whole = settings(films, tmp_path / "a", epochs=2) | over
    first = pf.train("video_classification", progress=False, **whole)
    stopped = settings(films, tmp_path / "b", epochs=2, save_every=2) | over
    from patchform.training import step

    usual, calls = step.gradients, {"left": 7}

    def interrupted(*arguments, **options):
        calls["left"] -= 1
        if not calls["left"]:
            raise KeyboardInterrupt
        return usual(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step, "gradients", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pf.train("video_classification", progress=False, **stopped)
    (folder,) = (tmp_path / "b").iterdir()
    pf.train(folder, resume=True, progress=False)
    assert (folder / "steps.jsonl").read_bytes() == (first.folder / "steps.jsonl").read_bytes()
