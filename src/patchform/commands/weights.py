"""List published weights, look into files of weights, convert them, and exchange models with the hub."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform.commands import early_checks, inference_options, terminal
from patchform.errors import UsageError

if TYPE_CHECKING:
    from patchform.commands.conversion import Look
    from patchform.descriptions import WeightsFile

EXAMPLE = 'patchform weights list "swin/*"'
PREFIX = "only tensors whose names begin so are meant, without it, such as backbone. of a whole detector"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What is to be done."""
    everywhere = argparse.ArgumentParser(add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    everywhere.add_argument("--json", action="store_true", help="speak JSON, errors too")
    everywhere.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    everywhere.add_argument(
        "--plugin", metavar="DIR", action="append", help="folder with own backbones/: runs its code"
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, action in ACTIONS.items():
        subparser = actions.add_parser(
            name,
            help=action.purpose,
            description=action.purpose,
            epilog=f"example: patchform weights {name} {action.example}",
            parents=[everywhere],
            allow_abbrev=False,
        )
        action.arguments(subparser)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    return ACTIONS[arguments.action].run(arguments)


def _list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help='such as "vit/b16.*" (default: all)')


def _list(arguments: argparse.Namespace) -> int:
    early_checks.published(arguments.pattern)
    from patchform import lookup
    from patchform.weights import hub

    rows = lookup.weights_files(arguments.pattern)
    if not rows:
        raise lookup.no_such("published weights", arguments.pattern, lookup.weights_files())
    here = {name: hub.cached(row) for name, row in rows.items()}
    if arguments.json:
        found = {name: None if path is None else str(path) for name, path in here.items()}
        print(
            json.dumps([{"name": name, **_facts(row), "cached": found[name]} for name, row in rows.items()], indent=1)
        )
        return 0
    cells = [LISTED, *((name, *_listed(row, here=here[name] is not None)) for name, row in rows.items())]
    widths = [max(len(line[column]) for line in cells) for column in range(len(LISTED))]
    for name, side, megabytes, *others in cells:
        numbers = f"{side:>{widths[1]}}  {megabytes:>{widths[2]}}"
        texts = "  ".join(f"{text:{width}}" for text, width in zip(others, widths[3:]))
        print(f"{name:{widths[0]}}  {numbers}  {texts}".rstrip())
    for name, place in hub.places().items():
        print(f"{CACHES[name]} {place} ({name})")
    print("nothing is fetched before it is named: patchform train TASK --data DIR --from NAME")
    print("for a machine without network (HF_HUB_OFFLINE=1): patchform weights fetch NAME, then copy these folders")
    return 0


LISTED = ("name", "input", "MB", "classes", "licence", "file")
CACHES = {
    "PATCHFORM_CACHE": "files from plain addresses are kept in",
    "HF_HUB_CACHE": "files from the hub are kept in",
    "HF_ENDPOINT": "the hub, or a mirror of it, is",
}
"""What is said of `hub.places`."""


def _listed(row: WeightsFile, *, here: bool) -> tuple[str, ...]:
    """What a line of the list says behind the name."""
    facts = _facts(row)
    licence = "see show" if "/" in row.licence else row.licence
    side, classes = str(row.preprocessing.size[0]), row.labels or "none"
    return side, str(row.megabytes), classes, licence, "here" if here else facts["access"]


def _facts(row: WeightsFile) -> dict[str, Any]:
    """What is known of a file, and how it is got at."""
    return {**dataclasses.asdict(row), "access": "gated" if row.gated else "by hand" if row.by_hand else "open"}


def _fetch_arguments(parser: argparse.ArgumentParser) -> None:
    help_ = "published weights, as weights list has them; hub:owner/name/file; https://...#sha256=..."
    parser.add_argument("names", metavar="NAME", nargs="+", help=help_)


def _fetch(arguments: argparse.Namespace) -> int:
    from patchform import lookup
    from patchform.weights import hub

    for name in arguments.names:  # all of them before the first is fetched
        if not name.startswith(("hub:", "https:")):
            lookup.weights_file(name)
    paths = {name: str(hub.locate(name, say=_to_stderr)) for name in arguments.names}
    if arguments.json:
        print(json.dumps(paths))
        return 0
    for name, path in paths.items():
        print(f"{name} is in {path}")
    return 0


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="file or folder of weights, hub:owner/name, or published weights")
    parser.add_argument("--model", metavar="NAME", help="family/size that it is for; default: all are tried")
    parser.add_argument("--prefix", metavar="TEXT", help=PREFIX)
    parser.add_argument("--all", action="store_true", help="every tensor, and what becomes of it")


def _show(arguments: argparse.Namespace) -> int:
    from patchform import lookup

    if not os.path.lexists(arguments.file) and lookup.is_weights_name(arguments.file):  # known without fetching it
        facts = {"name": arguments.file, **_facts(lookup.weights_file(arguments.file))}
        lines = (f"{key:17} {value}" for key, value in facts.items())
        print(json.dumps(facts) if arguments.json else "\n".join(lines))
        return 0
    early_checks.source(arguments.file)
    if arguments.model is not None:
        lookup.check_backbone(arguments.model)
    from patchform.commands.conversion import look

    file = look(arguments.file, model=arguments.model, prefix=arguments.prefix, say=_to_stderr)
    if arguments.json:
        print(json.dumps(_plain(file, everything=arguments.all)))
        return 0
    kinds = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in file.tensors.values())
    print(f"{file.kind}: {len(file.tensors)} tensors, {file.numbers} numbers, {file.bytes} bytes")
    print("  " + ", ".join(f"{count} of {kind}" for kind, count in kinds.items()))
    for key, note in list(file.notes.items())[:8]:
        print(f"  {key!a}: {note[:80]!a}")
    if file.classes:
        print(f"  {len(file.classes)} classes: {', '.join(file.classes[:4])}" + (" ..." * (len(file.classes) > 4)))
    if arguments.all:
        for name, tensor in file.tensors.items():
            print(f"  {name}  {tuple(tensor.shape)}  {str(tensor.dtype).removeprefix('torch.')}")
    for fit in file.fits:
        architecture = fit.architecture
        backbone, head = (
            _with_options(architecture.backbone, architecture.backbone_options),
            _with_options(architecture.head, architecture.head_options),
        )
        print(f"{backbone} under {head}, {fit.classes or 'no'} classes")
        print(fit.report.table() if arguments.all and fit is file.fits[0] else str(fit.report))
    if not file.fits:
        print(f"fits no model: {file.why}")
    for family, share in file.nearest.items():
        print(f"  {family}: {share:.0%} of a small backbone's tensors are there by name")
    return 0


def _convert_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", metavar="FILE", help="file (pickles too), run folder, hub:owner/name, published weights"
    )
    parser.add_argument("--model", metavar="NAME", help="family/size, or published weights that it is a file of")
    parser.add_argument(
        "--to", metavar="LAYOUT", required=True, help="timm, torchvision, ...; patchform: a model folder"
    )
    parser.add_argument("--out", metavar="PLACE", required=True, help="new .safetensors, or folder with --to patchform")
    parser.add_argument("--from", dest="layout", metavar="LAYOUT", help="layout of FILE (default: recognised)")
    parser.add_argument("--part", metavar="NAME", help='of a pickle with several: "model", "model_ema"')
    parser.add_argument("--prefix", metavar="TEXT", help=PREFIX)
    size_help = "input that FILE is for (default: the model's)"
    parser.add_argument("--image-size", type=inference_options.SIDE, metavar="N", help=size_help)
    parser.add_argument("--head", metavar="NAME", help="head of the model, or none (default: the one that fits)")
    for name, whose in (("--option", "backbone"), ("--head-option", "head")):
        parser.add_argument(name, metavar="K=V", action="append", default=[], help=f"argument of the {whose}")
    parser.add_argument("--classes", metavar="NAMES", help="imagenet-1k, or a file with a name a line")
    parser.add_argument("--force", action="store_true", help="write over what is there")


def _convert(arguments: argparse.Namespace) -> int:
    early_checks.source(arguments.file)
    from patchform.commands.conversion import SourceOptions, convert

    options = SourceOptions(
        model=arguments.model,
        layout=arguments.layout,
        part=arguments.part,
        prefix=arguments.prefix,
        image_size=arguments.image_size,
        head=arguments.head,
        options=inference_options.constructor_options(arguments.option),
        head_options=inference_options.constructor_options(arguments.head_option),
        classes=_classes(arguments.classes),
    )
    report = convert(
        arguments.file, arguments.out, to=arguments.to, options=options, force=arguments.force, say=_to_stderr
    )
    if arguments.json:
        print(json.dumps({"out": arguments.out, "report": [entry._asdict() for entry in report.entries]}))
        return 0
    print(report)
    print(f"written: {arguments.out}")
    return 0


def _pull_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", help="owner/name of a model folder on the hub, with @revision if wanted"
    )
    parser.add_argument("--out", metavar="DIR", required=True, help="new folder")


def _pull(arguments: argparse.Namespace) -> int:
    from patchform.weights import hub

    folder = str(hub.pull(arguments.name, arguments.out, say=_to_stderr))
    print(json.dumps({"out": folder}) if arguments.json else f"every bit is as its manifest says: {folder}")
    return 0


def _push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="run folder or model folder; only the model goes up")
    parser.add_argument("name", metavar="NAME", help="owner/name")
    parser.add_argument("--public", action="store_true", help="a new repository can be read by everybody")


def _push(arguments: argparse.Namespace) -> int:
    early_checks.trained(arguments.folder, file=False)
    from patchform.weights import hub

    address = hub.push(arguments.folder, arguments.name, public=arguments.public)
    print(json.dumps({"commit": address}) if arguments.json else address)
    return 0


class Action(NamedTuple):
    """One thing that the verb does."""

    purpose: str
    example: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


ACTIONS = {
    "list": Action("List published weights; fetch nothing.", '"swin/*"', _list_arguments, _list),
    "fetch": Action(
        "Put published weights into the cache, for later or for a machine without network.",
        "vit/dinov2_reg_s14.lvd142m",
        _fetch_arguments,
        _fetch,
    ),
    "show": Action("Say what a file holds and which models it fills.", "model.safetensors", _show_arguments, _show),
    "convert": Action(
        "Write weights in another layout, or as a model folder that predict takes.",
        "deit.pth --model vit/s16 --to timm --out deit.safetensors",
        _convert_arguments,
        _convert,
    ),
    "pull": Action("Copy a model folder from the hub.", "owner/flowers --out flowers/", _pull_arguments, _pull),
    "push": Action("Put a model folder on the hub.", "runs/first owner/flowers", _push_arguments, _push),
}


def _with_options(name: str, options: dict[str, Any]) -> str:
    return " ".join((name, *(f"{key}={value}" for key, value in options.items())))


def _to_stderr(sentence: str) -> None:
    terminal.say(sentence)


def _classes(named: str | None) -> tuple[str, ...] | None:
    """Names of a known set, or those in a file."""
    from patchform.published_models import class_names

    if named is None:
        return None
    if names := class_names(named):
        return names
    try:
        return tuple(line.strip() for line in Path(named).read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError("no list of class names", where=named, remedy="name a text file, or imagenet-1k") from error


def _plain(file: Look, *, everything: bool) -> dict[str, Any]:
    about = {"kind": file.kind, "tensors": len(file.tensors), "numbers": file.numbers, "bytes": file.bytes}
    fits = [
        {
            **dataclasses.asdict(fit.architecture),
            "layout": fit.report.layout,
            "prefix": fit.report.prefix,
            "classes": fit.classes,
            "resized": [entry.name for entry in fit.report.of("resized")],
        }
        for fit in file.fits
    ]
    about |= {"notes": dict(file.notes), "classes": file.classes, "fits": fits}
    about |= {"nearest": file.nearest, "why": file.why}
    every = {name: {"shape": [*tensor.shape], "dtype": str(tensor.dtype)} for name, tensor in file.tensors.items()}
    return about | ({"all": every} if everything else {})
