"""A run that goes on: what of its settings changed since it began, and what that does.

What a run is cannot change: its model, its classes and data, batch size, seed and optimizer are in each checkpoint
(`preparation.identity_of`), and another one is refused. All else may change, from the step on at which the run goes on;
of the table `EFFECTS` what each change does. More epochs stretch the schedule: the rate is a function of the share of
the run that is done, so it may rise where the run goes on, and is then said.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple, get_args

from patchform import distributed, schema
from patchform.device import Precision, fast_precision, slow_precision
from patchform.errors import UsageError
from patchform.settings import Origin, Recipe
from patchform.training import cached_features, run, schedule
from patchform.training.recipe_files import load
from patchform.training.run import RunContext
from patchform.training.schedule import RunLength
from patchform.weights.files import replace_text

ONWARD, SAME, UNREAD = "from here on", "changes no number", "not looked at: the run has its weights"
CHECKED = "refused where the model or the data are others"
EFFECTS = {
    **dict.fromkeys(
        (
            "task",
            "data",
            "preprocessing",
            "optimizer.name",
            "optimizer.options",
            "training.batch_size",
            "training.seed",
        ),
        CHECKED,
    ),
    **dict.fromkeys(("model.backbone", "model.head", "model.options", "model.head_options"), CHECKED),
    **dict.fromkeys(("model.drop_path", "loss.smoothing", "loss.class_weights"), CHECKED),
    **dict.fromkeys(
        ("loss.teacher.model", "loss.teacher.kind"), "refused where the teacher, or what is learnt of it, is another"
    ),
    **dict.fromkeys(("model.adapter", "model.lora.rank", "model.lora.alpha", "model.lora.products"), CHECKED),
    "data.features": ONWARD,
    "training.ema": "from here on; refused where there was no average, or would be none",
    "training.epochs": "the schedule is stretched over all of them",
    **dict.fromkeys(("data.workers", "training.save_every", "training.keep", "training.on_save_error"), SAME),
    **dict.fromkeys(("training.loggers", "model.checkpointing"), SAME),
    **dict.fromkeys(
        ("training.device", "training.threads", "training.micro_batch", "model.compile"), "other last bits"
    ),
    **dict.fromkeys(("model.init_from", "model.transfer"), UNREAD),
}
"""What a change of a setting, or of any in a section, does to a run that goes on; without a row it counts onward."""
ELSEWHERE = {"name", "runs"}
"""Settings that say where a run is: its folder may have been moved."""


class Change(NamedTuple):
    """A setting that is no longer what it was."""

    name: str
    before: str
    now: str

    @property
    def effect(self) -> str:
        """What it does."""
        parts = self.name.split(".")
        prefixes = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        return next((EFFECTS[prefix] for prefix in prefixes if prefix in EFFECTS), ONWARD)


class Settled(NamedTuple):
    """The settings that a run goes by."""

    recipe: Recipe
    """With its precision, which is not "auto"."""
    earlier: Recipe | None
    """What a resumed run went by until now; None of a new one, or where that cannot be read."""
    precision: str
    """In words, with a reason."""
    origin: Origin
    """Of the recipe."""

    @property
    def changes(self) -> list[Change]:
        """What changed since the run began."""
        return [] if self.earlier is None else changes(self.earlier, self.recipe)


def settle(recipe: Recipe, origin: Origin, context: RunContext, *, resume: bool) -> Settled:
    """Choose the precision, and say of a resumed run what changed: before its checkpoint is read, which may refuse it.

    A run keeps the precision that it began with, wherever it goes on, unless another one is asked for by name.
    """
    recipe = cached_features.as_looked_at(recipe)
    earlier, asked = _earlier(context) if resume else None, recipe.training.precision
    precision, why = asked, ""
    if asked == "auto":
        precision, reason = fast_precision(context.device)
        if earlier is not None and earlier.training.precision != "auto":
            precision, reason = earlier.training.precision, "what the run began with"
        names = {name: name for name in get_args(Precision)}
        precision = names[distributed.broadcast_text(lambda: precision)]  # processes may be on unlike machines
        why = f" (auto: {reason})"
    if slow := slow_precision(context.device, precision):
        why += f"; {slow}"
    settled = Settled(
        replace(recipe, training=replace(recipe.training, precision=precision)), earlier, f"{precision}{why}", origin
    )
    for line in said(settled.changes):
        context.reporter.note(line)
    return settled


def changes(before: Recipe, now: Recipe) -> list[Change]:
    """Every setting with another value, by its dotted name; not where the run is."""
    values = {field.name: field.value for field in schema.fields(before)}
    return [
        Change(field.name, schema.shown(values[field.name]), schema.shown(field.value))
        for field in schema.fields(now)
        if field.name not in ELSEWHERE and values[field.name] != field.value
    ]


def said(changed: list[Change]) -> list[str]:
    """Lines on what changed, aligned; none where nothing did."""
    if not changed:
        return []
    rows = [(change.name, f"{change.before} -> {change.now}", change.effect) for change in changed]
    wide, wider = (max(len(row[column]) for row in rows) for column in (0, 1))
    lines = [f"  {name:{wide}}  {values:{wider}}  {effect}" for name, values, effect in rows]
    return ["settings that are no longer those that this run had:", *lines]


def rate_note(settled: Settled, step: int, length: RunLength) -> str | None:
    """A sentence where the learning rate goes on at another value than it would have had; None where it does not."""
    if settled.earlier is None or not 0 < step < length.steps:
        return None
    before = RunLength(length.steps_per_epoch, length.steps_per_epoch * settled.earlier.training.epochs)
    old = _rate(settled.earlier, min(step, before.steps - 1), before)
    new = _rate(settled.recipe, step, length)
    if abs(new - old) <= 1e-9 * max(new, old):
        return None
    was = "was at its end at" if step >= before.steps else "would have gone on at"
    return f"the learning rate goes on at {new:.3g}; it {was} {old:.3g}"


def keep_earlier(settled: Settled, context: RunContext) -> None:
    """Keep the recipe that changed beside the new one: recipe-1.yaml, recipe-2.yaml, ...

    Raises:
        ResourceError: the disk is full or the folder is not writable.
    """
    if not (settled.changes and context.rank.is_main):
        return
    number = 1
    while (kept := context.folder / f"recipe-{number}.yaml").exists():
        number += 1
    replace_text(kept, (context.folder / run.RECIPE).read_text(encoding="utf-8"))
    context.reporter.note(f"the recipe until now is kept as {kept.name}")


def _rate(recipe: Recipe, step: int, length: RunLength) -> float:
    return recipe.optimizer.lr * schedule.multiplier(recipe.schedule, step, length)


def _earlier(context: RunContext) -> Recipe | None:
    """The recipe in the run folder; None, and a note, where there is none that can be read."""
    path = context.folder / run.RECIPE
    if not path.exists():
        return None
    try:
        return load(path)
    except UsageError as error:
        context.reporter.note(f"settings that changed since the run began are not known: {error}")
        return None
