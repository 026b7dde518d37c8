"""From a recipe to a model: what backbone and loss are told, and how weights arrive."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from patchform.commands import recipes
from patchform.data.listing import Listing
from patchform.errors import ModelFileError, UsageError
from patchform.model import save
from patchform.records import Preprocessing
from patchform.settings import DataSettings, LossSettings, ModelSettings, Recipe, Transfer
from patchform.training import loop
from patchform.training.preparation import model_of

OPTIONS = [
    ({"options": {"patch": "eight"}}, "option patch of vit/nano cannot be 'eight'; it is a whole number"),
    ({"options": {"patch": 8, "width": 33, "heads": 2}}, "2 attention heads do not divide a width of 33"),
    ({"options": {"depth": 0}}, "option depth of vit/nano is 0; it must be at least 1"),
    ({"options": {"depth": -1}}, "option depth of vit/nano is -1; it must be at least 1"),
    ({"options": {"width": 0}}, "option width of vit/nano is 0; it must be at least 1"),
    ({"options": {"heads": 10**9}}, "model.options is {'heads': 1000000000}; it must be at most 1000000"),
    ({"options": {"position": "x"}}, "option position of vit/nano cannot be 'x'; it is one of none, "),
    ({"options": {"pacth": 8}}, 'no option of vit/nano "pacth"; did you mean "patch"?'),
    ({"head_options": {"dropout": "much"}}, "option dropout of head linear cannot be 'much'; it is a number"),
    ({"head_options": {"dropout": float("nan")}}, "model.head_options is {'dropout': nan}; it must be in "),
    (
        {"backbone": "pvt/nano", "options": {"widths": (8, 0, 8, 8), "heads": (1, 1, 1, 1)}},
        "pvt/nano under linear cannot be built with these",
    ),
]


@pytest.mark.parametrize(("model", "words"), OPTIONS)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_options_that_make_no_model_are_refused_before_data_are_read(model, words, tmp_path):
    recipe = Recipe(runs=str(tmp_path), data=DataSettings(path="nowhere"))
    recipe = replace(recipe, model=ModelSettings(**{"backbone": "vit/nano", **model}))
    with pytest.raises(UsageError) as caught:
        loop.train(recipe, progress=False)
    assert str(caught.value).startswith(words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("task", ["classification", "semantic_segmentation", "detection"])
@pytest.mark.parametrize("backbone", ["timesformer/nano", "vivit/nano"])
def test_a_backbone_of_clips_is_refused_for_pictures_before_data_are_read(task, backbone, tmp_path):
    recipe = recipes.resolve(task, {"data": {"path": "nowhere"}, "runs": tmp_path, "model": {"backbone": backbone}})
    with pytest.raises(UsageError, match=f"{backbone} looks at clips, not at pictures"):
        loop.train(recipe, progress=False)
    assert list(tmp_path.iterdir()) == []


def test_what_is_told_to_a_dense_head_is_its_own():
    recipe = Recipe(task="semantic_segmentation", model=ModelSettings(backbone="pvt/nano", head="setr"))
    listing = Listing(classes=CLASSES, items=(), root=Path(), ids=(1, 2, 3, 9))
    made = replace(recipe, loss=LossSettings(pixel_stride=3))
    model = model_of(made, listing, Preprocessing(size=(64, 64)), counts=COUNTS, say=print)
    assert (model.head.pixel_stride, model.ids) == (3, (1, 2, 3, 9))
    with pytest.raises(UsageError, match="pixel_stride is for masks"):
        loop.train(replace(made, task="classification", model=ModelSettings(backbone="vit/nano")), progress=False)


def classifier(**sections):
    recipe = Recipe(**{"model": ModelSettings(backbone="vit/nano"), **sections})
    listing = Listing(classes=CLASSES, items=(), root=Path())
    return model_of(recipe, listing, Preprocessing(size=(32, 32)), counts=COUNTS, say=print)


def test_what_is_told_to_a_classifier_and_its_backbone_is_their_own():
    plain = classifier()
    told = classifier(model=ModelSettings(backbone="vit/nano", drop_path=0.25), loss=LossSettings(smoothing=0.2))
    assert [one.head.smoothing for one in (plain, told)] == [0.0, 0.2]
    assert [one.backbone.layers()[-1].residual.rate for one in (plain, told)] == [0.0, 0.25]
    assert classifier(data=DataSettings(labels="multi")).head.labels == "multi"


@pytest.mark.parametrize(("head", "arrives"), [("auto", True), ("reinit", False)])
def test_weights_arrive_as_the_transfer_says(head, arrives, tmp_path):
    start = classifier()
    save(start, tmp_path / "start")
    source = {"init_from": str(tmp_path / "start"), "transfer": Transfer(head=head)}
    model = classifier(model=ModelSettings(backbone="vit/nano", **source))
    assert torch.equal(model.backbone.class_token, start.backbone.class_token)
    assert torch.equal(model.head.classifier.weight, start.head.classifier.weight) == arrives


@pytest.mark.parametrize(
    ("ours", "flags"),
    [
        ({"backbone": "swin/nano"}, "--model.backbone vit/nano --model.options '{\"depth\": 1}'"),
        (
            {"backbone": "vit/nano", "options": {"depth": 3}},
            "--model.backbone vit/nano --model.options '{\"depth\": 1}'",
        ),
    ],
)
def test_weights_of_another_backbone_name_it(ours, flags, tmp_path):
    save(classifier(model=ModelSettings(backbone="vit/nano", options={"depth": 1}, drop_path=0.1)), tmp_path / "start")
    with pytest.raises(ModelFileError) as caught:
        classifier(model=ModelSettings(**ours, init_from=str(tmp_path / "start")))
    assert 'the weights are of vit/nano with {"depth": 1}, the model to train has ' in str(caught.value)
    assert str(caught.value).endswith(f"take {flags}")
    own = ModelSettings(backbone="vit/nano", options={"depth": 1}, init_from=str(tmp_path / "start"))
    classifier(model=own)


CLASSES, COUNTS = ("sky", "road", "pole", "boat"), (900, 90, 10, 0)


def weights(kind, **loss):
    recipe = Recipe(
        task="semantic_segmentation",
        model=ModelSettings(backbone="pvt/nano", head="setr"),
        loss=replace(LossSettings(class_weights=kind), **loss),
    )
    listing = Listing(classes=CLASSES, items=(), root=Path())
    return model_of(recipe, listing, Preprocessing(size=(64, 64)), counts=COUNTS, say=print).head.losses.class_weights


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("none", [1, 1, 1, 1]),
        ("balanced", [1000 / 3600, 1000 / 360, 1000 / 40, 1]),
        ("root", [(1000 / 3600) ** 0.5, (1000 / 360) ** 0.5, 5, 1]),
        ([1.0, 2.0, 3.0, 4.0], [1, 2, 3, 4]),
    ],
)
def test_classes_weigh_as_asked_for(kind, wanted):
    assert weights(kind).tolist() == pytest.approx(wanted)
