"""What Tab offers, and the scripts that ask for it."""

import os
import shutil
import subprocess
import sys

import pytest

from patchform import cli, lookup, model_table
from patchform.commands import completion, recipes

OFFERED = {
    "tra": ["train"],
    "recipes det": ["detection"],
    "train classification/sm": ["classification/small"],
    "train classification --optimizer.lay": ["--optimizer.layer_decay"],
    "train classification --epo": ["--epochs"],
    "train classification --model swin/v2_t": ["swin/v2_t_w8", "swin/v2_t_w16"],
    "train classification --optimizer.name l": ["lamb"],
    "train classification --model.frozen ": ["all"],
    "train classification --data.balanced ": ["true", "false"],
    "models resnet/1": ["resnet/18", "resnet/101", "resnet/152"],
    "data ch": ["check"],
    "data show . --part v": ["validation"],
    "weights convert vit/b16.deit_in1k_": ["vit/b16.deit_in1k_384"],
    "completion f": ["fish"],
    "export run --format o": ["onnx", "openvino"],
    "demo seg": ["segmentation"],
    "predict ": [],
    "predict runs/fi": [],
    "train classification --data ": [],
    "evaluate --mirrored ": [],
    "nonsense x": [],
}


def offered(line):
    return completion.candidates(cli._parser(), line.split(" "))


@pytest.mark.parametrize("line", OFFERED)
def test_a_word_is_completed(line):
    assert offered(line) == OFFERED[line]


def test_everything_is_offered():
    assert set(offered("")) >= set(cli.VERBS)
    assert set(offered("train ")) == {*recipes.packaged(), *recipes.tasks()}
    assert {f"--{name}" for name in recipes.names()} <= set(offered("train x --"))
    assert offered("models ") == lookup.backbones()
    assert offered("probe vit/") == [name for name in model_table.weights_places() if name.startswith("vit/")]


def test_the_verb_prints_lines(capsys):
    assert cli.main(["completion", "words", "--", "train", "--see"]) == 0
    assert capsys.readouterr().out == "--seed\n"
    assert cli.main(["completion", "words", "--", "train", "detection", "imgsz=6"]) == 0
    assert capsys.readouterr().out == ""
    for shell in completion.SCRIPTS:
        assert cli.main(["completion", shell]) == 0
        assert "patchform completion words -- " in capsys.readouterr().out
    assert cli.main(["completion", "tcsh"]) == 2


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
def test_bash_asks_and_falls_back_to_files(tmp_path):
    command = tmp_path / "bin" / "patchform"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m patchform "$@"\n')
    command.chmod(0o755)
    script = f"""{completion.SCRIPTS["bash"]}
    COMP_WORDS=(patchform train pretraining/small_); COMP_CWORD=2; _patchform; printf '%s\\n' "${{COMPREPLY[@]}}"
    COMP_WORDS=(patchform evaluate ""); COMP_CWORD=2; _patchform; echo "${{#COMPREPLY[@]}}"
    complete -p patchform"""
    environment = {**os.environ, "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.splitlines() == [
        *("pretraining/small_dino", "pretraining/small_masked_patches", "0"),
        "complete -o default -F _patchform patchform",
    ]
