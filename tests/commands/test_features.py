"""The verb: one row for each picture, the numbers of the backbone alone, in a file that is there whole or not at
all.
"""

import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from reference import randomise

import patchform as pf
from patchform import cli
from patchform.commands.features import EXAMPLE
from patchform.data.images import decode
from patchform.data.transforms import evaluation_transform
from patchform.model import build_model, save
from patchform.records import Preprocessing
from patchform.weights import files


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Nine pictures, in folders and beside them."""
    folder, dice = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index in range(9):
        place = folder / ("train", "val", "")[index % 3]
        place.mkdir(exist_ok=True)
        Image.fromarray(dice.integers(0, 256, (40 + index, 36, 3), np.uint8)).save(place / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def model():
    built = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=("x", "y"),
        preprocessing=Preprocessing(size=(32, 32)),
    )
    return randomise(built).eval()


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    save(model, folder)
    return folder


def said(capsys, *words, code=0):
    assert cli.main([*map(str, words), "--device", "cpu"]) == code
    out, err = capsys.readouterr()
    return out or err


@pytest.mark.parametrize("output", ["summary", "tokens"])
def test_a_row_for_each_picture_of_any_folder(model, run, photos, tmp_path, capsys, output):
    out = tmp_path / "rows.safetensors"
    words = ("features", run, photos, "--out", out, "--output", output, "--batch-size", "4")
    assert json.loads(said(capsys, *words, "--json")) == {"out": str(out), "pictures": 9, "width": model.backbone.width}
    tensors, notes = files.read_safetensors(out)
    names = json.loads(notes["names"])
    assert sorted(names) == sorted(path.relative_to(photos).as_posix() for path in photos.rglob("*.png"))
    assert notes["output"] == output
    prepare = evaluation_transform(model.preprocessing)
    for name, row in zip(names, tensors["features"], strict=True):
        image = prepare(decode(photos / name, model.preprocessing))
        with torch.inference_mode():
            found = model.backbone(model.normalise(image[None]))
        wanted = found.summary if output == "summary" else found.tokens.mean(1)
        torch.testing.assert_close(row, wanted[0], rtol=0, atol=1e-5)
    assert (tensors["features"][0] - tensors["features"][1]).abs().max() > 1e-3  # or any row would do


def test_a_shard_gives_what_its_files_give(run, photos, tmp_path):
    with tarfile.open(tmp_path / "photos.tar", "w") as shard:
        for path in sorted(photos.rglob("*.png")):
            shard.add(path, path.relative_to(photos).as_posix())
    from_files = pf.features(run, photos, device="cpu")
    from_shard = pf.features(run, tmp_path / "photos.tar", device="cpu")
    rows = {name.removeprefix("photos.tar/"): row for name, row in zip(from_shard.names, from_shard.features)}
    assert len(rows) == 9
    for name, row in zip(from_files.names, from_files.features, strict=True):
        torch.testing.assert_close(rows[name], row, rtol=0, atol=1e-6)


def test_refusals_leave_nothing(run, photos, tmp_path, capsys):
    taken = tmp_path / "taken.safetensors"
    taken.write_bytes(b"mine")
    assert "exists already" in said(capsys, "features", run, photos, "--out", taken, code=5)
    assert taken.read_bytes() == b"mine"
    assert "let it end in .safetensors" in said(capsys, "features", run, photos, "--out", tmp_path / "a.npy", code=2)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/1.png").write_bytes(b"no picture")
    Image.new("RGB", (32, 32)).save(tmp_path / "bad/2.png")
    words = ("features", run, tmp_path / "bad", "--out", tmp_path / "rows.safetensors")
    assert "1.png" in said(capsys, *words, code=3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad", "taken.safetensors"]
    assert "1 picture, " in said(capsys, *words, "--skip-bad", "0.5")
    assert list(files.read_tensors(tmp_path / "rows.safetensors")["features"].shape[:1]) == [1]


def test_the_example_is_one():
    assert cli._parser().parse_args(EXAMPLE.split()[1:]).verb == "features"
