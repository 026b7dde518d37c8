"""The table of backbones, and the verb that prints it."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from patchform import cli, lookup, model_table
from patchform.commands import models

SCRIPT = Path(__file__).parents[2] / "docs" / "make_model_table.py"
SMALL = ("vit/nano", "swin/nano", "resnet/18", "timesformer/nano", "beit/b")


def test_the_table_has_every_backbone_and_published_file():
    assert list(model_table.rows()) == lookup.backbones(), "python docs/make_model_table.py"
    places = {name: row.place for name, row in lookup.weights_files().items()}
    assert model_table.weights_places() == places, "python docs/make_model_table.py"
    for name, row in model_table.rows().items():
        family, _, size = name.partition("/")
        assert row.image_size == lookup.backbone(name)[1].image_size
        assert list(row.published) == [score for score in lookup.published(family).scores if score.variant == size]


@pytest.mark.parametrize("name", SMALL)
def test_a_row_is_what_is_counted(name):
    assert models.counted(name) == model_table.rows()[name], "python docs/make_model_table.py"


@pytest.mark.slow
def test_a_row_of_each_family_is_what_is_counted():
    """The cheapest at full size."""
    cheapest = {}
    for row in sorted(model_table.rows().values(), key=lambda row: -row.multiply_adds):
        if "nano" not in row.name:
            cheapest[row.name.partition("/")[0]] = row.name
    names = list(cheapest.values())
    assert len(names) == len(lookup.names("backbones"))
    assert {name: models.counted(name) for name in names} == {name: model_table.rows()[name] for name in names}


def test_the_check_of_the_script_finds_what_differs():
    script = runpy.run_path(str(SCRIPT))
    rows = list(model_table.rows().values())
    assert script["text"](rows) == model_table.FILE.read_text(encoding="utf-8")
    assert script["differing"](rows, model_table.rows()) == []
    wrong = [replace(row, parameters=1) if row.name == "vit/s16" else row for row in rows]
    assert script["differing"](wrong, model_table.rows()) == ["vit/s16"]
    assert script["differing"](rows[1:], model_table.rows()) == [rows[0].name]
    assert script["differing"](rows[::-1], model_table.rows()) == ["the order of the rows"]


def test_names_from_the_table_are_those_of_the_files():
    for pattern in ("*", "swin/*", "vit", "*/nano", "nothing/*"):
        assert lookup.backbone_names(pattern) == lookup.backbones(pattern)


def test_published_weights_are_named(capsys):
    assert cli.main(["models", "vit/b16", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert "vit/b16.augreg_in21k" in row["weights"]
    assert set(row) == {"name", "image_size", "parameters", "multiply_adds", "published", "weights"}
    assert cli.main(["models", "vit/b16"]) == 0
    assert 'patchform weights list "vit/b16"' in capsys.readouterr().out.splitlines()[-1]
    assert cli.main(["weights", "list", "vit/b16", "--json"]) == 0
    assert [file["name"] for file in json.loads(capsys.readouterr().out)] == row["weights"]
    assert cli.main(["models", "sparse/s"]) == 0  # nobody has published any
    assert "weights list" not in capsys.readouterr().out


def test_a_new_row_of_a_file_is_not_refused(monkeypatch):
    """It is in no table until that is made again."""
    from patchform.backbones import vit

    monkeypatch.setitem(vit.VARIANTS, "new", vit.VARIANTS["nano"])
    assert lookup.backbone("vit/new")[1].image_size == 32
    assert models.counted("vit/new").parameters == model_table.rows()["vit/nano"].parameters
