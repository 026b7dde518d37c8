"""What is wrong with a command line is said before torch is imported, in one line that says what was meant."""

import json
import os
import subprocess
import sys

import pytest

from patchform import cli, foreign_names, lookup, model_table, own_parts
from patchform.commands import early_checks
from patchform.runtime.opening import KINDS

REFUSED = {
    "trian": (2, 'no such verb: patchform trian; did you mean "patchform train"?'),
    "detect x.jpg": (2, 'did you mean "patchform predict"?'),
    "detect train data=coco8.yaml": (2, 'did you mean "patchform train"?'),
    "help": (2, 'did you mean "patchform --help"?'),
    "evaluate": (2, "required: RUN; example: patchform evaluate runs/first"),
    "train classification --data runz": (3, 'no such file or folder "runz"; did you mean "runs"?'),
    "predict runs/first x.png --imgsz 640": (2, "no such option: --imgsz; patchform predict --help"),
    "data chek .": (2, 'did you mean "patchform data check"?'),
    "train clasification": (2, 'no recipe "clasification"; did you mean "classification"?'),
    "train classification --optimzer.lr 1": (2, "no such setting: optimzer.lr; did you mean optimizer.lr?"),
    "train classification --backbone x": (2, "no such option: --backbone; did you mean --model?"),
    "train classification --learning-rate=1e-3": (2, "no such option: --learning-rate; did you mean --lr 1e-3?"),
    "train classification -b 64": (2, "no such option: -b; did you mean --batch?"),
    "train classification --warmup_epochs 3": (2, "did you mean --schedule.warmup_epochs?"),
    "train classification imgsz=640": (2, "imgsz=640 is no option; did you mean --size 640?"),
    "train epochs=10": (2, "did you mean --epochs 10?"),
    "train classification --model vit_base_patch16_224": (2, 'did you mean "vit/b16"?'),
    "train classification --model convnext_tiny": (2, "ConvNeXt is not here"),
    "train classification --model.head lineer": (2, 'no head "lineer"; did you mean "linear"?'),
    "train classification --lr fast": (2, "optimizer.lr cannot be 'fast'; it is a number"),
    "train classification --size 32y": (2, "say a side, or height x width: 224 or 320x480"),
    "train classification --data nowhere": (3, 'no such file or folder "nowhere"'),
    "train classification --resume --name gone": (5, "no run to resume in runs/gone"),
    "train classification --model.init_from facebook/dinov2-small": (4, "did you mean vit/dinov2_s14.lvd142m?"),
    "train classification --name first --data .": (5, "or go on with it: patchform train runs/first --resume"),
    "train classification": (2, "no data given; name a folder or a list: --data DIR"),
    "evaluate runs/frist": (4, 'no run folder or exported file "runs/frist"; did you mean "runs/first"?'),
    "evaluate runs": (4, 'did you mean "runs/first"?'),
    "evaluate runs/first --data nowhere": (3, 'no such file or folder "nowhere"'),
    "evaluate runs/first --device gpu": (2, "it cannot be 'gpu'; it is auto, cpu"),
    "predict model=best.pt x.jpg": (2, "did you mean best.pt alone?"),
    "predict nowhere x.jpg": (4, 'no run folder, exported file or published weights "nowhere"'),
    "predict vit/b16.augreg x.jpg": (2, 'did you mean "vit/b16.augreg_in21k"?'),
    "predict runs/first nowhere.jpg": (3, 'no such file or folder "nowhere.jpg"'),
    "predict runs/first x.jpg --conf 0.5": (2, "no such option: --conf; did you mean --threshold?"),
    "predict runs/first . --window 8 --scales 1 2": (2, "windows and scales at once"),
    "predict runs/first . --span 2": (2, "--span without --every"),
    "evaluate runs/first --stride 3": (2, "--stride without --window"),
    "bench runs/first --size 3": (2, "say height x width"),
    "train runs/frist --resume": (2, 'no recipe or run folder "runs/frist"; did you mean "runs/first"?'),
    "train classification --plan --model vit/nanoo": (2, 'did you mean "vit/nano"?'),
    "demo digit": (2, "digit"),
    "probe vit/tiny --data .": (2, 'no backbone "vit/tiny"; did you mean "vit/ti16"?'),
    "probe vit/b16 --data .": (2, "--weights FILE, or published ones: vit/b16."),
    "features ./nowhere x --out y.safetensors": (4, 'no run folder "./nowhere"'),
    "export nowhere": (4, 'no run folder "nowhere"'),
    "export --check nowhere.onnx": (4, 'no such file "nowhere.onnx"'),
    "bench nowhere": (4, 'no run folder or exported file "nowhere"'),
    "weights show nowhere": (4, 'no such file "nowhere"'),
    "weights list swin_tiny_patch4_window7_224": (2, "did you mean swin/t.ms_in1k"),
    "weights convert nowhere --to timm --out x": (4, 'no such file "nowhere"'),
    "data check nowhere": (3, 'no such file or folder "nowhere"'),
    "data check . --task clasification": (2, 'did you mean "classification"?'),
    "data show . --augmented clasification/small": (2, 'did you mean "classification/small"?'),
    "models resnet50": (2, 'no backbone "resnet50"; did you mean "resnet/50"?'),
    "recipes detecton": (2, 'did you mean "detection"?'),
}
SAID = {
    "--version": "patchform ",
    "models vit/b16": "86.6 M",
    "recipes detection": "detection/small",
    "completion bash": "complete -o default",
    "weights list swin/t --help": "PATTERN",
}
SCRIPT = """
import contextlib, io, json, sys
from patchform import cli
answers = {}
for line in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = cli.main(line.split(" "))
        except SystemExit as stopped:
            code = stopped.code
    heavy = [name for name in ("torch", "torchvision", "matplotlib", "scipy") if name in sys.modules]
    answers[line] = code, out.getvalue(), err.getvalue(), heavy
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """Of all lines, in one process in a folder with one run."""
    folder = tmp_path_factory.mktemp("here")
    (folder / "runs/first").mkdir(parents=True)
    (folder / "runs/first/model.json").write_text("{}")
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps([*REFUSED, *SAID]),
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env=environment,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", REFUSED)
def test_a_wrong_line_is_answered_without_torch(line, answers):
    code, out, err, heavy = answers[line]
    wanted, message = REFUSED[line]
    assert heavy == []
    assert (code, out) == (wanted, "")
    assert err.startswith("patchform: error E-")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("line", SAID)
def test_what_needs_no_torch_does_without(line, answers):
    code, out, err, heavy = answers[line]
    assert (code, err, heavy) == (0, "", [])
    assert SAID[line] in out


def test_a_right_line_is_not_refused_early(tmp_path):
    """The control: what exists passes every early check."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.json").write_text("{}")
    (tmp_path / "model.onnx").write_bytes(b"")
    early_checks.trained(str(tmp_path / "run"))
    early_checks.trained(str(tmp_path / "model.onnx"))
    early_checks.trained("vit/b16.augreg_in21k", published=True)
    early_checks.backbone("vit/b16", "hub:owner/name")
    early_checks.backbone("vit/b16.augreg_in21k", None)
    early_checks.source("https://example.org/x.safetensors#sha256=0")
    early_checks.sources(["nowhere.jpg", str(tmp_path)])
    early_checks.sources([str(tmp_path / "model.onnx" / "member.jpg")])  # a tar shard's, for all that is known
    early_checks.sources(["*.jpg"])
    early_checks.data(None)
    early_checks.published("swin")
    assert set(KINDS) == set(early_checks.EXPORTED)


def test_what_is_offered_can_be_typed(capsys):
    assert cli.main(["train", "classification", "data=my photos"]) == 2
    assert capsys.readouterr().err.endswith("did you mean --data 'my photos'?\n")


def test_words_that_only_look_like_settings_stay(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=1e-3").mkdir()
    assert cli.main(["evaluate", "lr=1e-3"]) == 4  # a folder of that name, which is no run
    assert "not an intact model" in capsys.readouterr().err
    assert cli.main(["predict", "nowhere", "--", "--odd.jpg"]) == 4
    assert "--odd" not in capsys.readouterr().err


@pytest.mark.parametrize("path", ["a" * 5000, "a" * 5000 + "/b", "a\0b", "\udce9", " ", "x" * 200 + "\n"])
def test_odd_paths_are_refused_in_one_short_line(path, capsys):
    for words in (
        ["evaluate", path],
        ["predict", path, "x"],
        ["data", "check", path],
        ["train", path],
        ["probe", path],
    ):
        assert cli.main([*words, *(["--data", "."] if words[0] == "probe" else [])]) in (2, 3, 4)
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "E-bug" not in said


# ------------------------------------------------------------------------------------------------------ names of others

MEANT = {
    **{"resnet50": "resnet/50", "resnet-50": "resnet/50", "microsoft/resnet-50": "resnet/50", "ResNet50": "resnet/50"},
    **{"vit_base_patch16_224": "vit/b16", "vit-b/16": "vit/b16", "ViT-B/16": "vit/b16", "vit_b_16": "vit/b16"},
    **{"google/vit-base-patch16-224": "vit/b16", "vit/base": "vit/b16", "vit-large": "vit/l16", "vit_l_32": "vit/l32"},
    **{"vit/tiny": "vit/ti16", "vit_tiny_patch16_384": "vit/ti16", "deit_small": "vit/s16", "vit/b": "vit/b16"},
    **{"swin_t": "swin/t", "swin/tiny": "swin/t", "swin-tiny": "swin/t", "swin_tiny_patch4_window7_224": "swin/t"},
    **{"microsoft/swin-tiny-patch4-window7-224": "swin/t", "swin_base_patch4_window12_384": "swin/b384"},
    **{"swinv2_tiny_window8_256": "swin/v2_t_w8", "swin_v2_t": "swin/v2_t_w8"},
    **{"microsoft/swinv2-tiny-patch4-window8-256": "swin/v2_t_w8"},
    **{"dinov2_vits14": "vit/dinov2_s14", "facebook/dinov2-with-registers-base": "vit/dinov2_reg_b14"},
    **{"dino_vits16": "vit/s16", "facebook/vit-mae-base": "vit/b16", "pvt_v2_b2": "pvt/v2_b2", "volo_d1": "volo/d1"},
    **{"openai/clip-vit-base-patch16": "clip/b16", "google/siglip-base-patch16-224": "siglip/b16"},
    **{"facebook/dinov3-vits16-pretrain-lvd1689m": "dinov3/s", "beit_base_patch16_224": "beit/b"},
    **{"deit3_small_patch16_224": "parallel_vit/deit3_s", "twins_svt_small": "twins/svt_s", "pvt_tiny": "pvt/v1_ti"},
}
FILES = {
    "facebook/dinov2-small": "vit/dinov2_s14.lvd142m",
    "facebook/dino-vits16": "vit/s16.dino",
    "timm/vit_base_patch16_224.augreg_in21k": "vit/b16.augreg_in21k",
    "facebook/dinov3-vitb16-pretrain-lvd1689m": "dinov3/b.lvd1689m",
}
NOTHING = ("convnext_tiny", "yolov8n.pt", "frobnicate", "x", "", "efficientnet_b0", "segformer-b0", "/nowhere/at/all")


@pytest.mark.parametrize("name", MEANT)
def test_a_backbone_by_the_name_that_others_give_it(name):
    meant = foreign_names.backbone(name, lookup.backbone_names(), model_table.weights_places())
    assert meant is not None
    assert meant.backbone == MEANT[name]


def test_published_files_by_the_names_that_others_give_them_and_what_is_not_here():
    known, places = lookup.backbone_names(), model_table.weights_places()
    for name, weights in FILES.items():
        assert foreign_names.backbone(name, known, places) == (weights.partition(".")[0], weights)
    for name in NOTHING:
        assert foreign_names.backbone(name, known, places) is None, name
    for name in known:  # our own mean themselves
        assert foreign_names.backbone(name, known, places).backbone == name
    assert foreign_names.absent("facebook/convnext-tiny-224") == "ConvNeXt"
    assert not foreign_names.absent("vit_base")


def test_every_option_of_others_leads_to_one_of_ours():
    ours = set()
    for parser in _leaves(cli._parser()):
        ours |= {option[2:] for option in parser._option_string_actions} | set(parser.settings())
    later = {"from"}
    assert {target for targets in foreign_names.OPTIONS.values() for target in targets} <= ours | later


def _leaves(parser):
    below = list(parser.verbs.choices.values()) if parser.verbs is not None else []
    return [leaf for one in below for leaf in _leaves(one)] or [parser]


def test_beginnings_of_data_that_are_no_files_are_those_that_are_held():
    from patchform.data import hub_sets

    assert set(early_checks.NO_FILES) == {hub_sets.PREFIX, own_parts.PREFIX}


def test_a_run_that_goes_on_elsewhere_names_its_process(tmp_path, capsys):
    from patchform.training import run

    (tmp_path / "photos" / "cat").mkdir(parents=True)
    words = ["train", "classification/small", "--data", str(tmp_path / "photos"), "--runs", str(tmp_path)]
    with run.opened(tmp_path, "one", stem="x", resume=False) as folder:
        assert cli.main([*words, "--name", "one"]) == 5
        said = capsys.readouterr().err
        assert f"the run exists already by process {os.getpid()} on " in said
        assert "choose another name" in said
        assert "--resume" not in said
        (folder / run.RECIPE).write_text("")
    assert cli.main([*words, "--name", "one"]) == 5
    assert "go on with it" in capsys.readouterr().err
