"""The fine-tuning recipes, in small: they start from a trained backbone, at their kind of resolution, and move it."""

import pytest
import torch

from patchform.commands import recipes
from patchform.commands.train import train
from patchform.model import build_model, load, save
from patchform.records import Preprocessing
from patchform.training import optimizer

NANO = {"backbone": "vit/nano", "drop_path": 0.0}
SHORT = {"epochs": 1, "batch_size": 40, "micro_batch": 0, "threads": 1, "device": "cpu", "loggers": ()}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """Trained at 32 px on other classes."""
    torch.manual_seed(0)
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=("x", "y", "z"),
        preprocessing=Preprocessing(size=(32, 32)),
    )
    folder = tmp_path_factory.mktemp("backbone") / "first"
    save(model, folder)
    return folder


@pytest.mark.parametrize(
    ("name", "size"), [("fine_tune_vit_384", 48), ("fine_tune_layer_decay", 32), ("fine_tune", 32)]
)
def test_a_recipe_moves_a_backbone(name, size, backbone, pictures, tmp_path):
    finished = train(
        f"classification/{name}",
        progress=False,
        page=False,
        name=name,
        runs=tmp_path,
        data={"path": pictures, "workers": 0},
        preprocessing={"size": size},
        model={**NANO, "init_from": backbone},
        training=SHORT | ({"epochs": 4, "validate_every": 4} if name == "fine_tune" else {}),  # it stays for two
    )
    before, after = load(backbone), load(finished.folder)
    assert (before.classes, after.classes) == (("x", "y", "z"), ("a", "b", "h", "v"))
    assert after.backbone.position.table.shape[1] == 1 + (size // 8) ** 2
    first, last = (moved(before, after, at) for at in (0, -1))
    assert 0 < first < 0.5
    assert moved(before, build_model("classification", backbone="vit/nano", head="linear", classes=("x",)), 0) > 1
    if "decay" in name or name == "fine_tune":  # layers near the input move least
        assert first < last


def moved(before, after, at):
    """How far a layer went, as a share of its length; two fresh ones are 1.4 apart."""
    one, other = (model.backbone.blocks[at].attention.qkv.weight for model in (before, after))
    return (other - one).norm() / one.norm()


def test_the_rates_are_those_of_the_papers():
    model = build_model("classification", backbone="vit/nano", head="linear", classes=("x", "y"))
    paper = recipes.resolve("classification/fine_tune_vit_384")
    groups = optimizer.build(model, paper.optimizer).param_groups
    assert {(group["momentum"], group["weight_decay"], group["lr_scale"]) for group in groups} == {(0.9, 0, 1)}
    assert paper.training.epochs * (1_281_167 // paper.training.batch_size + 1) == 20_024
    assert paper.schedule.warmup_epochs * (1_281_167 // paper.training.batch_size) == pytest.approx(500, abs=1)
    decayed = recipes.resolve("classification/fine_tune_layer_decay")
    groups = optimizer.build(model, decayed.optimizer).param_groups
    assert {round(group["lr_scale"], 6) for group in groups} == {1.0, 0.65, round(0.65**2, 6), round(0.65**3, 6)}
    assert decayed.optimizer.lr == pytest.approx(5e-4 * decayed.training.batch_size / 256)
    assert decayed.optimizer.lr * decayed.schedule.floor == pytest.approx(1e-6)
