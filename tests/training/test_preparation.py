"""From a recipe to a model: what the loss is told."""

from dataclasses import replace
from pathlib import Path

import pytest

from patchform.data.listing import Listing
from patchform.records import Preprocessing
from patchform.settings import LossSettings, ModelSettings, Recipe
from patchform.training.preparation import model_of

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
