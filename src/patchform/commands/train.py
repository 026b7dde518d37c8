"""Train a model by a recipe."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from patchform.commands import recipes
from patchform.settings import Recipe

if TYPE_CHECKING:
    from patchform.training.loop import Run

EXAMPLE = "patchform train classification --data photos/ --name first --optimizer.lr 5e-4"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Any setting of a recipe, `--section.key value`, is taken too."""
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file, packaged recipe, run folder, or a task's name")
    parser.add_argument("--data", metavar="DIR", help="folder or CSV list: short for --data.path")
    parser.add_argument("--name", help="run folder below --runs")
    parser.add_argument("--runs", metavar="DIR", help="folder of run folders (default: runs)")
    parser.add_argument("--resume", action="store_true", help="go on with a run that was stopped")


def more_help() -> str:
    """The settings."""
    return "\nsettings, over those of the recipe:\n\n" + recipes.help_text()


def run(arguments: argparse.Namespace) -> int:
    """Train and say where the model is."""
    given = {"data.path": arguments.data, "name": arguments.name, "runs": arguments.runs}
    flags = {name: value for name, value in given.items() if value is not None} | arguments.settings
    finished = train(arguments.recipe, resume=arguments.resume, **recipes.nested(flags))
    if arguments.json:
        numbers = {"step": finished.step, "best": finished.best, "best_step": finished.best_step}
        print(json.dumps({"run": str(finished.folder), **numbers}))
    else:
        print(f"the model is in {finished.folder}")
    return 0


def train(
    recipe: str | Path | Recipe = "classification", *, resume: bool = False, progress: bool = True, **settings: Any
) -> Run:
    """Train a model, or go on with a run.

    Args:
        recipe: YAML file, packaged recipe, run folder, task, or a `Recipe`.
        resume: go on from the newest whole checkpoint.
        progress: show how it goes, on stderr.
        settings: over the recipe's, nested as there: `name="first"`, `optimizer={"lr": 1e-3}`; `data="photos/"` is
            short for `data={"path": "photos/"}`.

    Returns:
        The finished run: its folder and its best model.

    Raises:
        UsageError: an unknown recipe or setting.
        PatchformError: whatever `training.loop.train` raises.
    """
    if isinstance(settings.get("data"), str | Path):
        settings["data"] = {"path": settings["data"]}
    if resume and isinstance(recipe, str | Path) and (Path(recipe) / "recipe.yaml").is_file():
        folder = Path(recipe).resolve()  # it may have been moved since
        settings |= {"name": folder.name, "runs": str(folder.parent)}
    resolved = recipes.resolve(recipe, settings)

    from patchform.training import loop

    return loop.train(resolved, resume=resume, progress=progress)
