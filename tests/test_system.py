"""What systems do differently. Windows is imitated: what it lacks is taken away from patchform; no test ran there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from training import tiny

from patchform import system
from patchform.data.outputs import distinct
from patchform.data.writing import write_new
from patchform.errors import ResourceError, UsageError
from patchform.settings import Recipe, check

POSIX = pytest.mark.skipif(os.name == "nt", reason="on Windows itself nothing is to be taken away")
CHILD = Path(__file__).with_name("without_posix.py")


@pytest.fixture
def windows(monkeypatch):
    monkeypatch.setattr(system, "WINDOWS", True)


def answers(steps):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUTF8": "0"}
    words = [sys.executable, "-X", "warn_default_encoding", str(CHILD), json.dumps(steps)]
    done = subprocess.run(words, capture_output=True, encoding="utf-8", env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return [json.loads(line) for line in done.stdout.splitlines()]


@POSIX
def test_a_run_without_anything_of_posix(tmp_path):
    data, runs, out = tiny.pictures(tmp_path / "my data", 16), tmp_path / "my runs", tmp_path / "my answers"
    run = runs / "first one"
    settings = "--model vit/nano --option width=48 --option depth=2 --size 32 --batch 8 --epochs 1 --data.workers 0"
    train = ["train", "classification", "--data", str(data)]
    whole, begun, resumed, listed, predicted, lock, refused = answers(
        [
            ["import"],
            [*train, "--name", run.name, "--runs", str(runs), *settings.split()],
            ["train", str(run), "--resume", "--epochs", "2"],
            ["runs", str(runs)],
            ["predict", str(run), str(data / "val"), "--out", str(out)],
            ["lock", str(tmp_path)],
            [*train, "--name", "con.txt"],
        ]
    )
    assert whole == []  # every module sees the names that Windows has, and no others
    assert begun["code"] == 0, begun["said"]
    assert f'patchform predict "{run}" PICTURES' in begun["out"]  # as cmd.exe and PowerShell read it
    assert resumed["code"] == 0, resumed["said"]
    assert "resuming after step 2" in resumed["said"]
    assert "finished" in listed["out"]
    assert f'evaluate "{run}"' in listed["out"]
    assert predicted["code"] == 0
    assert len((out / "predictions.jsonl").read_bytes().splitlines()) == 3
    assert lock["asked"]
    assert lock["free"]
    assert " by process " in lock["refused"]
    assert refused["code"] == 2
    assert "name is 'con.txt'" in refused["said"]


@POSIX
@pytest.mark.slow
def test_loader_processes_without_anything_of_posix(tmp_path):
    data = tiny.pictures(tmp_path / "data", 16)
    settings = "--model vit/nano --option width=48 --option depth=2 --size 32 --batch 8 --epochs 1 --data.workers 1"
    [begun] = answers([["train", "classification", "--data", str(data), "--runs", str(tmp_path), *settings.split()]])
    assert begun["code"] == 0, begun["said"]


@pytest.mark.parametrize(
    ("word", "typed"),
    [
        (r"C:\data\run-1", r"C:\data\run-1"),
        (r"C:\my data", r'"C:\my data"'),
        ("C:\\my data\\", '"C:\\my data\\\\"'),
        ("", '""'),
        ('{"depth": 2}', r'"{\"depth\": 2}"'),
        ('a\\"b', r'"a\\\"b"'),
        ("50%", '"50%"'),
    ],
)
def test_words_as_windows_reads_them(word, typed, windows):
    assert system.quoted(word) == typed
    assert subprocess.list2cmdline([word]) in (typed, typed[1:-1])  # which quotes fewer of them


def test_names_that_windows_has_not(windows, tmp_path):
    for name in ("a:b", "what?", "NUL", "com1.png", "aux .txt", "end.", "end ", 'say "x"', "a\tb"):
        assert not system.is_file_name(name), name
        assert system.is_file_name(system.file_name(name)), name
        with pytest.raises(UsageError, match="it must be the name of a folder"):
            check(Recipe(name=name))
    for name in ("console", "com", "été.png", ".hidden", "a b"):
        assert system.is_file_name(name)
        assert system.file_name(name) == name
    assert distinct(["a:b.png", "a?b.png", "nul"], [None] * 3, [".png"]) == ["a_b.png", "a_b.png-2", "_nul"]
    with pytest.raises(ResourceError, match="Windows has no file of the name 'a:b'"):
        write_new(tmp_path / "a:b" / "x.txt", ["x"])
    assert list(tmp_path.iterdir()) == []


@POSIX
def test_such_names_are_fine_elsewhere(tmp_path):
    check(Recipe(name="a:b"))
    write_new(tmp_path / "a:b" / "x.txt", ["x"])
    assert distinct(["a:b.png"], [None], [".png"]) == ["a:b.png"]


@pytest.mark.parametrize(
    ("limit", "wanted"),
    [
        ("max 100000", 8),
        ("150000 100000", 2),
        ("50000 100000", 1),
        ("900000 100000", 8),
        ("", 8),
        ("x y", 8),
        ("1 0", 8),
    ],
)
def test_cores_of_a_container_with_a_share_of_the_time(tmp_path, monkeypatch, limit, wanted):
    (tmp_path / "cpu.max").write_text(limit)
    monkeypatch.setattr(system, "_LIMITS_OF_TIME", ((tmp_path / "missing", None), (tmp_path / "cpu.max", None)))
    monkeypatch.setattr(system.os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert system.cores() == wanted
    quota, period = tmp_path / "quota", tmp_path / "period"
    quota.write_text("-1")
    period.write_text("100000")
    monkeypatch.setattr(system, "_LIMITS_OF_TIME", ((quota, period),))
    assert system.cores() == 8
    quota.write_text("300000")
    assert system.cores() == 3
