"""What a task that is only named is trained by: settings that suit the data, the machine and the time there is.

Packaged recipes `<task>/small` and `<task>/small_N` differ in what they ask of pictures and machine. Taken is the
largest whose pictures are not larger than those of the data and of which as many epochs as it states fit into the time;
then so many epochs that the time is used. What is typed is never chosen. The recipe of the run folder holds what was
chosen: a resumed run chooses nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform import schema, system
from patchform.commands import recipes, starting
from patchform.commands.short_forms import SHORT_FORMS
from patchform.errors import UsageError
from patchform.settings import Recipe
from patchform.training.pace import in_words
from patchform.training.recipe_files import flat, merged, nested, plain, renamed

if TYPE_CHECKING:
    from patchform.data.dataset import Splits
    from patchform.data.overview import Overview
    from patchform.training.trial import Durations

TIME = "15m"
"""Where none is stated."""
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
ENLARGED = 1.3
"""Times that pictures may be enlarged for a recipe's input."""
MOST = 4
"""Times the epochs of a recipe that are taken at most, where there is time for more."""
SPARE = 0.95
"""Share of the time that is planned for."""
FEW_STEPS, SMALLEST_BATCH = 8, 8
"""Steps of an epoch that a batch is made smaller for, and how small."""
VALIDATING, FEW_VALIDATIONS = 0.1, 4
"""Share of the time of training that validations take at most, unless they are fewer."""


class Chosen(NamedTuple):
    """What to train."""

    recipe: str | Path | Recipe
    settings: dict[str, Any]
    """Over it, nested: typed or chosen."""
    notes: tuple[str, ...]
    """What was looked at, what was chosen, and how to ask for the same again; a sentence each."""


def seconds_of(text: str) -> float:
    """Seconds of "90s", "15m", "1h30m" or "2d". Raises UsageError for anything else."""
    written = text.strip().lower()
    if not re.fullmatch(r"(\d+(\.\d+)?[smhd])+", written):
        raise UsageError(f"a time of {text!r}", remedy="write it as 90s, 15m, 1h30m or 2d")
    seconds = sum(float(number) * UNITS[unit] for number, unit in re.findall(r"([\d.]+)([smhd])", written))
    if not seconds:
        raise UsageError(f"a time of {text!r}", remedy="give it some")
    return seconds


def limit(time: str | None, typed: Mapping[str, Any]) -> float:
    """Seconds that a run may take, `TIME` where none is stated.

    Raises:
        UsageError: a time that is none, or one beside epochs.
    """
    if time is not None and "training.epochs" in dict(flat(typed)):
        raise UsageError("a time and training.epochs", remedy="give one of them")
    return seconds_of(time or TIME)


def choose(
    recipe: str | Path | Recipe,
    typed: Mapping[str, Any],
    *,
    time: str | None = None,
    say: Callable[[str], None] = lambda sentence: None,
) -> Chosen:
    """What to train where a task is only named, or how long where a time is.

    Args:
        recipe: as of `recipes.resolve`.
        typed: settings that are given, nested.
        time: that the run may take; None: of a task `TIME`, and nothing is measured where epochs are typed.
        say: called with a sentence before anything that takes long.

    Returns:
        The same recipe and settings, without a note, where another recipe than a task is named and no time, or no data.

    Raises:
        UsageError: a time that is none, one beside epochs, or of several processes; whatever `recipes.resolve` raises.
        PatchformError: whatever opening the data and taking a few steps raise.
    """
    typed = plain(renamed(typed, None))
    seconds, given = limit(time, typed), dict(flat(typed))
    task = str(recipe) if str(recipe) in recipes.tasks() and not Path(str(recipe)).exists() else None
    if time is not None and _several_processes():
        raise UsageError("a time, of several processes", remedy="set training.epochs")
    resolved = recipes.resolve(recipe, typed)
    if (task is None and time is None) or resolved.data.path is None:
        return Chosen(recipe, dict(typed), ())
    splits = _opened(resolved)
    data, durations = _overview(splits), None
    offers = [_Offer(recipe, {}, resolved)] if task is None else _offers(task, typed, data)
    offer = offers[-1]
    if "training.epochs" not in given and not _several_processes():
        say(f"taking a few steps to see what fits into {time or TIME}")
        offer, durations = _largest(offers, splits, seconds)
        offer = offer.with_more(_for_time(offer.resolved, given, durations, SPARE * seconds), typed)
    takes = _takes(offer.resolved, durations) + ("" if time else " (--time 1h: longer)")
    return Chosen(offer.recipe, merged(offer.chosen, typed), _notes(offer, typed, data, takes=takes))


class _Offer(NamedTuple):
    """What may be trained."""

    recipe: str | Path | Recipe
    chosen: dict[str, Any]
    """Over it, below what is typed; nested."""
    resolved: Recipe

    def with_more(self, chosen: dict[str, Any], typed: Mapping[str, Any]) -> _Offer:
        """With more of it chosen."""
        more = merged(self.chosen, chosen)
        return _Offer(self.recipe, more, recipes.resolve(self.recipe, merged(more, typed)))


def _offers(task: str, typed: Mapping[str, Any], data: Overview) -> list[_Offer]:
    """Recipes that suit the pictures, from that for the smallest to that for the largest; one at least."""
    names = candidates(task, typed)
    fitting = [name for name in names if data.size is None or _suits(name, typed, data.size)] or names[:1]
    plain_offers = (_Offer(name, {}, recipes.resolve(name, typed)) for name in fitting)
    return [offer.with_more(_for_machine(offer.resolved, typed, data), typed) for offer in plain_offers]


def _largest(offers: Sequence[_Offer], splits: Splits, seconds: float) -> tuple[_Offer, Durations]:
    """The largest that can be trained for as many epochs as it states within so many seconds, or else the smallest."""
    for offer in reversed(offers):
        durations, training = _tried(offer.resolved, splits), offer.resolved.training
        if durations.total(training.epochs, training.validate_every) <= seconds:
            break
    return offer, durations


def candidates(task: str, typed: Mapping[str, Any]) -> list[str]:
    """Packaged recipes that a task may be trained by, from that for the smallest pictures to that for the largest."""
    known, knowing = recipes.packaged(), f"{task}/{recipes.STARTING}"
    if starting.from_weights(typed) and knowing in known:
        return [knowing]
    names = [name for name in known if re.fullmatch(rf"{re.escape(task)}/{recipes.DEFAULT}(_\d+)?", name)]
    return sorted(names, key=lambda name: min(recipes.resolve(name).preprocessing.size))


def _suits(name: str, typed: Mapping[str, Any], size: tuple[int, int]) -> bool:
    """Whether pictures of a size need not be enlarged much for the input of a recipe, or that is typed."""
    own = min(recipes.resolve(name).preprocessing.size)
    asked = min(recipes.resolve(name, typed).preprocessing.size)
    return own <= (asked if own != asked else ENLARGED * min(size))


def _opened(recipe: Recipe) -> Splits:
    from patchform.data.dataset import open_data
    from patchform.training.preparation import refuse_nonsense

    refuse_nonsense(recipe, new=True)
    return open_data(recipe.data, seed=recipe.training.seed, preprocessing=recipe.preprocessing, task=recipe.task)


def _overview(splits: Splits) -> Overview:
    from patchform.data.overview import overview

    return overview(splits)


def _tried(recipe: Recipe, splits: Splits) -> Durations:
    from patchform.training import trial

    return trial.measure(recipe, splits)


def _several_processes() -> bool:
    from patchform import distributed

    return not distributed.rank_and_world().single


def _for_machine(resolved: Recipe, typed: Mapping[str, Any], data: Overview) -> dict[str, Any]:
    """Settings for the number of pictures and the machine, those that are typed left out; nested."""
    given = dict(flat(typed))
    stated, chosen = resolved.training.batch_size, dict[str, Any]()
    batch = min(stated, max(SMALLEST_BATCH, 2 ** int(math.log2(max(1, data.training // FEW_STEPS)))))
    if batch < stated:
        chosen["training.batch_size"] = batch
        chosen["optimizer.lr"] = float(f"{resolved.optimizer.lr * math.sqrt(batch / stated):.2g}")
    if resolved.training.precision == "float32":
        chosen["training.precision"] = "auto"
    if workers := _workers():
        chosen["data.workers"] = workers
    if "training.batch_size" in given:
        chosen.pop("optimizer.lr", None)
    return nested({name: value for name, value in chosen.items() if name not in given})


def _workers() -> int:
    """Processes that decode: none where that would take a core of two from training."""
    import torch

    if torch.cuda.is_available():
        return min(8, system.cores() - 1)
    return min(4, system.cores() // 4)


def _for_time(recipe: Recipe, given: Mapping[str, Any], durations: Durations, seconds: float) -> dict[str, Any]:
    """So many epochs, and what depends on their number, that the time is used; nested."""
    stated = recipe.training
    every = max(stated.validate_every, math.ceil(durations.validation / (VALIDATING * durations.epoch)))
    epochs = int((seconds - durations.start - durations.validation) / (durations.epoch + durations.validation / every))
    epochs = max(1, min(MOST * stated.epochs, epochs))
    chosen = {
        "training.epochs": epochs,
        "training.validate_every": min(every, max(1, epochs // FEW_VALIDATIONS)),
        "schedule.warmup_epochs": round(min(recipe.schedule.warmup_epochs, epochs / 10), 2),
    }
    changed = {name: value for name, value in chosen.items() if value != dict(flat(dataclasses.asdict(recipe)))[name]}
    return nested({name: value for name, value in changed.items() if name not in given})


def _notes(offer: _Offer, typed: Mapping[str, Any], data: Overview, *, takes: str) -> tuple[str, ...]:
    values = ", ".join(f"{name} {schema.shown(value)}" for name, value in flat(offer.chosen))
    named = "" if isinstance(offer.recipe, Recipe) else f"recipe {offer.recipe}"
    lines = f"data: {data}", f"chosen: {', '.join(filter(None, (named, values)))}; {takes}"
    if isinstance(offer.recipe, Recipe):
        return lines
    settings = {name: value for name, value in merged(offer.chosen, typed).items() if name != "name"}
    return *lines, f"the same again: {command(offer.recipe, settings)}"


def _takes(recipe: Recipe, durations: Durations | None) -> str:
    """How long a run takes, in words."""
    if durations is None:
        return "nothing was measured"
    return f"that takes about {in_words(durations.total(recipe.training.epochs, recipe.training.validate_every))} here"


def command(recipe: str | Path, settings: Mapping[str, Any]) -> str:
    """The command line that trains by a recipe with settings over it."""
    short = {form.setting: form.option for form in SHORT_FORMS}
    words = [f"{short.get(name, f'--{name}')} {system.quoted(schema.shown(value))}" for name, value in flat(settings)]
    return " ".join(["patchform train", system.quoted(str(recipe)), *words])
