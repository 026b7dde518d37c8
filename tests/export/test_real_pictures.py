"""A file proves itself on photographs: a run that held out a part of its own holds the same part out again."""

import json
import os
from pathlib import Path

import pytest
from planting import classifier

from patchform import cli
from patchform.model import save
from patchform.records import Preprocessing

PHOTOS = Path(os.environ.get("PATCHFORM_DATA", Path(__file__).parents[3] / "shared" / "data")) / "classification"


@pytest.mark.slow
def test_a_run_on_photographs(tmp_path, capsys):
    data = PHOTOS / "hymenoptera"
    if not data.is_dir():
        pytest.skip("no photographs (set PATCHFORM_DATA)")
    preprocessing = Preprocessing(size=(64, 64))
    model, _ = classifier(tmp_path, pictures=4, preprocessing=preprocessing, classes=["ants", "bees"], ids=None)
    save(model, tmp_path / "photos")
    # learnt from train/ alone, of which a fifth was held out
    recipe = f"task: classification\ndata:\n  path: {data / 'train'}\npreprocessing:\n  size: 64\n"
    (tmp_path / "photos" / "recipe.yaml").write_text(recipe)
    assert cli.main(["export", str(tmp_path / "photos"), "--resize-inside", "--images", "32"]) == 0
    assert "proved on 32 pictures" in capsys.readouterr().out
    told = json.loads((tmp_path / "photos" / "model.onnx.check.json").read_text())
    assert told["left_out"] > 0
    assert told["before"]["top1"] == told["after"]["top1"]
    for name, value in told["before"].items():  # of hundreds of pixels one is a grey level off
        assert value is told["after"][name] is None or value == pytest.approx(told["after"][name], rel=1e-3)
