"""Every row of WEIGHTS against what the installed timm and torchvision say of the same file; nothing is fetched."""

import dataclasses
import math

import pytest
import torch

from patchform import lookup
from patchform.layers.fitting import keeps_numbers
from patchform.loading import layouts_of, load_weights
from patchform.model import build_model
from patchform.published.base import LABELS
from patchform.settings import Transfer

ROWS = lookup.weights_files()
OF_TIMM = [name for name, row in ROWS.items() if row.place.startswith("hub:timm/")]
OF_TORCHVISION = [name for name, row in ROWS.items() if row.place.startswith("torchvision:")]
OF_GOOGLE = {
    "vit/ti16.google_augreg_in21k_ft_in1k": "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "vit/s16.google_augreg_in21k_ft_in1k": "vit_small_patch16_224.augreg_in21k_ft_in1k",
    "vit/b16.google_augreg_in21k_ft_in1k": "vit_base_patch16_224.augreg_in21k_ft_in1k",
    "vit/l16.google_augreg_in21k_ft_in1k": "vit_large_patch16_224.augreg_in21k_ft_in1k",
}


def architecture(row):
    """timm's name for a row."""
    return row.place.removeprefix("hub:timm/").removesuffix("/model.safetensors")


def built(name, row):
    """The model of a row, on no device."""
    with torch.device("meta"):
        return build_model(
            "classification",
            backbone=name.partition(".")[0],
            head=row.head,
            classes=tuple(map(str, range(row.classes or 1))),
            preprocessing=row.preprocessing,
            backbone_options=dict(row.backbone_options),
            head_options=dict(row.head_options),
        )


def differences(row, theirs):
    """Facts of a row that are not those of a configuration of timm."""
    p = row.preprocessing.resolved()
    ours = {
        "size": (3, *p.size),
        "crop": p.crop_share,
        "resize": p.resize,
        "interpolation": p.interpolation,
        "mean": p.mean,
        "std": p.std,
        "classes": row.classes,
        "licence": row.licence,
    }
    due = {
        "size": theirs.input_size,
        "crop": theirs.crop_pct,
        "resize": {"center": "crop", "squash": "squash"}[theirs.crop_mode],
        "interpolation": theirs.interpolation,
        "mean": tuple(theirs.mean),
        "std": tuple(theirs.std),
        "classes": theirs.num_classes,
        "licence": theirs.license,
    }
    return {key for key in due if ours[key] != due[key]}


def test_every_row_is_of_one_kind_and_names_what_exists():
    assert set(ROWS) == {*OF_TIMM, *OF_TORCHVISION, *OF_GOOGLE}
    assert len(ROWS) == sum(len(lookup.published(family).weights) for family in lookup.names("published"))
    for name, row in ROWS.items():
        assert row.sha256 is None  # none was published with the files
        assert row.labels == LABELS[row.classes], name
        assert 0 < row.preprocessing.crop_share <= 1, name


@pytest.mark.parametrize("name", OF_TIMM)
def test_facts_are_timms(name):
    models = pytest.importorskip("timm.models")
    row = ROWS[name]
    theirs = models.get_pretrained_cfg(architecture(row))
    assert theirs is not None
    assert theirs.hf_hub_id == row.place.removeprefix("hub:").removesuffix("/model.safetensors")
    assert theirs.hf_hub_filename is None  # so it is model.safetensors
    assert differences(row, theirs) == set()
    for odd in (
        {"classes": 999},
        {"licence": "?"},
        {"preprocessing": dataclasses.replace(row.preprocessing, crop_share=0.5)},
    ):
        assert differences(dataclasses.replace(row, **odd), theirs)  # control


@pytest.mark.parametrize("name", OF_GOOGLE)
def test_googles_files_are_those_that_timm_converted(name):
    models = pytest.importorskip("timm.models")
    theirs = models.get_pretrained_cfg(OF_GOOGLE[name])
    assert theirs.url == ROWS[name].place
    assert differences(ROWS[name], theirs) == set()


@pytest.mark.parametrize("name", OF_TORCHVISION)
def test_facts_are_torchvisions(name):
    models = pytest.importorskip("torchvision.models")
    row = ROWS[name]
    function, _, which = row.place.removeprefix("torchvision:").partition("/")
    theirs = models.get_model_weights(function)[which]
    transforms, p = theirs.transforms(), row.preprocessing.resolved()
    assert transforms.crop_size == [p.size[0]] == [p.size[1]]
    assert transforms.resize_size == [math.floor(p.size[0] / p.crop_share)]
    assert (tuple(transforms.mean), tuple(transforms.std)) == (p.mean, p.std)
    assert transforms.interpolation.value == p.interpolation
    assert len(theirs.meta["categories"]) == row.classes
    assert row.licence == theirs.meta.get("license", "bsd-3-clause")
    assert abs(theirs.meta["_file_size"] * 2**20 / 1e6 - row.megabytes) < 0.03 * row.megabytes + 2


@pytest.mark.parametrize("name", ROWS)
def test_megabytes_and_layout(name):
    row, model = ROWS[name], built(name, ROWS[name])
    size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    assert abs(size - row.megabytes) <= 4.5 + 0.001 * row.megabytes  # one without a classifier has 4 less
    assert row.layout in layouts_of(model.backbone)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*OF_TIMM, *OF_TORCHVISION])
def test_the_publishers_own_tensors_fit_without_any_resizing(name):
    row = ROWS[name]
    with torch.device("meta"):
        if name in OF_TIMM:
            timm = pytest.importorskip("timm")
            theirs = timm.create_model(architecture(row)).state_dict()
        else:
            models = pytest.importorskip("torchvision.models")
            function = row.place.removeprefix("torchvision:").partition("/")[0]
            sides = {"image_size": row.preprocessing.size[0]} if function.startswith("vit") else {}
            theirs = models.get_model(function, weights=None, **sides).state_dict()
    model = built(name, row)
    transfer = Transfer(head="reinit") if not row.classes else Transfer(head="load")
    report = load_weights(model, theirs, layout=row.layout, transfer=transfer)
    assert all(keeps_numbers(entry.note) for entry in report.of("resized"))  # tables without a row for the class token
    assert {entry.name for entry in report.of("new")} == (
        set() if row.classes else {"head.classifier.weight", "head.classifier.bias"}
    )
