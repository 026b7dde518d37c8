"""The verb: published weights are listed, files are looked into and written in other layouts, bit for bit."""

import dataclasses
import json
import pickle

import pytest
import torch
from PIL import Image
from reference import randomise
from safetensors.torch import load_file, save_file

import patchform as pf
from patchform import cli, lookup
from patchform.commands import conversion
from patchform.commands.candidates import Candidate, fit
from patchform.commands.weights import ACTIONS, EXAMPLE
from patchform.errors import ModelFileError
from patchform.loading import export_weights, load_weights
from patchform.model import build_model
from patchform.model import load as load_model
from patchform.model import save as save_model
from patchform.published import vit
from patchform.records import Preprocessing
from patchform.weights import hub

CLASSES = ("cat", "dog", "owl")


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network"))


def made(classes=CLASSES, side=32, seed=0, backbone="vit/nano", **options):
    model = build_model(
        "classification",
        backbone=backbone,
        head="linear",
        classes=classes,
        preprocessing=Preprocessing(size=(side, side)),
        **options,
    )
    return randomise(model, seed=seed).eval()


@pytest.fixture
def file(tmp_path):
    """The small model in timm's names."""
    save_file(export_weights(made(), "timm"), tmp_path / "timm.safetensors")
    return tmp_path / "timm.safetensors"


@pytest.fixture
def names(tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path / "names.txt"


def weights(*words):
    return cli.main(["weights", *map(str, words)])


def said(capsys):
    return capsys.readouterr().err.splitlines()[-1]


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_each_action_has_an_example(capsys):
    assert EXAMPLE.startswith("patchform weights list")
    for name in ACTIONS:
        with pytest.raises(SystemExit):
            weights(name, "--help")
        assert f"example: patchform weights {name} " in capsys.readouterr().out
    assert weights("fly") == 2


def test_list(capsys):
    assert weights("list", "vit/b16.*", "--json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert {row["name"] for row in rows} >= {"vit/b16.dino", "vit/b16.augreg_in21k_ft_in1k_384"}
    assert all(row["name"].startswith("vit/b16.") and row["preprocessing"]["size"][0] in (224, 384) for row in rows)
    assert weights("list", "swin") == 0
    assert "swin/v2_b_w12to24.ms_in22k_ft_in1k" in capsys.readouterr().out
    assert weights("list", "vit/b17.*") == 2


def test_list_says_how_files_are_got_at_and_what_is_here(tmp_path, monkeypatch, capsys):
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("PATCHFORM_CACHE", str(tmp_path / "own"))
    monkeypatch.setattr("socket.socket.connect", lambda *_: [][0])  # no network
    near, far, plain = "swin/t.ms_in1k", "swin/s.ms_in1k", "vit/ti16.google_augreg_in21k_ft_in1k"

    def here():
        assert weights("list", "*/t*.*", "--json") == 0
        return {row["name"]: row["cached"] for row in json.loads(capsys.readouterr().out)}

    assert set(here().values()) == {None}
    commit = "0" * 40
    home = tmp_path / "hub" / "models--timm--swin_tiny_patch4_window7_224.ms_in1k"
    for folder in (home / "snapshots" / commit, home / "refs"):
        folder.mkdir(parents=True)
    (home / "refs" / "main").write_text(commit)
    save_file({"a": torch.zeros(1)}, home / "snapshots" / commit / "model.safetensors")
    row = dataclasses.replace(lookup.weights_file(plain), sha256="ab" * 32)
    assert hub.cached(row) is None
    file = tmp_path / "own" / row.sha256[:16] / row.place.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    file.write_bytes(b"")
    found = here()
    assert found[near].endswith("model.safetensors")
    assert [name for name, path in found.items() if path] == [near]
    assert hub.cached(row) == file
    assert lookup.weights_file(plain).by_hand  # its sum is not known
    assert weights("fetch", near) == 0  # it is here
    assert capsys.readouterr().out == f"{near} is in {found[near]}\n"
    assert weights("list", "swin/*.*1k") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "input", "MB", "classes", "licence", "file"]
    cells = {line.split()[0]: line.split()[-3:] for line in lines}
    assert max(map(len, lines[:-5])) <= 80
    assert cells[near] == ["imagenet-1k", "mit", "here"]
    assert cells[far] == ["imagenet-1k", "mit", "open"]
    assert f"files from the hub are kept in {tmp_path / 'hub'} (HF_HUB_CACHE)" in lines
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert weights("fetch", far) == 4
    assert "not in the cache" in said(capsys)
    assert weights("fetch", near, "swin/none.x") == 2  # before anything is fetched


def test_show_of_published_weights_fetches_nothing(capsys):
    assert weights("show", "vit/b16.dino") == 0
    assert "hub:timm/vit_base_patch16_224.dino/model.safetensors" in capsys.readouterr().out
    assert weights("show", "vit/b16.dino", "--json") == 0
    assert json.loads(capsys.readouterr().out)["preprocessing"]["crop_share"] == 0.9


def test_show_finds_the_model(file, capsys):
    assert weights("show", file, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    (fit,) = found["fits"]
    assert (fit["backbone"], fit["head"], fit["layout"], fit["classes"]) == ("vit/nano", "linear", "timm", 3)
    assert found["numbers"] == sum(tensor.numel() for tensor in load_file(file).values())
    assert found["kind"] == "safetensors"
    assert weights("show", file, "--model", "vit/nano", "--all") == 0
    out = capsys.readouterr().out
    assert "blocks.1.mlp.fc2.bias  (48,)  float32" in out
    assert "vit/nano under linear, 3 classes\n" in out


def test_show_of_another_model_says_what_is_near(file, tmp_path, capsys):
    tensors = load_file(file)
    save_file({name: tensor for name, tensor in tensors.items() if "mlp" not in name}, tmp_path / "part.safetensors")
    assert weights("show", tmp_path / "part.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == []
    assert next(iter(found["nearest"])) == "vit"
    assert 0.5 < found["nearest"]["vit"] < 1
    assert weights("show", tmp_path / "part.safetensors", "--model", "vit/nano") == 0
    assert "fits no model: " in capsys.readouterr().out


@pytest.mark.slow
def test_show_tries_the_options_of_published_files(tmp_path, monkeypatch, capsys):
    options = {"layer_scale": 0.1}
    save_file(export_weights(made(backbone_options=options), "timm"), tmp_path / "a.safetensors")
    assert weights("show", tmp_path / "a.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["fits"] == []
    assert found["why"].startswith("vit/nano: ")
    row = dataclasses.replace(vit.WEIGHTS[0], variant="nano", backbone_options=options)
    monkeypatch.setattr(vit, "WEIGHTS", (row,))
    assert weights("show", tmp_path / "a.safetensors") == 0
    assert "vit/nano layer_scale=0.1 under linear, 3 classes" in capsys.readouterr().out


def test_show_of_a_run_folder(tmp_path, capsys):
    save_model(made(), tmp_path / "run")
    assert weights("show", tmp_path / "run", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["classes"]) == ("model folder", list(CLASSES))
    assert (found["fits"][0]["backbone"], found["fits"][0]["layout"]) == ("vit/nano", "patchform")


@pytest.mark.parametrize("layout", ["torchvision", "transformers", "google", "patchform", "timm"])
def test_to_any_layout_and_back_to_the_same_bits(layout, file, names, tmp_path, capsys):
    there = tmp_path / ("there" if layout == "patchform" else "there.safetensors")
    named = ("--classes", names) if layout == "patchform" else ()
    assert weights("convert", file, "--model", "vit/nano", "--to", layout, "--out", there, *named) == 0
    assert capsys.readouterr().out.startswith("layout timm: ")
    model = ("--model", "vit/nano") if layout != "patchform" else ()
    if layout == "patchform":
        out = tmp_path / "x.safetensors"
        assert weights("convert", there, "--model", "vit/nano", "--to", "timm", "--out", out) == 2
    assert weights("convert", there, *model, "--to", "timm", "--out", tmp_path / "back.safetensors") == 0
    before, after = load_file(file), load_file(tmp_path / "back.safetensors")
    assert same(before, after)
    after["norm.bias"][0] += 1e-6
    assert not same(before, after)  # control
    fresh = made(seed=1)
    load_weights(fresh, there)
    assert same(fresh.state_dict(), made().state_dict())


def test_a_model_folder_predicts(file, names, tmp_path):
    assert (
        weights(
            "convert", file, "--model", "vit/nano", "--to", "patchform", "--out", tmp_path / "own", "--classes", names
        )
        == 0
    )
    assert load_model(tmp_path / "own").classes == CLASSES
    Image.new("RGB", (40, 36), "red").save(tmp_path / "a.png")
    (answer,) = pf.load(tmp_path / "own").predict([tmp_path / "a.png"])
    assert answer is not None


def test_pickles_are_opened_here(tmp_path, capsys):
    state = export_weights(made(), "timm")
    torch.save({"model": state, "model_ema": state, "epoch": 3}, tmp_path / "both.pth")
    out = tmp_path / "out.safetensors"
    words = ("convert", tmp_path / "both.pth", "--model", "vit/nano", "--to", "torchvision", "--out", out)
    assert weights("show", tmp_path / "both.pth") == 4
    assert "patchform weights convert" in said(capsys)
    assert weights(*words) == 2
    assert '"model_ema" (32)' in said(capsys)
    assert weights(*words, "--part", "model_ema") == 0
    assert same(load_file(out), export_weights(made(), "torchvision"))


def test_a_prefix_says_what_of_a_file_is_meant(tmp_path, capsys):
    state = export_weights(made(), "timm")
    larger = {f"backbone.{name}": tensor for name, tensor in state.items()} | {"neck.weight": torch.ones(2)}
    save_file(larger, tmp_path / "larger.safetensors")
    torch.save({"model": larger, "best": 0.5}, tmp_path / "larger.pth")
    out = tmp_path / "out.safetensors"
    for name in ("larger.safetensors", "larger.pth"):
        words = ("convert", tmp_path / name, "--model", "vit/nano", "--to", "timm", "--out", out, "--force")
        assert weights(*words) == 4
        assert "32 names begin with backbone.; give --prefix backbone. " in said(capsys)
        assert weights(*words, "--prefix", "backbone.") == 0
        assert same(load_file(out), state)
        assert weights(*words, "--prefix", "back.") == 4
        assert 'no tensor begins with "back."' in said(capsys)
    assert weights("show", tmp_path / "larger.safetensors", "--model", "vit/nano") == 0
    assert "give --prefix backbone." in capsys.readouterr().out
    assert weights("show", tmp_path / "larger.safetensors", "--prefix", "backbone.", "--json") == 0
    assert [fit["backbone"] for fit in json.loads(capsys.readouterr().out)["fits"]] == ["vit/nano"]


def test_a_hostile_pickle_runs_nothing(tmp_path, capsys):
    class Hostile:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (tmp_path / "bad.pth").write_bytes(pickle.dumps({"a": Hostile()}, protocol=2))
    out = tmp_path / "out.safetensors"
    assert weights("convert", tmp_path / "bad.pth", "--model", "vit/nano", "--to", "timm", "--out", out) == 4
    assert not (tmp_path / "canary").exists()
    assert not out.exists()


def test_nothing_is_written_over_unless_forced(file, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    out.write_text("mine")
    words = ("convert", file, "--model", "vit/nano", "--to", "torchvision", "--out", out)
    assert weights(*words) == 5
    assert out.read_text() == "mine"
    assert weights(*words, "--force", "--json") == 0
    assert json.loads(capsys.readouterr().out)["out"] == str(out)
    assert same(load_file(out), export_weights(made(), "torchvision"))
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".tmp")] == []
    (tmp_path / "folder.safetensors").mkdir()
    assert weights(*words[:-1], tmp_path / "folder.safetensors", "--force") == 5


def test_no_number_changes_by_resizing(tmp_path, capsys):
    save_file(export_weights(made(side=48), "timm"), tmp_path / "large.safetensors")
    out = tmp_path / "out.safetensors"
    words = ("convert", tmp_path / "large.safetensors", "--model", "vit/nano", "--to", "torchvision", "--out", out)
    assert weights(*words) == 2
    assert "--image-size" in said(capsys)
    assert not out.exists()
    assert weights(*words, "--image-size", 48) == 0
    assert same(load_file(out), export_weights(made(side=48), "torchvision"))


def test_a_backbone_is_written_without_a_head(file, names, tmp_path, capsys):
    tensors = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("head.")}
    save_file(tensors, tmp_path / "backbone.safetensors")
    words = ("convert", tmp_path / "backbone.safetensors", "--model", "vit/nano", "--to")
    assert weights(*words, "torchvision", "--out", tmp_path / "out.safetensors") == 0
    written = load_file(tmp_path / "out.safetensors")
    whole = export_weights(made(), "torchvision")
    assert same(written, {name: whole[name] for name in whole if not name.startswith("heads.")})
    assert weights(*words, "patchform", "--out", tmp_path / "own", "--classes", names) == 2
    assert "leave them out: the folder is that of a backbone by itself" in said(capsys)
    assert weights(*words, "patchform", "--out", tmp_path / "own") == 0
    assert "the folder holds a backbone by itself" in said(capsys)
    bare = load_model(tmp_path / "own")
    assert (bare.architecture.head, bare.classes) == ("none", ())
    assert same(bare.backbone.state_dict(), made().backbone.state_dict())
    back = tmp_path / "back.safetensors"
    assert weights("convert", tmp_path / "own", "--to", "timm", "--out", back) == 0
    assert same(load_file(back), tensors)
    words = ("convert", file, "--model", "vit/nano", "--head", "none", "--to", "patchform", "--out", tmp_path / "cut")
    assert weights(*words) == 0
    assert same(load_model(tmp_path / "cut").state_dict(), bare.state_dict())


def test_a_file_of_fewer_tensors_than_the_backbone_is_found():
    model = pf.build_model("classification", backbone="pvt/nano", head="linear", classes=("a",))
    head = [name for name in model.state_dict() if name.startswith("head.")]
    tensors = export_weights(model, "mm_backbone", without=head)
    assert len(tensors) < 0.95 * sum(name.startswith("backbone.") for name in model.state_dict())
    found = conversion._overlap(conversion.Candidate(backbone="pvt/nano"), tensors, conversion.NAMED)
    assert found.named == 1
    assert found.alike >= conversion.ALIKE


def test_both_heads_of_a_distilled_model_are_found(tmp_path):
    model = made(backbone_options={"class_tokens": 2}, head_options={"parts": (48, 48)})
    save_file(export_weights(model, "timm_distilled"), tmp_path / "distilled.safetensors")
    words = ("convert", tmp_path / "distilled.safetensors", "--model", "vit/nano", "--option", "class_tokens=2")
    assert weights(*words, "--to", "transformers_distilled", "--out", tmp_path / "out.safetensors") == 0
    assert same(load_file(tmp_path / "out.safetensors"), export_weights(model, "transformers_distilled"))


def test_options_and_heads_are_said_or_found(tmp_path, capsys):
    model = made(backbone_options={"layer_scale": 0.1}, head_options={"hidden": 48})
    save_file(export_weights(model, "timm"), tmp_path / "scaled.safetensors")
    out = tmp_path / "out.safetensors"
    words = ("convert", tmp_path / "scaled.safetensors", "--model", "vit/nano", "--to", "timm", "--out", out)
    assert weights(*words) == 4
    assert "give --option layer_scale=1 (in a recipe model.options)" in said(capsys)
    assert weights(*words, "--option", "layer_scale=0.1") == 0
    assert weights(*words, "--option", "layer_scale=0.1", "--head-option", "hidden=48", "--force") == 0
    assert weights(*words, "--option", "layer_scale", "--force") == 2
    assert weights(*words, "--option", "layer_skale=1", "--force") == 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["detr", "detr_transformers_timm", "detr_masks"])
def test_whole_detectors_are_recognised(layout):
    head = "detr_masks" if "masks" in layout else "detr"
    with torch.device("meta"):
        task = "instance_segmentation" if head == "detr_masks" else "detection"
        model = build_model(task, backbone="resnet/18", head=head, classes=list(map(str, range(91))))
    tensors = {name: one for name, one in export_weights(model, layout).items() if "num_batches" not in name}
    found = fit(tensors, Candidate(backbone="resnet/18"))
    assert (found.architecture.head, found.architecture.task, found.classes) == (head, task, 91)
    assert found.report.layout == layout
    assert not found.report.of("dropped") + found.report.of("resized")
    some = {name: one for name, one in tensors.items() if "query" not in name}  # control
    with pytest.raises(ModelFileError):
        fit(some, Candidate(backbone="resnet/18"))


@pytest.mark.parametrize(
    ("more", "code", "what"),
    [
        (("--to", "timm", "--out", "{new}.safetensors"), 2, "which model is it for"),
        (("--to", "timm", "--out", "{new}", "--model", "vit/nano"), 2, "does not end in .safetensors"),
        (("--to", "tim", "--out", "{new}.safetensors", "--model", "vit/nano"), 2, 'did you mean "timm"'),
        (("--to", "timm", "--out", "{new}.safetensors", "--model", "vit/nona"), 2, "did you mean"),
        (("--to", "timm", "--out", "{new}.safetensors", "--model", "vit/ti16"), 4, "do not fit"),
        (("--to", "timm", "--out", "{new}.safetensors", "--model", "vit/nano", "--from", "google"), 4, "fit"),
        (("--to", "timm", "--out", "{new}.safetensors", "--model", "vit/nano", "--part", "a"), 2, "parts"),
        (("--to", "patchform", "--out", "{new}", "--model", "vit/nano"), 2, "the classes have no names"),
        (
            ("--to", "patchform", "--out", "{new}", "--model", "vit/nano", "--classes", "imagenet-1k"),
            2,
            "for 3 classes",
        ),
        (("--to", "patchform", "--out", "{new}", "--model", "vit/nano", "--classes", "no/such"), 2, "class names"),
        (("--out", "{new}.safetensors", "--model", "vit/nano"), 2, "--to"),
        (
            ("--to", "timm", "--out", "{new}.safetensors", "--model", "vit/nano", "--image-size", "0"),
            2,
            "it is 0",
        ),
        (("--to", "timm", "--out", "{new}/below/x.safetensors", "--model", "vit/nano"), 7, "cannot write"),
    ],
)
def test_what_cannot_be_converted(more, code, what, file, tmp_path, capsys):
    assert weights("convert", file, *(word.format(new=tmp_path / "new") for word in more)) == code
    assert what in said(capsys)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "new.safetensors").exists()


def test_old_files_without_counters_make_a_model_folder(names, tmp_path):
    state = export_weights(made(backbone="resnet/nano"), "torchvision")
    save_file({name: t for name, t in state.items() if "num_batches" not in name}, tmp_path / "old.safetensors")
    words = ("convert", tmp_path / "old.safetensors", "--model", "resnet/nano", "--to", "patchform")
    assert weights(*words, "--out", tmp_path / "own", "--classes", names) == 0
    assert int(load_model(tmp_path / "own").state_dict()["backbone.stem.norm.num_batches_tracked"]) == 0


def test_published_weights_name_size_options_and_classes_of_a_file(tmp_path, monkeypatch):
    preprocessing = Preprocessing(size=(48, 48), crop_share=0.5)
    options = {"layer_scale": 0.1}
    row = dataclasses.replace(
        vit.WEIGHTS[0], variant="nano", tag="x", preprocessing=preprocessing, backbone_options=options
    )
    monkeypatch.setattr(vit, "WEIGHTS", (row,))
    theirs = made(classes=tuple(map(str, range(1000))), side=48, backbone_options=options)
    save_file(export_weights(theirs, "timm"), tmp_path / "a.safetensors")
    words = ("convert", tmp_path / "a.safetensors", "--to", "patchform", "--out", tmp_path / "own", "--model")
    assert weights(*words, "vit/nano") != 0
    assert weights(*words, "vit/nano.x") == 0
    model = load_model(tmp_path / "own")
    assert (model.preprocessing, model.classes[0]) == (preprocessing.resolved(), "tench")
    assert same(model.state_dict(), theirs.state_dict())


def test_push_and_pull(tmp_path, monkeypatch, capsys):
    from patchform.weights import hub

    monkeypatch.setattr(hub, "push", lambda folder, name, *, public: f"{folder} {name} {public}")
    monkeypatch.setattr(hub, "pull", lambda name, folder, *, say: f"{name} {folder}")
    (tmp_path / "model.json").write_text("{}")
    assert weights("push", tmp_path, "owner/name", "--public", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"commit": f"{tmp_path} owner/name True"}
    assert weights("push", tmp_path / "none", "owner/name") == 4
    assert weights("pull", "owner/name@v1", "--out", tmp_path / "x", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"out": f"owner/name@v1 {tmp_path / 'x'}"}
