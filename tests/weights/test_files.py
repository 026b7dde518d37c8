"""Files of our own: what is written is read back bit for bit, and anything else is refused with the reason."""

import errno
import json
import os
import random
import struct
import subprocess
import sys

import pytest
import torch

from patchform.errors import ModelFileError, ResourceError
from patchform.weights import files

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b.c": torch.tensor([1, 2]), "d": torch.randn(3).bfloat16()}


def folder_at(path, value=1):
    with files.atomic_folder(path) as place:
        files.write_tensors(place / "x.safetensors", TENSORS)
        files.write_json(place / "y.json", {"value": value})
    return path


def test_tensors_come_back_bit_for_bit(tmp_path):
    tied = torch.randn(4)
    files.write_tensors(tmp_path / "x", TENSORS | {"one": tied, "two": tied, "part": tied[1:]}, {"step": "3"})
    read = files.read_tensors(tmp_path / "x")
    assert {name: tensor.dtype for name, tensor in read.items() if name in TENSORS} == {
        name: tensor.dtype for name, tensor in TENSORS.items()
    }
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert torch.equal(read["one"], tied)
    assert torch.equal(read["two"], tied)
    assert torch.equal(read["part"], tied[1:])


def raw(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(shape, start, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04cos\nsystem\n",
        b"PK\x03\x04" + bytes(40),
        raw({}, length=2**63),
        raw({}, length=files.LARGEST_JSON + 1),
        raw({"a": entry([2], 0, 8)}, bytes(7)),
        raw({"a": entry([2], 0, 8)}, bytes(9)),
        raw({"a": entry([2], 0, 8), "b": entry([2], 4, 12)}, bytes(12)),
        raw({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)),
        raw({"a": entry([2**40, 2**40], 0, 8)}, bytes(8)),
        raw({"a": entry([2], 0, 8, "NO")}, bytes(8)),
        raw(b'{"a": 1, "a": 1}'.replace(b"1", json.dumps(entry([1], 0, 4)).encode()), bytes(4)),
        raw(b"[" * 100_000),
    ],
)
def test_what_is_not_safetensors_is_refused(tmp_path, data):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(ModelFileError) as caught:
        files.read_tensors(tmp_path / "x")
    assert str(tmp_path / "x") in str(caught.value)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', '{"a": 1, "a": 2}', '{"a":' * 100_000, "\ufeff\x00"])
def test_what_is_not_a_json_object_is_refused(tmp_path, text):
    (tmp_path / "x").write_text(text)
    with pytest.raises(ModelFileError):
        files.read_json(tmp_path / "x")


def test_a_pipe_or_a_giant_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "giant", "wb") as file:
        file.truncate(files.LARGEST_TENSORS + 1)
    for name in ("pipe", "giant", "absent"):
        with pytest.raises(ModelFileError):
            files.read_tensors(tmp_path / name)
    with pytest.raises(ModelFileError):
        files.read_json(tmp_path / "giant")


def test_a_whole_folder_verifies_and_any_damage_is_found(tmp_path):
    dice = random.Random(0)
    good = folder_at(tmp_path / "good")
    assert files.verify(good) == []
    assert files.verify(good, ["y.json"]) == []
    assert files.verify(good, ["z.json"]) == ["z.json: not a file of the manifest"]
    other = folder_at(tmp_path / "other", value=2)

    def flip(data):
        place = dice.randrange(len(data) * 8)
        return data[: place // 8] + bytes([data[place // 8] ^ 1 << place % 8]) + data[place // 8 + 1 :]

    cases = found = 0
    for name in ("x.safetensors", "y.json"):
        data = (good / name).read_bytes()
        swapped = (other / name).read_bytes()
        for damaged in [b"", data[: len(data) // 2], data[:-1], None] + [flip(data) for _ in range(50)]:
            (good / name).unlink()
            if damaged is not None:
                (good / name).write_bytes(damaged)
            cases, found = cases + 1, found + (files.verify(good)[0].startswith(name))
            (good / name).write_bytes(data)
        if swapped != data:
            (good / name).write_bytes(swapped)
            cases, found = cases + 1, found + (files.verify(good)[0].startswith(name))
            (good / name).write_bytes(data)
    assert (cases, found) == (109, 109)
    assert files.verify(good) == []
    (good / files.MANIFEST).write_text('{"files": {"../x": {}, "y.json": 3}}')
    assert files.verify(good)[0].startswith("../x")
    (good / files.MANIFEST).unlink()
    assert "no such file" in files.verify(good)[0]


def test_writing_into_a_folder_that_exists_replaces_our_files_only(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    (path / "metrics.csv").write_text("kept")
    for value in (1, 2):
        folder_at(path, value)
        assert files.verify(path) == []
        assert files.read_json(path / "y.json") == {"value": value}
    assert sorted(file.name for file in path.iterdir()) == ["manifest.json", "metrics.csv", "x.safetensors", "y.json"]
    assert [file.name for file in tmp_path.iterdir()] == ["run"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="not JSON compliant"):
        folder_at(tmp_path / "run", float("nan"))
    assert list(tmp_path.iterdir()) == []

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match=r"cannot write \d+ bytes \(No space left on device; \d+ bytes are free\)"):
        folder_at(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("point", ["temporary-made", "half-written", "before-fsync", "before-rename", "after-rename"])
def test_a_kill_inside_the_write_leaves_a_whole_folder_or_none(tmp_path, point):
    script = (
        "from patchform.weights import files; from pathlib import Path; import sys\n"
        "with files.atomic_folder(Path(sys.argv[1])) as place: files.write_json(place / 'y.json', {'value': 1})"
    )
    target = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], env=os.environ | {"PATCHFORM_FAILPOINT": point}, check=False
    )
    assert done.returncode == -9
    assert target.exists() == (point == "after-rename")
    assert not target.exists() or files.verify(target) == []
    files.clear_temporaries(tmp_path)
    assert len(list(tmp_path.iterdir())) == target.exists()
