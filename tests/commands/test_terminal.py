"""Names of files and classes that would steer a terminal, a page or a chart, on every way out."""

import io
import json
import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from patchform import cli, drawing, page
from patchform.commands import terminal
from patchform.errors import printable
from patchform.model import build_model, load, save
from patchform.records import Preprocessing
from patchform.training.progress import Reporter

HOSTILE = {
    "escape": "\x1b]0;owned\x07\x1b[31m",
    "return": "a\rb\x08",
    "c1": "\x9b31m\x85",
    "direction": "gpj.\u202eexe",
    "unseen": "a\u200bb\u2066\ufeff",
    "lines": "a\nb\u2028c",
    "bytes": os.fsdecode(b"caf\xe9"),
    "delete": "a\x7f",
}
CLASS = "".join(text for name, text in HOSTILE.items() if name != "bytes")
PLAIN = ("käse 猫", "写真\u3000一", "a b", "Ω≈ç", "")


@pytest.mark.parametrize("name", list(HOSTILE))
def test_what_steers_is_spelt_out(name):
    text = printable(HOSTILE[name])
    assert text.isprintable()
    assert text.encode()
    assert printable(text) == text
    assert "\\" in text
    assert printable(f"x{HOSTILE['escape']}\n", keep="\n") == "x\\x1b]0;owned\\x07\\x1b[31m\n"


@pytest.mark.parametrize("text", PLAIN)
def test_what_people_write_stays(text):
    assert printable(text) == text


def test_streams_of_few_letters():
    raw = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    stream = terminal.Printable(raw)
    print("käse\x1b", os.fsdecode(b"\xff"), file=stream)
    stream.writelines(["\u202e", "\tb\n"])
    raw.flush()
    assert raw.buffer.getvalue() == b"k\\xe4se\\x1b \\udcff\n\\u202e\tb\n"
    assert stream.encoding == "ascii"


def test_streams_come_back(capsys):
    before = sys.stdout, sys.stderr
    with terminal.printable_streams():
        print("a\x1b")
        print("b\x1b", file=sys.stderr)
        terminal.say("c\nd")
    assert (sys.stdout, sys.stderr) == before
    with pytest.raises(ZeroDivisionError), terminal.printable_streams():
        raise ZeroDivisionError
    assert (sys.stdout, sys.stderr) == before
    assert tuple(capsys.readouterr()) == ("a\\x1b\n", "b\\x1b\nc\\nd\n")


def test_bars_are_drawn_as_they_are(capsys):
    """rich goes past the printable stream: its colours are its own."""
    from rich.console import Console

    with terminal.printable_streams():
        Console(file=sys.stderr, force_terminal=True, color_system="standard").print("[red]x[/red]")
    assert "\x1b[31m" in capsys.readouterr().err


def put(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((20, 24, 3), np.uint8)).save(path, format="PNG")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model of two classes, one of which has all in its name that a class may have."""
    folder = tmp_path_factory.mktemp("run")
    classes = ("cat", CLASS)
    save(
        build_model(
            "classification",
            backbone="vit/nano",
            head="linear",
            classes=classes,
            preprocessing=Preprocessing(size=(32, 32)),
        ),
        folder,
    )
    return folder


def test_names_of_classes_come_back_from_a_model_file(run):
    assert load(run).classes[1] == CLASS


def said(capsys):
    out, err = capsys.readouterr()
    text = out + err
    text.encode()  # it could be written
    assert all(letter.isprintable() or letter in "\n\t" for letter in text)
    return out, err


def test_every_command_says_names_in_printable_letters(run, tmp_path, capsys):
    hostile = "".join(HOSTILE.values()).replace("/", "")
    good, bad = put(tmp_path / "d" / "cat" / f"{hostile}.png"), tmp_path / "d" / "cat" / f"{hostile}2.png"
    bad.write_bytes(b"no picture")
    capsys.readouterr()
    assert cli.main(["predict", str(run), str(tmp_path / "d"), "--out", str(tmp_path / "o")]) == 8
    out, _ = said(capsys)
    assert {json.loads(line)["file"] for line in out.splitlines()} == {str(good), str(bad)}
    assert cli.main(["evaluate", str(run), "--data", str(tmp_path / "d"), "--out", str(tmp_path / "e")]) == 3
    said(capsys)
    words = ["evaluate", str(run), "--data", str(tmp_path / "d"), "--out", str(tmp_path / "e"), "--skip-bad", ".6"]
    assert cli.main(words) == 0
    said(capsys)
    text = (tmp_path / "e" / "report.html").read_text(encoding="utf-8")
    assert all(letter.isprintable() or letter in "\n\t" for letter in text)
    json.loads((tmp_path / "e" / "evaluation.json").read_text())
    put(tmp_path / "d" / "dog" / "1.png")
    assert cli.main(["data", "check", str(tmp_path / "d"), "--task", "classification"]) == 3
    said(capsys)
    assert cli.main(["features", str(run), str(tmp_path / "d"), "--out", str(tmp_path / "f.safetensors")]) == 3
    said(capsys)
    bad.unlink()
    assert cli.main(["features", str(run), str(tmp_path / "d"), "--out", str(tmp_path / "f.safetensors")]) == 0
    said(capsys)
    for words in (
        ["predict", str(run), hostile],
        ["train", hostile],
        ["evaluate", hostile],
        ["weights", "show", hostile],
    ):
        assert cli.main([*words, hostile]) in (2, 3, 4)
        said(capsys)


def test_the_reporter_of_a_run_says_one_line(capsys):
    with Reporter(shown=False) as reporter:
        reporter.note(f"left out {HOSTILE['escape']}\n{HOSTILE['bytes']}")
    assert capsys.readouterr().err == "left out \\x1b]0;owned\\x07\\x1b[31m\\ncaf\\udce9\n"


def test_charts_have_names_of_any_letters():
    names = ["".join(HOSTILE.values()), "$x$ \\frac{", "_hidden"]
    assert drawing.confusion([[1, 0, 0], [0, 1, 0], [0, 0, 1]], names)
    assert drawing.precision_recall([[1.0, 0.5]] * 3, names)
    assert drawing.caption(torch.zeros(3, 30, 30), [drawing.Line(name, 0.5) for name in names])


@pytest.mark.parametrize("word", ["SECTIONS", "TITLE", "$sections", "${title}", "$$", "$", "{title}", "%s", "\\1"])
def test_no_name_is_a_mark_of_a_page(word):
    sections = [page.Section(word, page.table([(word, [word])]), word), page.Section("Second", page.escape(word))]
    text = page.render(word, sections)
    assert text.count("<h2>") == 2
    assert text.count("<!doctype html>") == 1
    assert f"<title>{word}</title>" in text
    assert f"<th>{word}</th><td>{word}</td>" in text


def test_pages_say_names_in_plain_letters():
    assert page.escape("<b>\x1b\u202e" + os.fsdecode(b"\xe9")) == "&lt;b&gt;\\x1b\\u202e\\udce9"
