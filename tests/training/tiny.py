"""The smallest run that shows everything: ViT nano, 32 px, synthetic pictures of four classes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from patchform.descriptions import Preprocessing
from patchform.settings import (
    AugmentationSettings,
    DataSettings,
    ModelSettings,
    OptimizerSettings,
    Recipe,
    ScheduleSettings,
    TrainingSettings,
)


def pictures(folder, count=200):
    """`count` PNGs below folder/train and a fifth of it below folder/val: a class is a direction of stripes."""
    dice = np.random.default_rng(0)
    for part, number in (("train", count), ("val", count // 5)):
        for index in range(number):
            kind = index % 4
            y, x = np.mgrid[:36, :40]
            wave = np.sin((x, y, x + y, x - y)[kind] * 0.7 + dice.uniform(0, 6))
            pixels = 128 + 60 * wave[..., None] * dice.uniform(0.3, 1, 3) + dice.normal(0, 20, (36, 40, 3))
            place = Path(folder) / part / "hvab"[kind]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index:03d}.png")
    return Path(folder)


def recipe(path, runs, name="run", **sections):
    """A recipe of a few seconds; `sections` override single settings, training={"ema": 0.9}, or the task."""
    made = Recipe(
        name=name,
        runs=str(runs),
        data=DataSettings(path=str(path)),
        preprocessing=Preprocessing(size=(32, 32)),
        model=ModelSettings(backbone="vit/nano"),
        augmentation=AugmentationSettings(crop_scale=(0.5, 1.0)),
        optimizer=OptimizerSettings(lr=2e-3),
        schedule=ScheduleSettings(warmup_epochs=0.5),
        training=TrainingSettings(epochs=2, batch_size=32, save_every=3, threads=1, device="cpu", loggers=()),
    )
    task = sections.pop("task", made.task)
    return replace(made, task=task, **{key: replace(getattr(made, key), **values) for key, values in sections.items()})


EVERYTHING = {
    "data": {"balanced": True},
    "model": {"drop_path": 0.2, "head_options": {"dropout": 0.1}},
    "augmentation": {"mixup": 0.4, "cutmix": 1.0},
    "loss": {"smoothing": 0.1, "class_weights": "balanced"},
    "optimizer": {"clip": 1.0, "layer_decay": 0.8},
    "training": {"ema": 0.9, "micro_batch": 12},
}
"""Every option that holds state or draws random numbers, at once."""
