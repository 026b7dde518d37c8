"""A row of WEIGHTS becomes a model that preprocesses, computes and names classes as its file wants it."""

import pytest
import torch
from reference import randomise
from safetensors.torch import save_file

import patchform as pf
from patchform import lookup
from patchform.errors import UsageError
from patchform.loading import class_names, export_weights
from patchform.model import build_model
from patchform.published import vit
from patchform.records import Preprocessing, WeightsFile

PREPROCESSING = Preprocessing(size=(32, 32), crop_share=0.5, interpolation="bilinear", mean=(0.5,) * 3, std=(0.25,) * 3)
OPTIONS = {"layer_scale": 0.1, "gelu": "tanh"}


def row(tag, **more):
    fields = {
        "variant": "nano",
        "tag": tag,
        "place": f"hub:owner/{tag}/model.safetensors",
        "megabytes": 0,
        "licence": "mit",
        "layout": "timm",
        "preprocessing": PREPROCESSING,
        "classes": 1000,
        "labels": "imagenet-1k",
        "backbone_options": OPTIONS,
    }
    return WeightsFile(**fields | more)


@pytest.fixture
def source(tmp_path, monkeypatch):
    """The model whose tensors are published under three names: whole, with other classes, and without a classifier."""
    rows = (row("whole"), row("wide", classes=5, labels=""), row("backbone", classes=0, labels=""))
    monkeypatch.setattr(vit, "WEIGHTS", rows)
    monkeypatch.setattr("socket.socket.connect", lambda *args: pytest.fail("the network"))
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    models = {}
    for tag, count in (("whole", 1000), ("wide", 5), ("backbone", 1)):
        model = build_model(
            "classification",
            backbone="vit/nano",
            head="linear",
            classes=tuple(map(str, range(count))),
            preprocessing=PREPROCESSING,
            backbone_options=OPTIONS,
        )
        models[tag] = randomise(model).eval()
        home = tmp_path / f"models--owner--{tag}"
        folder = home / "snapshots" / ("0" * 40)
        folder.mkdir(parents=True)
        (home / "refs").mkdir()
        (home / "refs" / "main").write_text("0" * 40)
        tensors = export_weights(model, "timm")
        if tag == "backbone":
            tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head")}
        save_file(tensors, folder / "model.safetensors")
    return models


def logits(model):
    images = torch.randint(0, 256, (2, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        return model.head(model.backbone(model.normalise(images)))


def test_it_is_the_published_model(source):
    said = []
    model = pf.pretrained("vit/nano.whole", say=said.append)
    assert torch.equal(logits(model), logits(source["whole"]))
    assert not torch.equal(logits(model), logits(source["wide"])[:, :1].expand(-1, 1000))  # control
    assert model.preprocessing == PREPROCESSING
    assert not model.training
    assert model.classes[:2] == ("tench", "goldfish")
    assert len(said) == 1
    assert said[0].startswith("layout timm: ")


def test_names_of_imagenet_are_all_different():
    names = class_names("imagenet-1k")
    assert len(names) == len(set(names)) == 1000
    assert class_names("") == class_names("imagenet-21k") == ()


def test_other_classes_go_by_name(source):
    model = pf.pretrained("vit/nano.whole", classes=("goldfish", "my cat"))
    theirs = source["whole"].head.classifier.weight
    assert torch.equal(model.head.classifier.weight[0], theirs[1])
    assert not (model.head.classifier.weight[1] == theirs).all(1).any()
    assert torch.equal(model.backbone.norm.weight, source["whole"].backbone.norm.weight)


def test_classes_without_names_have_to_be_named(source):
    for tag, what in (("wide", "5 classes have no names"), ("backbone", "no classifier")):
        with pytest.raises(UsageError, match=what):
            pf.pretrained(f"vit/nano.{tag}")
    assert torch.equal(logits(pf.pretrained("vit/nano.wide", classes="abcde")), logits(source["wide"]))
    model = pf.pretrained("vit/nano.backbone", classes=("a", "b"))
    assert torch.equal(model.backbone.norm.weight, source["backbone"].backbone.norm.weight)
    assert model.head.classifier.out_features == 2


def test_a_file_on_the_disk_serves_too(source, tmp_path):
    other = randomise(source["whole"], seed=1)
    save_file(export_weights(other, "timm"), tmp_path / "other.safetensors")
    model = pf.pretrained("vit/nano.whole", source=tmp_path / "other.safetensors")
    assert torch.equal(logits(model), logits(other))
    assert not torch.equal(logits(model), logits(pf.pretrained("vit/nano.whole")))  # control


def test_load_weights_takes_a_name(source):
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=class_names("imagenet-1k"),
        preprocessing=PREPROCESSING,
        backbone_options=OPTIONS,
    )
    pf.load_weights(model, "vit/nano.whole")
    assert torch.equal(logits(model.eval()), logits(source["whole"]))


def test_an_unknown_name_is_not_fetched(source):
    with pytest.raises(UsageError, match="no published weights"):
        pf.pretrained("vit/nano.hole")
    assert list(lookup.weights_files("vit")) == ["vit/nano.whole", "vit/nano.wide", "vit/nano.backbone"]
