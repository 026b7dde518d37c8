"""Print a script by which a shell completes the words of a command line: verbs, options, recipes, models.

The script asks `patchform completion words -- WORD ...` at each Tab, so that what it offers is what there is. Libraries
that write such scripts from a parser know neither settings, which are no options of a parser, nor fish.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args, get_origin

from patchform import lookup, model_table, schema
from patchform.commands import demo, recipes
from patchform.settings import Recipe

EXAMPLE = "patchform completion bash >> ~/.bashrc"
WORDS = "words"
SCRIPTS = {
    "bash": """_patchform() {
    local IFS=$'\\n'
    COMPREPLY=($(patchform completion words -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _patchform patchform""",
    "zsh": """#compdef patchform
_patchform() {
    local -a found
    found=("${(@f)$(patchform completion words -- "${(@)words[2,CURRENT]}" 2>/dev/null)}")
    if [[ -n ${found[1]} ]]; then compadd -a found; else _files; fi
}
compdef _patchform patchform""",
    "fish": """function __patchform_words
    set -l before (commandline -opc)
    set -l found (patchform completion words -- $before[2..] (commandline -ct) 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c patchform -f -a '(__patchform_words)'""",
}
"""By shell."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A shell."""
    parser.add_argument("shell", metavar="SHELL", choices=(*SCRIPTS, WORDS), help=f"one of {', '.join(SCRIPTS)}")
    parser.add_argument(
        WORDS, metavar="WORD", nargs="*", help=f"with {WORDS}: a command line, the last to be completed"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the script, or what a word may become."""
    if arguments.shell != WORDS:
        print(SCRIPTS[arguments.shell])
        return 0
    found = candidates(arguments.parser, arguments.words or [""])
    if found or arguments.json:  # no line at all is how a script knows that paths are next
        print(json.dumps(found) if arguments.json else "\n".join(found))
    return 0


def candidates(parser: Any, words: Sequence[str]) -> list[str]:
    """What the last of the words may become; none where it is a path, or anything.

    Args:
        parser: of the whole command line; those of verbs lie below `verbs.choices`.
        words: behind the program's name.
    """
    *before, last = words
    path: list[str] = []
    while parser.verbs is not None:
        if not before:
            return _beginning(last, [*parser.verbs.choices, *_options(parser)])
        if before[0] not in parser.verbs.choices:
            return []
        path.append(before.pop(0))
        parser = parser.verbs.choices[path[-1]]
    if before and before[-1].startswith("-") and (values := _values(parser, before[-1])) is not None:
        return _beginning(last, values)
    if last.startswith("-"):
        return _beginning(last, [*_options(parser), *(f"--{name}" for name in parser.settings())])
    place = PLACES.get(" ".join(path))
    if place is not None:
        return _beginning(last, place.names()) if last or not place.paths else []
    fixed = (action.choices for action in parser._actions if not action.option_strings and action.choices)
    return _beginning(last, map(str, next(fixed, ())))


def _beginning(text: str, words: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(words) if word.startswith(text)]


def _options(parser: argparse.ArgumentParser) -> list[str]:
    return [option for option in parser._option_string_actions if option.startswith("--")]


def _values(parser: argparse.ArgumentParser, option: str) -> list[str] | None:
    """What may follow an option; [] for anything, None where nothing follows."""
    action = parser._option_string_actions.get(option)
    name = option[2:]
    if action is not None and action.nargs == 0:
        return None
    if action is not None and action.choices:
        return [str(choice) for choice in action.choices]
    if option in ("--model", "--model.backbone"):
        return lookup.backbone_names()
    if option == "--model.head":
        return [*lookup.names("heads"), *lookup.names("pretraining")]
    if option in ("--from", "--weights", "--model.init_from", "--loss.teacher.model"):
        return list(model_table.weights_places())
    if option == "--task":
        return lookup.names("tasks")
    return _choices(next((field.hint for field in schema.fields(Recipe()) if field.name == name), None))


def _choices(hint: Any) -> list[str]:
    """Words that a setting may be, where they are few."""
    if hint is bool:
        return ["true", "false"]
    words: list[str] = []
    for part in (hint, *get_args(hint)):
        if get_origin(part) is Literal:
            words += [str(choice) for choice in get_args(part)]
    return words


class Place(NamedTuple):
    """What stands behind a verb without an option's name."""

    names: Callable[[], Iterable[str]]
    paths: bool = False
    """Or a path, which comes first."""


def _recipes() -> list[str]:
    return [*recipes.tasks(), *recipes.packaged()]


PLACES = {
    "demo": Place(demo.KINDS.keys),
    "train": Place(_recipes),
    "recipes": Place(recipes.tasks),
    "models": Place(lookup.backbone_names),
    "weights list": Place(model_table.weights_places),
    **dict.fromkeys(
        ("probe", "features", "predict", "weights show", "weights convert"),
        Place(model_table.weights_places, paths=True),
    ),
}
