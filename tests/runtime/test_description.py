"""What files say of themselves comes back as it was, and what is no such text is refused in one line."""

import dataclasses
import json
import zipfile

import pytest

from patchform import outputs
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import ModelFileError
from patchform.runtime.description import EXTRA, FILE_FORMAT, FileDescription, of_entries, of_program, parse

NAMES = Architecture(
    task="detection", backbone="vit/nano", head="detr", backbone_options={"depth": 2}, head_options={"queries": 5}
)
ONE = FileDescription(
    format=FILE_FORMAT,
    patchform="0.1.0",
    task="detection",
    task_options={},
    architecture=NAMES,
    classes=("a cat", "ü\u202e"),
    ids=(3, "x"),
    thresholds=(0.5, 0.25),
    preprocessing=Preprocessing(size=(96, 64), resize="keep").resolved(),
    resizes=False,
    inputs=("images", "sizes"),
    record="ObjectOutputs",
    outputs=("boxes", "classes", "scores", "confident"),
    batch=0,
    sizes=((96, 64),),
    least=16,
    dtype="float32",
)


def test_it_comes_back():
    assert parse(ONE.as_text(), "x.onnx") == ONE
    assert of_entries({"patchform": ONE.as_text(), "other": "1"}, "x.onnx") == ONE
    assert outputs.record_of(ONE.record) is outputs.ObjectOutputs


@pytest.mark.parametrize("name", ["Outputs", "NamedTuple", "Tensor", "__builtins__", "NoSuchOutputs"])
def test_a_file_names_records_alone(name):
    with pytest.raises(KeyError):
        outputs.record_of(name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": FILE_FORMAT + 1}, "update patchform"),
        ({"format": 0}, "export it again"),
        ({"classes": ["one"]}, "2 thresholds for 1 classes"),
        ({"ids": [1]}, "1 ids for 2 classes"),
        ({"dtype": "float8"}, "float8"),
        ({"sizes": [[0, 4]]}, "sizes"),
        ({"more": 1}, "more"),
    ],
)
def test_others_are_refused(change, words):
    with pytest.raises(ModelFileError, match=words) as caught:
        parse(json.dumps(dataclasses.asdict(ONE) | change), "some.onnx")
    assert "some.onnx" in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "nothing", "[" * 100_000, "{}"])
def test_no_description_at_all(text):
    with pytest.raises(ModelFileError):
        parse(text, "some.onnx")


def test_files_of_others():
    with pytest.raises(ModelFileError, match="not a file that patchform exported"):
        of_entries({"author": "somebody"}, "some.onnx")


def test_of_an_archive(tmp_path):
    path = tmp_path / "a.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"a/extra/{EXTRA}", ONE.as_text())
    assert of_program(path) == ONE
    with zipfile.ZipFile(tmp_path / "b.pt2", "w") as archive:
        archive.writestr("b/other", "")
    with pytest.raises(ModelFileError, match="not a file that patchform exported"):
        of_program(tmp_path / "b.pt2")
    (tmp_path / "c.pt2").write_bytes(path.read_bytes()[:40])
    for missing in ("c.pt2", "d.pt2"):
        with pytest.raises(ModelFileError, match=r"not a \.pt2 file"):
            of_program(tmp_path / missing)
