"""What is said of words on a command line that are none of ours: what was meant, as far as that can be told."""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Collection, Iterable, Sequence

from patchform import foreign_names, system
from patchform.errors import UsageError

VERBS_OF_OTHERS = {
    "val": "evaluate", "validate": "evaluate", "test": "evaluate", "eval": "evaluate", "score": "evaluate",
    "infer": "predict", "inference": "predict", "detect": "predict", "classify": "predict", "segment": "predict",
    "fit": "train", "finetune": "train", "fine-tune": "train", "pretrain": "train", "learn": "train",
    "benchmark": "bench", "convert": "export", "embed": "features", "extract": "features", "check": "data",
    "dataset": "data", "download": "weights", "list": "models", "backbones": "models", "configs": "recipes",
    "checks": "data", "settings": "train", "help": "--help", "version": "--version",
}  # fmt: skip
"""What other programs call what a verb does."""
_FIRST = ("model", "source", "weights", "data")
"""What other programs give by name, and verbs here without one."""
_ASSIGNED = re.compile(r"([A-Za-z][\w.-]*)=(.*)", re.DOTALL)
_NEGATIVE = re.compile(r"-\d*\.?\d+(e[+-]?\d+)?", re.IGNORECASE)


def check_verb(words: Sequence[str], verbs: Collection[str], program: str) -> None:
    """Raise UsageError for a first word that is no verb of a program, "patchform" or "patchform data"."""
    word = words[0] if words else ""
    if not word or word.startswith("-") or word in verbs:
        return
    near = difflib.get_close_matches(word.lower(), verbs, n=1, cutoff=0.6)
    meant = VERBS_OF_OTHERS.get(word.lower()) or (near[0] if near else "")
    meant = next((other for other in words[1:2] if other in verbs), meant)  # detect train ...
    remedy = (
        f'did you mean "{program} {meant}"?'
        if meant in (*verbs, "--help", "--version")
        else f"there are: {', '.join(verbs)}"
    )
    raise UsageError(f"no such verb: {program} {word}", remedy=remedy)


def check_options(parser: argparse.ArgumentParser, words: Sequence[str], settings: Iterable[str]) -> None:
    """Raise UsageError for an option that a parser does not have; `settings`: those that the verb takes, dotted."""
    own = parser._option_string_actions
    for word in words:
        if word == "--":
            return
        name, equals, value = word.partition("=")
        if not word.startswith("-") or word == "-" or _NEGATIVE.fullmatch(word) or " " in name or name in own:
            continue
        if len(name) > 2 and not name.startswith("--") and name[:2] in own:
            continue  # -x5
        raise UsageError(f"no such option: {name}", remedy=_meant(parser, name, settings, value if equals else ""))


def check_assignments(parser: argparse.ArgumentParser, words: Sequence[str], settings: Iterable[str]) -> None:
    """Raise UsageError for a word such as imgsz=640, as other programs have their settings, unless it is a path."""
    own = parser._option_string_actions
    for before, word in zip(("", *words), words):
        if word == "--":
            return
        match = _ASSIGNED.fullmatch(word)
        if match is None or (before in own and own[before].nargs != 0) or os.path.lexists(word):
            continue
        if meant := _options(parser, match[1], settings):
            raise UsageError(f"{word} is no option", remedy=f"did you mean {_typed(meant, match[2])}?")
        if match[1] in _FIRST and match[2]:
            raise UsageError(f"{word} is no path", remedy=f"did you mean {system.quoted(match[2])} alone?")


def _meant(parser: argparse.ArgumentParser, name: str, settings: Iterable[str], value: str) -> str:
    meant = _options(parser, name, settings)
    return f"did you mean {_typed(meant, value)}?" if meant else f"{parser.prog} --help"


def _options(parser: argparse.ArgumentParser, name: str, settings: Iterable[str]) -> list[str]:
    own = [option[2:] for option in parser._option_string_actions if option.startswith("--")]
    return foreign_names.option(name, [*own, *settings])


def _typed(options: Sequence[str], value: str) -> str:
    return " or ".join(f"--{option}{f' {system.quoted(value)}' * bool(value)}" for option in options[:3])
