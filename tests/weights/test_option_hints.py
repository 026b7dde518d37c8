"""Weights that do not fit the options of a backbone say which ones to give, in one line; given those, they fit."""

import pytest
import torch

import patchform as pf
from patchform.errors import ModelFileError
from patchform.loading import export_weights
from patchform.model import build_model

BOTH = {"layer_scale": 1.0, "registers": 4}


def made(family="vit", **options):
    with torch.device("meta"):
        return build_model(
            "classification", backbone=f"{family}/nano", head="linear", classes=("a", "b"), backbone_options=options
        )


def said(target, source):
    with torch.device("meta"), pytest.raises(ModelFileError) as caught:
        pf.load_weights(target.backbone, source)
    return str(caught.value)


CASES = [
    ("timm", {"layer_scale": 1.0}, {}, "--option layer_scale=1 ("),
    ("dinov2", BOTH, {}, "--option layer_scale=1 --option registers=4 ("),
    ("dinov2_swiglu", {**BOTH, "mlp": "swiglu"}, {"registers": 4}, "--option layer_scale=1 --option mlp=swiglu ("),
    ("timm", {"mlp": "swiglu"}, {}, "--option mlp=swiglu ("),
    ("timm", {}, {"mlp": "swiglu"}, "--option mlp=gelu ("),
    ("transformers_dinov2_backbone", BOTH, {"layer_scale": 1.0}, "--option registers=4 ("),
    ("transformers_dinov2_backbone", BOTH, BOTH | {"registers": 2}, "--option registers=4 ("),
    ("transformers_dinov2_swiglu", {**BOTH, "mlp": "swiglu"}, BOTH, "--option mlp=swiglu ("),
    ("timm", {"registers": 4}, BOTH, "--option layer_scale=null ("),
    ("timm", {}, {"registers": 4}, "--option registers=0 ("),
    ("timm_distilled", {"class_tokens": 2}, {}, "--option class_tokens=2 ("),
    ("timm", {"summary": "mean_then_norm", "class_tokens": 1}, {}, "--option summary=mean_then_norm ("),
]


@pytest.mark.parametrize(("layout", "theirs", "ours", "words"), CASES)
def test_the_options_are_named_and_then_it_fits(layout, theirs, ours, words):
    source = export_weights(made(**theirs), layout, without=("head.classifier.weight", "head.classifier.bias"))
    line = said(made(**ours), source)
    assert f"give {words}" in line
    assert len(line) < 250
    given = dict(ours)
    for word in words.removesuffix(" (").split("--option ")[1:]:
        name, _, value = word.strip().partition("=")
        given[name] = {"null": None}.get(value, int(value) if value.isdigit() else value)
    if "mean_then_norm" in words:
        given["class_tokens"] = 1
    with torch.device("meta"):
        report = pf.load_weights(made(**given).backbone, source)
    assert not report.of("new")
    assert not report.of("resized")


TOWERS = [
    ("dinov3", "timm", {"qkv_bias": False}, {}, "qkv_bias=false"),
    ("dinov3", "dinov3", {}, {"qkv_bias": False}, "qkv_bias=true"),
    ("dinov3", "transformers_5", {"registers": 2}, {}, "registers=2"),
    ("dinov3", "timm_swiglu", {"mlp": "swiglu"}, {}, "mlp=swiglu"),
    ("dinov3", "dinov3", {}, {"mlp": "swiglu"}, "mlp=gelu"),
    ("eva02", "eva", {}, {"inner_norm": False}, "inner_norm=true"),
    ("eva02", "timm_packed", {"inner_norm": False}, {}, "inner_norm=false"),
    ("eva02", "timm", {"summary": "class"}, {}, "summary=class"),
    ("beit", "transformers", {}, {"summary": "class"}, "summary=mean_then_norm"),
    ("beit", "beit", {"layer_scale": None}, {}, "layer_scale=null"),
    ("siglip", "timm", {"summary": "mean"}, {}, "summary=mean"),
    ("siglip", "transformers", {}, {"summary": "mean"}, "summary=attention"),
]


@pytest.mark.parametrize(("family", "layout", "theirs", "ours", "words"), TOWERS)
def test_towers_name_theirs(family, layout, theirs, ours, words):
    source = export_weights(made(family, **theirs), layout, without=("head.classifier.weight", "head.classifier.bias"))
    assert f"give --option {words} (" in said(made(family, **ours), source)


def test_other_faults_keep_their_own_words():
    source = export_weights(made(), "timm", without=("head.classifier.weight", "head.classifier.bias"))
    source.pop("norm.weight")
    assert "the source has no norm.weight" in said(made(), source)
    deeper = export_weights(made(depth=3), "timm", without=("head.classifier.weight", "head.classifier.bias"))
    assert "--option" not in said(made(), deeper)
