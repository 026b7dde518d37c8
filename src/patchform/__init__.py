"""patchform: vision transformers, any backbone under any head.

    import patchform as pf

    pf.list_backbones("swin/*")
    backbone = pf.build_backbone("vit/s16", in_channels=4)
    model = pf.build_model("classification", backbone="swin/t", head="linear", classes=["cat", "dog"])
    report = pf.load_weights(model, tensors)
    model = pf.pretrained("swin/t.ms_in1k")
    found = pf.check_data("photos/")
    run = pf.train("classification", data="photos/", name="first")
    scores = pf.evaluate("runs/first", data="other/")
    prediction = pf.load("runs/first")("a.jpg")

Nothing heavy is imported before the first use of a name.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from patchform.commands.bench import bench as bench_run
    from patchform.commands.data import check_data as check_data
    from patchform.commands.data import convert_data as convert_data
    from patchform.commands.data import show_data as show_data
    from patchform.commands.evaluate import evaluate as evaluate
    from patchform.commands.export import export as export_run
    from patchform.commands.features import features as features
    from patchform.commands.probe import probe as probe
    from patchform.commands.runs import list_runs as list_runs
    from patchform.commands.train import plan as plan
    from patchform.commands.train import train as train
    from patchform.errors import PatchformError as PatchformError
    from patchform.loading import load_weights as load_weights
    from patchform.lookup import add_plugin as add_plugin
    from patchform.lookup import backbones as list_backbones
    from patchform.model import Model as Model
    from patchform.model import build_backbone as build_backbone
    from patchform.model import build_model as build_model
    from patchform.prediction import load as load
    from patchform.published_models import load_backbone as load_backbone
    from patchform.published_models import pretrained as pretrained

_HOMES = {
    "Model": "model:Model",
    "PatchformError": "errors:PatchformError",
    "add_plugin": "lookup:add_plugin",
    "bench_run": "commands.bench:bench",
    "build_backbone": "model:build_backbone",
    "build_model": "model:build_model",
    "check_data": "commands.data:check_data",
    "convert_data": "commands.data:convert_data",
    "evaluate": "commands.evaluate:evaluate",
    "export_run": "commands.export:export",
    "features": "commands.features:features",
    "list_backbones": "lookup:backbones",
    "list_runs": "commands.runs:list_runs",
    "load": "prediction:load",
    "load_backbone": "published_models:load_backbone",
    "load_weights": "loading:load_weights",
    "plan": "commands.train:plan",
    "pretrained": "published_models:pretrained",
    "probe": "commands.probe:probe",
    "show_data": "commands.data:show_data",
    "train": "commands.train:train",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'patchform' has no attribute {name!r}")
    home, _, attribute = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f"patchform.{home}"), attribute)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
