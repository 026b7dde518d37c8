"""Write the pages that are made from the code: settings.md, command-line.md, data-formats.md, choose-a-model.md.

python docs/make_reference.py            # writes; some seconds
python docs/make_reference.py --check    # writes nothing; exit code 1 and the names of the pages that are others
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from patchform import cli, lookup, model_table, schema
from patchform.commands import recipe_list, recipes
from patchform.commands.short_forms import SHORT_FORMS
from patchform.data.faults import KINDS
from patchform.data.foreign_formats import FOREIGN
from patchform.data.formats.base import Format, WritableFormat
from patchform.data.listing import TRAIN, VALIDATION
from patchform.settings import Recipe
from patchform.training.recipe_files import MOVED

FOLDER = Path(__file__).parent
MADE = "Made by `python docs/make_reference.py` from the code."
EVERYWHERE = ("--help", "--json", "--debug", "--plugin")
"""Options that each verb has."""
TOP_1 = "imagenet-1k top-1"
OF_CLIPS = ("timesformer/", "vivit/")
"""Families that look at clips, whose speed is not that of pictures."""

# ----------------------------------------------------------------------------------------------------------- settings


def settings() -> str:
    """Every setting of a recipe, section by section."""
    short = {form.setting: form.option for form in SHORT_FORMS}
    lines = [
        "# Every setting",
        "",
        MADE,
        "`patchform train TASK --help` says the same, with the defaults of that task's recipe; here they are those of",
        "a setting that a recipe does not mention.",
        "",
        "On the command line a setting is `--section.key value`, in a recipe (a YAML file) a key below its section,",
        'in Python a nested dict: `pf.train("classification", optimizer={"lr": 1e-3})`. Lists are written `[1, 2]`,',
        '"none" is `null`. What is typed goes before the recipe, and the whole recipe of a run is in its folder,',
        "`recipe.yaml`.",
    ]
    section = None
    for field in schema.fields(Recipe()):
        prefix = field.name.rpartition(".")[0]
        if prefix != section:
            section = prefix
            lines += ["", f"## {prefix or 'the run'}", "", f"{field.section}.", ""]
        also = f" (`{short[field.name]}`)" if field.name in short else ""
        lines += [
            f"* **`{field.name}`**{also}: {field.meaning}",
            f"  *{schema.words(field.hint).capitalize()}; default:* `{schema.shown(field.value)}`",
        ]
    lines += ["", "## Earlier names", "", "They are still read.", ""]
    lines += [f"* `{old}` is now `{new}`" for old, new in MOVED.items()]
    return "\n".join([*lines, ""])


# ------------------------------------------------------------------------------------------------------- command line


def command_line() -> str:
    """Every verb, what it takes, an example."""
    parser = cli._parser()
    exit_codes = (cli.main.__doc__ or "").strip().splitlines()[2:]
    lines = [
        "# The command line",
        "",
        MADE,
        "`patchform VERB --help` says the same. Each verb also takes `--json` (speak JSON, errors too), `--debug`",
        "(show where in the code an error arose) and `--plugin DIR` (a folder with own `backbones/`, `heads/`, ...:",
        "runs its code).",
        "",
        "Exit codes: " + " ".join(line.strip() for line in exit_codes),
    ]
    for name, verb in parser.verbs.choices.items():
        lines += ["", f"## {name}", "", *_verb(verb)]
        for action, below in (verb.verbs.choices if verb.verbs is not None else {}).items():
            lines += ["", f"### {name} {action}", "", *_verb(below)]
    return "\n".join([*lines, ""])


def _verb(parser: argparse.ArgumentParser) -> Iterator[str]:
    yield parser.description or ""
    yield from ("", "```sh", (parser.epilog or "").removeprefix("example: "), "```")
    taken = [one for one in parser._actions if not isinstance(one, argparse._SubParsersAction)]
    taken = [one for one in taken if not set(EVERYWHERE) & set(one.option_strings)]
    if taken:
        yield ""
    for one in taken:
        yield f"* `{_called(one)}`: {one.help}"
    if parser.prog.endswith(" train"):
        yield "* `--section.key VALUE`: any [setting](settings.md)"


def _called(action: argparse.Action) -> str:
    """An argument as usage has it."""
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    value = value if isinstance(value, str) else " ".join(value)
    if action.nargs in ("*", "+"):
        value += " ..."
    if not action.option_strings:
        return f"[{value}]" if action.nargs in ("*", "?") else value
    name = ", ".join(action.option_strings)
    return name if action.nargs == 0 else f"{name} {value}"


# ------------------------------------------------------------------------------------------------------- data formats


class Layout(NamedTuple):
    """A section on formats."""

    title: str
    formats: tuple[str, ...]
    """Files of `data/formats`."""
    told_by: tuple[str, ...] = ()
    """Modules of `data` whose docstrings say it; default: those of the formats."""


LAYOUTS = (
    Layout("Folders of classes", ("image_folder",)),
    Layout("CSV lists", ("csv_list", "csv_videos"), ("csv_lists",)),
    Layout("Pictures and masks", ("mask_folder",)),
    Layout("COCO", ("coco",)),
    Layout("COCO-Stuff, for masks", ("coco_stuff",)),
    Layout("Pascal VOC", ("voc",)),
    Layout("YOLO and darknet", ("yolo",), ("formats.yolo", "data_yaml", "darknet")),
    Layout("Videos", ("video_folder",), ("formats.video_folder", "clips")),
    Layout("Tar shards (WebDataset)", ("shards",), ("webdataset", "shards")),
    Layout("Pictures without labels", ("unlabelled", "unlabelled_shards")),
    Layout(
        "Python objects",
        ("python_labels", "python_masks", "python_objects", "python_clips", "python_pictures"),
        ("python_sets", "python_lists"),
    ),
    Layout("Hugging Face datasets", (), ("hub_sets",)),
)

UNINDENTED = ("data_yaml",)
"""Modules whose docstring is an example from its second line on."""


def data_formats() -> str:
    """What is read, what is not and where to go from there, and all that may be wrong."""
    lines = [
        "# Data formats",
        "",
        MADE,
        "Data are taken as they are: nothing is moved, renamed or written into them. Which layout they have is seen",
        "by itself; `patchform data check DIR` says what is wrong with a data set before anything is trained, and",
        "`patchform data show DIR` draws it.",
        "",
        "## Two parts",
        "",
        f"Folders inside that are called {_either(TRAIN)} are learnt from,",
        f"those that are called {_either(VALIDATION)} validated on (`test` where there is no other).",
        "Without them a share of each class is held out (`data.validation_share`): by the seed and the names of the",
        "files, so that it is the same each time. `data.validation` names another folder or list.",
        "",
        "## Pictures",
        "",
        *_told("images"),
    ]
    for layout in LAYOUTS:
        lines += ["", f"## {layout.title}", ""]
        if tasks := list(dict.fromkeys(task for name in layout.formats for task in _format(name).tasks)):
            lines += [f"For {', '.join(task.replace('_', ' ') for task in tasks)}.", ""]
        for module in layout.told_by or [f"formats.{name}" for name in layout.formats]:
            lines += [*_told(module), ""]
        if written := [name for name in layout.formats if isinstance(_format(name), WritableFormat)]:
            lines += ["Written too, as a new data set:", "", "```sh"]
            lines += [f"patchform data convert cells/ --to {name} --out cells-{name}/" for name in written]
            lines += ["```"]
        lines = lines[:-1] if not lines[-1] else lines
    lines += ["", "## What is not read", "", "It is recognised, called by its name, and refused with what to do:", ""]
    lines += ["| found | what to do |", "|---|---|"]
    lines += [f"| {name} | {remedy} |" for name, remedy in dict.fromkeys((one.name, one.remedy) for one in FOREIGN)]
    lines += ["", "## What may be wrong", ""]
    for title, wanted in (
        ("These keep data from being used:", lambda kind: kind.fatal),
        ("These are mended while reading, and counted:", lambda kind: not kind.fatal and not kind.hint),
        ("These may be meant so: they are said, and data are used as they are:", lambda kind: kind.hint),
    ):
        lines += [title, "", "| found | what to do, or what is done |", "|---|---|"]
        lines += [f"| {kind.what} | {kind.remedy} |" for kind in KINDS.values() if wanted(kind)]
        lines += [""]
    return "\n".join(lines)


def _format(name: str) -> Format:
    return lookup.the_class("data/formats", name, Format)()


def _either(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)


def _told(module: str) -> Iterator[str]:
    """What a module of `data` says of itself, as it is written there."""
    text = (importlib.import_module(f"patchform.data.{module}").__doc__ or "").strip()
    yield from (text,) if module not in UNINDENTED else ("```text", text, "```")


# ----------------------------------------------------------------------------------------------------- choose a model


class Measured(NamedTuple):
    """A row of the first table of benchmarks.md: a forward pass in float32 at the published size."""

    model: str
    images: float
    """A second, on two cores."""
    score: float | None
    """Published, ImageNet-1k top-1 in per cent, at that size and trained on ImageNet-1k alone; the best of several."""
    source: str


def measured() -> list[Measured]:
    """What was timed, the fastest first. Numbers are read from the page, so there is one place for each."""
    found = []
    text = (FOLDER / "benchmarks.md").read_text(encoding="utf-8").partition("\n## ")[2].partition("\n## ")[0]
    for model, images in re.findall(r"^\| (\S+) \| forward \| float32 \| ([\d.]+) \|", text, re.MULTILINE):
        if model.startswith(OF_CLIPS):
            continue
        row = model_table.rows()[model]
        known = [
            (one.scores[TOP_1], one.source)
            for one in row.published
            if TOP_1 in one.scores and (one.image_size, one.training) == (row.image_size, "imagenet-1k")
        ]
        found.append(Measured(model, float(images), *(max(known) if known else (None, ""))))
    return sorted(found, key=lambda row: -row.images)


def choice() -> str:
    """What to take for which task; what is accurate, and what that costs."""
    lines = [
        "# Choose a model",
        "",
        MADE,
        "No number is new: speeds are those of [benchmarks.md](benchmarks.md), scores those that were published.",
        "",
        "## By task",
        "",
        "`patchform train TASK` takes the first, `patchform train TASK --from WEIGHTS` the second.",
        "**With few pictures, the second.**",
        "",
        "| task | from nothing | reaches | from weights | such as |",
        "|---|---|---|---|---|",
    ]
    for task in recipes.tasks():
        rows = {row.name.partition("/")[2]: row for row in recipe_list.recipe_rows(task)}
        small, tuned = rows[recipes.DEFAULT], rows.get(recipes.STARTING)
        weights = model_table.rows()[tuned.model.partition(" ")[0]].weights_names if tuned else []
        example = f"`--from {weights[0]}`" if weights else "-"
        name = task.replace("_", " ")
        lines.append(f"| {name} | {small.model} | {small.reaches} | {tuned.model if tuned else '-'} | {example} |")
    lines += [
        "",
        "`patchform recipes TASK` lists the others, with what they need and reach; those with the name of a paper",
        "want a GPU. `--model NAME` puts another backbone under the same head; `patchform models` lists all, and",
        "[papers](papers.md) says what each is.",
        "",
        "## Accurate, and fast",
        "",
        "![score against speed](pictures/choose-a-model.png)",
        "",
        "Pictures a second on two cores of an Intel Xeon (batch 4, float32, the published size), and the published",
        "top-1 on ImageNet-1k at that size, of training on ImageNet-1k alone; where none was published so, the model",
        "is not in the picture.",
        "",
        "| model | parameters | multiply-adds | pictures/s | top-1 | source |",
        "|---|--:|--:|--:|--:|---|",
    ]
    for one in measured():
        row = model_table.rows()[one.model]
        score = "-" if one.score is None else f"{one.score:.1f} %"
        counts = f"{row.parameters / 1e6:.1f} M | {row.multiply_adds / 1e9:.1f} G"
        lines.append(f"| {one.model} | {counts} | {one.images:g} | {score} | {one.source or '-'} |")
    lines += [
        "",
        "Scores of papers are of different schedules, and some of teachers: they say what a model can reach, not",
        "which architecture is better. On your own machine: `patchform bench runs/first`. All families in their",
        "smallest size, trained alike: [nano-training](nano-training.md).",
        "",
        "## Knowing before training",
        "",
        "What a published backbone knows of your pictures, without training it:",
        "",
        "```sh",
        "patchform probe vit/dinov2_reg_s14.lvd142m --data photos/",
        "```",
    ]
    return "\n".join([*lines, ""])


# -------------------------------------------------------------------------------------------------------------- pages

PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings,
    "command-line.md": command_line,
    "data-formats.md": data_formats,
    "choose-a-model.md": choice,
}


def differing() -> list[str]:
    """Names of the pages that are not what the code says."""
    written = {name: FOLDER / name for name in PAGES}
    return [
        name
        for name, path in written.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != PAGES[name]()
    ]


def main() -> int:
    """Write, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the pages, write nothing")
    if not parser.parse_args().check:
        for name, page in PAGES.items():
            (FOLDER / name).write_text(page(), encoding="utf-8")
        return 0
    if names := differing():
        print(f"python docs/make_reference.py: what the code says is another for {', '.join(names)}", file=sys.stderr)
    return 1 if names else 0


if __name__ == "__main__":
    sys.exit(main())
