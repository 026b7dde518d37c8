"""What packaged recipes say of themselves."""

import json
import re
from pathlib import Path

import pytest

from patchform import cli
from patchform.commands import recipe_list, recipes
from patchform.errors import UsageError
from patchform.training.recipe_files import described, read

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", recipes.packaged())
def test_a_recipe_says_what_it_is_for_and_invents_nothing(name):
    path = recipes.find(name)
    _, about = described(path)
    assert about is not None, f"{name} needs about: with purpose, starts_from, machine"
    assert 0 < len(about.purpose) <= 60
    assert (about.reaches is None) == (about.source is None)
    if about.reaches is None:
        return
    own = "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    document = ROOT / about.source
    text = document.read_text() if document.is_file() else own
    for number in re.findall(r"\d+\.\d+", about.reaches):
        assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", text), f"{number} is not in {about.source}"
    if not document.is_file() and (year := re.search(r"\d{4}", about.source)):
        assert year[0] in own


def test_a_line_each(capsys):
    assert cli.main(["recipes", "detection"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [name for name in recipes.packaged() if "detection/" in name]
    (swin,) = (line for line in lines if "retinanet_swin" in line)
    assert re.split(r" {2,}", swin) == [
        *("detection/retinanet_swin_coco", "swin/t + retinanet", "800 x 1333", "weights of ImageNet; GPU"),
        "AP 41.5 on COCO (Chu et al. 2021)",
    ]
    assert "patchform train detection --data DIR" in lines[-1]


def test_narrow_terminals_get_names_whole(monkeypatch, capsys):
    monkeypatch.setattr(recipe_list.shutil, "get_terminal_size", lambda: type("Size", (), {"columns": 80}))
    rows = recipe_list.recipe_rows()
    lines = list(recipe_list._pairs(rows))
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if not line.startswith(" ")] == recipes.packaged()


def test_json_and_what_is_refused(capsys, tmp_path):
    assert cli.main(["recipes", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == recipes.packaged()
    small = rows["classification/small"]
    assert (small["model"], small["input"], small["about"]["machine"]) == ("vit/nano + linear", "32", "cpu")
    for text, message in (
        ("about: {purpose: x, machine: tpu}\n", "about.machine cannot be 'tpu'"),
        ("about: {purpose: x, wrong: 1}\n", "a name that is not known: 'wrong'"),
    ):
        (tmp_path / "own.yaml").write_text(text + "task: classification\n")
        with pytest.raises(UsageError, match=message):
            described(tmp_path / "own.yaml")


def test_it_is_no_setting(tmp_path):
    path = recipes.find("classification/small")
    assert "about" not in read(path)
    assert not [name for name in recipes.names() if name.startswith("about")]
    assert cli.main(["train", "classification", "--about.purpose", "x"]) == 2
