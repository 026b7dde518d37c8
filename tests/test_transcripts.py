"""docs/make_transcripts.py, which takes hours: what it types can be read, and what it shows is clean."""

import runpy
import shlex
import sys
from pathlib import Path

import pytest

from patchform import cli, lookup
from patchform.commands import automatic

SCRIPT = Path(__file__).parent.parent / "docs" / "make_transcripts.py"
SCRIPTED = runpy.run_path(str(SCRIPT))
TOURS = SCRIPTED["TOURS"]


def test_every_task_has_a_tour():
    assert sorted(tour.task for tour in TOURS) == sorted(lookup.names("tasks"))


@pytest.mark.parametrize("tour", TOURS, ids=lambda tour: tour.task)
def test_what_is_typed_can_be_read(tour):
    for line in SCRIPTED["commands"](tour, "15m"):
        program, *words = shlex.split(line)
        words, settings = cli._take_settings(words)
        read = cli._parser(words).parse_args(words)
        assert program == "patchform"
        assert not settings
        if read.verb == "train":
            assert automatic.seconds_of(read.time) == 900


@pytest.mark.parametrize("tour", [tour for tour in TOURS if (SCRIPTED["DATA"] / tour.data).is_dir()], ids=str)
def test_there_are_pictures_to_predict(tour, tmp_path):
    SCRIPTED["lay_out"](tour, tmp_path)
    assert (tmp_path / tour.folder / "SOURCE.md").is_file()
    assert len(list((tmp_path / "new").glob("*"))) == (3 if tour.new else 0)


def test_what_is_shown_is_what_is_left_on_a_terminal(tmp_path):
    link = "\x1b]8;;x\x07link\x1b]8;;\x07"
    text = f"\x1b[1mbold\x1b[0m {tmp_path}/runs/first {link}\r\nbar 10 %\rbar 100 %\r\nin {tmp_path}\n\n"
    assert SCRIPTED["shown"](text, str(tmp_path)) == "bold runs/first link\nbar 100 %\nin ."


def test_long_texts_are_cut_where_it_is_said():
    lines = SCRIPTED["shown"]("\n".join(map(str, range(100))), "/nowhere").splitlines()
    assert lines == [*map(str, range(24)), "[... 60 lines ...]", *map(str, range(84, 100))]
    assert SCRIPTED["shown"]("x" * 500, "/nowhere") == "x" * 400 + " [...]"


def test_a_page_says_when_and_where_and_that_something_failed(monkeypatch, tmp_path, capsys):
    tour = SCRIPTED["Tour"]("classification", "classification/none", "insects", ("*.jpg",), "Insects")
    names = SCRIPTED["write"].__globals__
    (tmp_path / tour.data).mkdir(parents=True)
    monkeypatch.setitem(names, "DATA", tmp_path)
    monkeypatch.setitem(names, "COMMANDS", ("patchform trian {folder}",))
    assert not SCRIPTED["write"](tour, "1m", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "$ patchform trian insects\npatchform: error E-usage: " in page
    assert "exit code 2*" in page
    assert " cores, " in page
    assert f"Python {sys.version.split()[0]}" in page
