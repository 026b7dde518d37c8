import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from losses import total_loss
from reference import randomise
from safetensors.torch import save_file

import patchform as pf
from patchform import lookup
from patchform.errors import ModelFileError, UsageError
from patchform.published import detr, faster_rcnn, mae, retinanet
from patchform.records import Batch, Label, Preprocessing
from patchform.weights.rules import Rules

NAMES = ("cat", "dog", "owl")


def model(backbone="vit/nano", **options):
    torch.manual_seed(0)
    return pf.build_model("classification", backbone=backbone, head="linear", classes=NAMES, **options)


def batch(images, **options):
    labels = tuple(Label(torch.tensor([i % 3])) for i in range(len(images)))
    sizes = ((images.shape[-2], images.shape[-1]),) * len(images)
    return Batch(images, labels, tuple(map(str, range(len(images)))), sizes, **options)


@pytest.mark.parametrize("backbone", [f"{family}/nano" for family in lookup.names("backbones")])
def test_any_backbone_learns_and_predicts(backbone):
    built = model(backbone)
    clip = (built.backbone.frames,) if built.backbone.frames else ()
    images = torch.randint(0, 256, (6, *clip, 3, 32, 32), dtype=torch.uint8)
    optimizer = torch.optim.AdamW(built.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss = total_loss(built(batch(images)))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    found = built.eval().predict(batch(images))
    assert [label.scores.shape for label in found] == [(3,)] * 6
    assert all(label.classes.shape == (1,) for label in found)


def test_the_model_normalises():
    built = model(preprocessing=Preprocessing(size=(32, 32), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    pixels = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(built.normalise(pixels), (pixels / 255 - mean) / std)
    torch.testing.assert_close(built.normalise(pixels / 255), (pixels / 255 - mean) / std)
    clips = pixels[:, None].expand(-1, 6, -1, -1, -1)
    torch.testing.assert_close(built.normalise(clips)[:, 3], built.normalise(pixels))
    padding = torch.zeros(2, 4, 5, dtype=torch.bool)
    padding[1, 2:] = True
    assert built.normalise(pixels, padding)[1, :, 2:].abs().max() == 0
    assert built.normalise(clips, padding)[1, :, :, 2:].abs().max() == 0
    assert torch.equal(built.normalise(pixels, padding)[0], built.normalise(pixels)[0])


def test_options_go_over_the_row_and_wrong_ones_are_named():
    assert pf.build_backbone("vit/nano", depth=3, in_channels=5).patches.proj.in_features == 5 * 64
    for wrong, nearest in (("vit/nanoo", "vit/nano"), ("swim/t", "swin/t"), ("vit/s17", "vit/s16")):
        with pytest.raises(UsageError, match=f'did you mean "{nearest}"'):
            pf.build_backbone(wrong)
    with pytest.raises(UsageError, match='did you mean "depth"'):
        pf.build_backbone("vit/nano", dept=3)
    with pytest.raises(UsageError, match="does not serve"):
        pf.build_model("classification", backbone="vit/nano", head="setr", classes=NAMES)
    for given in ("features", "classes"):
        with pytest.raises(UsageError, match=f'no option of head linear "{given}"'):
            model(head_options={given: 3})
    with pytest.raises(UsageError, match="2 numbers for 3 channels"):
        model(preprocessing=Preprocessing(mean=(0.5, 0.5)))


def test_names_match_by_pattern():
    assert pf.list_backbones("swin/*") == [f"swin/{size}" for size in lookup.module("backbones", "swin").VARIANTS]
    assert pf.list_backbones("*/nano") == [f"{family}/nano" for family in lookup.names("backbones")]
    assert set(pf.list_backbones("vit")) < set(pf.list_backbones())
    assert pf.list_backbones("no/such") == []


OF_ITS_OWN = {
    **{f"{of}_v2{part}": "swin/v2_nano" for of in ("torchvision", "transformers", "mm") for part in ("", "_backbone")},
    **{f"transformers_v1{part}": "pvt/nano_v1" for part in ("", "_backbone")},
    **dict.fromkeys(("meituan_dense", "mmseg_svt"), "twins/nano_dense"),
    **{f"scenic{model}": f"vivit/nano{model}" for model in ("_fe", "_fsa")},
}
"""Layouts of a version that the nano row is not."""
OPTIONS = {
    "_parts": {"head_options": {"parts": (128, 256)}},
    "_distilled": {"backbone_options": {"class_tokens": 2}, "head_options": {"parts": (48, 48)}},
}
"""By what their names have in them: layouts of models with other options than the row has."""
OF_DETECTORS = {
    *retinanet.layouts(Rules()),
    *faster_rcnn.layouts(Rules()),
    *detr.layouts(Rules(), Rules()),
    *mae.layouts(Rules(), Rules(), Rules()),
    "dino",
    "dinov2_training",
}
"""Layouts with heads of their own; tests/heads and tests/pretraining load them."""
OF_SEGMENTERS = ("_upernet", "_semantic_fpn", "setr_naive", "setr_pup", "setr_mla")
"""The same; tests/published/test_segmenters.py has a table of all of them."""


@pytest.mark.parametrize(
    ("family", "layout"),
    [
        (family, name)
        for family in lookup.names("backbones")
        for name in lookup.published(family).layouts
        if name not in OF_DETECTORS and not name.endswith(OF_SEGMENTERS)
    ],
)
def test_published_weights_load_into_models_and_bare_backbones(family, layout, tmp_path):
    options = next((options for ending, options in OPTIONS.items() if ending in layout), {})
    name = OF_ITS_OWN.get(layout, "cross_vit/9" if family == "cross_vit" else f"{family}/nano")
    built = randomise(model(name, **options))
    if layout.endswith("_no_embed_class"):
        with torch.no_grad():
            built.backbone.position.table[:, :1] = 0
    sizes = {"front": 1, "patch": 2 if family == "swin" else 8, "channels": 3, "heads": 3}
    sizes |= {"frames": 2} if family == "vivit" else {}
    written = lookup.published(family).layouts[layout].dump(built.state_dict(), sizes=sizes)
    published = {name: tensor.contiguous().clone() for name, tensor in written.items()}
    fresh = randomise(model(name, **options), seed=1)
    report = pf.load_weights(fresh, published, layout=layout)
    assert not report.dropped
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), built.state_dict().values()))
    save_file(published, tmp_path / "w.safetensors")
    backbone = pf.build_backbone(built.architecture.backbone, **built.architecture.backbone_options)
    report = pf.load_weights(backbone, tmp_path / "w.safetensors", layout=layout)
    assert {drop.note for drop in report.dropped} == {"a backbone has no head"}
    assert all(torch.equal(a, b) for a, b in zip(backbone.state_dict().values(), built.backbone.state_dict().values()))


def test_weights_that_do_not_fit_change_nothing():
    built = model()
    layout = lookup.published("vit").layouts["timm"]
    published = layout.dump(built.state_dict(), sizes={"patch": 8, "channels": 3})
    before = {name: tensor.clone() for name, tensor in built.state_dict().items()}
    for spoil in (
        lambda w: w.pop("norm.weight"),
        lambda w: w.update(extra=torch.zeros(1)),
        lambda w: w.update({"head.weight": torch.zeros(5, 48)}),
        lambda w: w.update({"module.norm.weight": w.pop("norm.weight")}),
    ):
        wrong = dict(published)
        spoil(wrong)
        with pytest.raises(ModelFileError):
            pf.load_weights(built, wrong)
        assert all(torch.equal(tensor, before[name]) for name, tensor in built.state_dict().items())
    with pytest.raises(UsageError, match="no layout"):
        pf.load_weights(built, published, layout="tim")


def test_public_names_come_late_and_all_exist():
    code = "import sys, patchform; print([m for m in ('torch', 'torchvision', 'PIL', 'numpy') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"
    rooms = {path.stem for path in Path(pf.__file__).parent.iterdir()}
    assert not rooms & set(pf.__all__)  # the import of a room would put it where the function is looked for
    for name in pf.__all__:
        assert getattr(pf, name) is not None
    with pytest.raises(AttributeError):
        pf.no_such_name  # noqa: B018
    assert json.dumps(pf.__version__)
