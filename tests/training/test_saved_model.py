"""A model's folder: the same model comes back, and anything else is refused with exit code 4."""

import json
import resource
import sys

import pytest
import torch

from patchform import model as models
from patchform.errors import ModelFileError, UsageError
from patchform.records import Batch, Preprocessing
from patchform.weights import files


def made(ids=None, **options):
    torch.manual_seed(0)
    return models.build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=["b", "ä a", "c"],
        ids=ids,
        preprocessing=Preprocessing(size=(32, 40), channels=1, mean=(0.4,), std=(0.2,)),
        backbone_options={"depth": 1, "maps_from": (1,)} | options,
        head_options={"class_weights": [1.0, 2.0, 3.0], "dropout": 0.5},
    )


@pytest.fixture
def folder(tmp_path):
    models.save(made(), tmp_path / "run")
    return tmp_path / "run"


def edit(folder, change):
    """Change model.json and make the manifest right again, as a hostile author would."""
    description = json.loads((folder / models.DESCRIPTION).read_text())
    change(description)
    weights = files.read_tensors(folder / models.WEIGHTS)
    with files.atomic_folder(folder) as place:
        files.write_tensors(place / models.WEIGHTS, weights)
        (place / models.DESCRIPTION).write_text(json.dumps(description))


def test_the_same_model_comes_back(folder):
    model, loaded = made().eval(), models.load(folder)
    assert json.dumps(models.describe(loaded)) == json.dumps(models.describe(model))
    assert not loaded.training
    batch = Batch(torch.randint(256, (2, 1, 32, 40), dtype=torch.uint8), (), ("", ""), ((32, 40), (10, 10)))
    for one, other in zip(model.predict(batch), loaded.predict(batch)):
        assert torch.equal(one.scores, other.scores)
    fresh = models.load(folder, weights=False)
    assert json.dumps(models.describe(fresh)) == json.dumps(models.describe(model))
    assert not torch.equal(fresh.backbone.patches.proj.weight, loaded.backbone.patches.proj.weight)


def test_thresholds_and_ids_come_back(tmp_path):
    thresholds, ids = (0.1, 1 / 3, 1.0), (7, "x", 3)
    models.save(made(ids), tmp_path / "run", thresholds=thresholds)
    assert models.load(tmp_path / "run").thresholds == thresholds
    assert models.load(tmp_path / "run").ids == ids
    models.save(models.load(tmp_path / "run"), tmp_path / "again")
    assert models.load(tmp_path / "again").thresholds == thresholds
    models.save(made(), tmp_path / "none")
    assert models.load(tmp_path / "none").thresholds is None


def test_a_model_put_together_by_hand_is_not_saved(tmp_path):
    known = made()
    model = models.Model(known.backbone, known.head, classes=known.classes, preprocessing=known.preprocessing)
    with pytest.raises(UsageError, match="put together by hand"):
        models.save(model, tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def put(*keys, value):
    def change(description):
        for key in keys[:-1]:
            description = description[key]
        description[keys[-1]] = value

    return change


def nest(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


HOSTILE = {
    "newer": put("format", value=models.FORMAT + 1),
    "no format": put("format", value="1"),
    "unknown key": put("_target_", value="os.system"),
    "unknown key inside": put("architecture", "class_path", value="builtins.exec"),
    "missing key": lambda description: description.pop("classes"),
    "missing key inside": lambda description: description["preprocessing"].pop("std"),
    "unknown backbone": put("architecture", "backbone", value="no/such"),
    "unknown size": put("architecture", "backbone", value="vit/giant"),
    "module path": put("architecture", "backbone", value="os:system/x"),
    "dotted path": put("architecture", "head", value="..model"),
    "parent folder": put("architecture", "backbone", value="../../evil/x"),
    "base": put("architecture", "head", value="base"),
    "unknown task": put("architecture", "task", value="nothing"),
    "unknown option": put("architecture", "backbone_options", value={"exec": 1}),
    "odd option": put("architecture", "backbone_options", value={"width": "x"}),
    "option in pixels": put("architecture", "backbone_options", value={"image_size": 10**9}),
    "wide": put("architecture", "backbone_options", value={"width": 999_999 // 3 * 3}),
    "deep": put("architecture", "backbone_options", value={"depth": 999_999}),
    "no classes": put("classes", value=[]),
    "million classes": put("classes", value=[str(number) for number in range(1_000_000)]),
    "classes of another kind": put("classes", value=[1, 2, 3]),
    "size": put("preprocessing", "size", value=[1_000_000, 32]),
    "large size": put("preprocessing", "size", value=[16_000, 16_000]),
    "three sizes": put("preprocessing", "size", value=[32, 32, 32]),
    "negative size": put("preprocessing", "size", value=[-32, 32]),
    "channels": put("preprocessing", "channels", value=1_000_000),
    "true for a number": put("preprocessing", "channels", value=True),
    "crop_share below 0": put("preprocessing", "crop_share", value=-1.0),
    "crop_share beyond all": put("preprocessing", "crop_share", value=1e300),
    "a mean of infinity": put("preprocessing", "mean", value=[1e400]),
    "a std of 0": put("preprocessing", "std", value=[0.0]),
    "a background": put("preprocessing", "background", value=256),
    "frames": put("preprocessing", "frames", value=-1),
    "deep and thin": put("architecture", "backbone_options", value={"depth": 100_000, "width": 1, "heads": 1}),
    "a million heads": put("architecture", "backbone_options", value={"heads": 1_000_000}),
    "nested": put("architecture", "head_options", value={"class_weights": nest(500)}),
    "mean of another length": put("preprocessing", "mean", value=[0.1, 0.2, 0.3, 0.4]),
    "text for a number": put("preprocessing", "mean", value="0.1"),
    "unknown word": put("preprocessing", "resize", value="stretch"),
    "other bits": put("preprocessing", "bits", value=32),
    "a threshold too few": put("thresholds", value=[0.5, 0.5]),
    "a threshold in words": put("thresholds", value=[0.5, 0.5, "0.5"]),
    "a negative threshold": put("thresholds", value=[0.5, 0.5, -0.5]),
    "an id too many": put("ids", value=[1, 2, 3, 4]),
    "an id twice": put("ids", value=[1, 2, 2]),
    "an id that is half": put("ids", value=[1, 2, 2.5]),
    "no word of thresholds": lambda description: description.pop("thresholds"),
    "other depth": put("architecture", "backbone_options", value={"depth": 2}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_a_file_may_not_say_is_refused_without_an_import_or_a_giant(folder, name):
    edit(folder, HOSTILE[name])
    modules, before = set(sys.modules), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFileError) as caught:
        models.load(folder)
    assert caught.value.exit_code == 4
    assert str(folder) in str(caught.value)
    assert not {module for module in set(sys.modules) - modules if not module.startswith(("torch", "patchform"))}
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024  # KiB


def reweigh(folder, change):
    tensors = files.read_tensors(folder / models.WEIGHTS)
    change(tensors)
    description = files.read_json(folder / models.DESCRIPTION)
    with files.atomic_folder(folder) as place:
        files.write_tensors(place / models.WEIGHTS, tensors)
        files.write_json(place / models.DESCRIPTION, description)


BIAS = "head.classifier.bias"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(BIAS), "1 tensors are missing or unexpected: head.classifier.bias"),
        (lambda tensors: tensors.update(extra=torch.zeros(1)), "1 tensors are missing or unexpected: extra"),
        (lambda tensors: tensors.update({BIAS: torch.zeros(4)}), r"head.classifier.bias is \(\(4,\), torch.float32\)"),
        (lambda tensors: tensors.update({BIAS: torch.zeros(3).half()}), "torch.float16"),
        (lambda tensors: tensors.update({BIAS: torch.tensor([0.0, float("nan"), 0.0])}), "bias is not finite"),
        (lambda tensors: tensors.update({BIAS: torch.tensor([0.0, float("inf"), 0.0])}), "bias is not finite"),
    ],
)
def test_weights_of_another_model_are_refused(folder, change, told):
    reweigh(folder, change)
    with pytest.raises(ModelFileError, match=told):
        models.load(folder)


def test_damage_is_noticed(folder, tmp_path):
    data = bytearray((folder / models.WEIGHTS).read_bytes())
    data[-1] ^= 1
    (folder / models.WEIGHTS).write_bytes(data)
    with pytest.raises(ModelFileError, match=r"not an intact model \(model.safetensors: .*SHA-256"):
        models.load(folder)
    for missing in (models.WEIGHTS, models.DESCRIPTION, files.MANIFEST):
        models.save(made(), folder)
        (folder / missing).unlink()
        with pytest.raises(ModelFileError, match=missing):
            models.load(folder)
    with pytest.raises(ModelFileError):
        models.load(tmp_path / "nowhere")
