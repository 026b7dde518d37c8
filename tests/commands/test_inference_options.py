"""Words of a command line as ways to make predictions."""

import argparse

import pytest

from patchform.commands import inference_options
from patchform.errors import UsageError
from patchform.inference import MultiScale, MultiView, SlicedObjects, SlidingWindow
from patchform.model import Model, build_model, save


def infer(*words):
    parser = argparse.ArgumentParser()
    parser.add_argument("--run")
    inference_options.add_arguments(parser)
    return inference_options.chosen(parser.parse_args(words))


def a_run(folder, task, head):
    save(build_model(task, backbone="vit/nano", head=head, classes=("a", "b")), folder)
    return str(folder)


def test_words_become_ways_to_predict(tmp_path):
    pixels = a_run(tmp_path / "pixels", "semantic_segmentation", "setr")
    objects = a_run(tmp_path / "objects", "detection", "retinanet")
    assert infer() is Model.predict
    assert infer("--window", "512", "--run", pixels) == SlidingWindow((512, 512), (342, 342))
    assert infer("--window", "64", "--stride", "64", "--run", pixels) == SlidingWindow((64, 64), (64, 64))
    assert infer("--window", "64", "--margin", "16", "--run", pixels) == SlidingWindow((64, 64), (32, 32), margin=16)
    assert infer("--window", "512", "--run", objects) == SlicedObjects((512, 512), (342, 342))
    union = SlicedObjects((512, 512), (342, 342), measure="union")
    assert infer("--window", "512", "--measure", "union", "--run", objects) == union
    assert infer("--window", "512", "--run", objects).measure == "smaller"
    with pytest.raises(UsageError, match="--measure is for objects"):
        infer("--window", "64", "--measure", "union", "--run", pixels)
    with pytest.raises(UsageError, match="--margin is for masks"):
        infer("--window", "64", "--margin", "8", "--run", objects)
    assert infer("--mirrored") == MultiScale((1.0,), True)
    assert infer("--scales", "0.5", "1") == MultiScale((0.5, 1.0), False)
    assert infer("--clips", "4", "--crops", "3") == MultiView(4, 3)
    assert infer("--crops", "3") == MultiView(1, 3)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stride", "3"), "without --window"),
        (("--margin", "3"), "without --window"),
        (("--measure", "union"), "without --window"),
        (("--window", "64", "--margin", "32"), "do not cover"),
        (("--window", "8", "--stride", "9"), "do not cover"),
        (("--window", "8", "--mirrored"), "at once"),
        (("--clips", "2", "--mirrored"), "choose one"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, said):
    with pytest.raises(UsageError, match=said):
        infer(*words)


@pytest.mark.parametrize(
    "words", ["--window 64 --margin -1", "--window 0", "--scales 0", "--scales 1 nan", "--clips 0"]
)
def test_numbers_out_of_range_are_refused(words, capsys):
    with pytest.raises(SystemExit):
        infer(*words.split())
    assert "it must be " in capsys.readouterr().err
