"""patchform <verb> ...: what the shell sees. The verbs themselves are in `commands/`, one file each.

Nothing here or at the top of a command's file imports torch: help and wrong options must be quick.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from patchform import __version__, resources, signals
from patchform.commands import (
    bench,
    completion,
    data,
    demo,
    evaluate,
    export,
    features,
    models,
    predict,
    probe,
    recipe_list,
    recipes,
    runs,
    serve,
    spelling,
    terminal,
    train,
    weights,
)
from patchform.errors import PatchformError, UsageError

VERBS = {
    "demo": demo,
    "models": models,
    "data": data,
    "train": train,
    "runs": runs,
    "evaluate": evaluate,
    "predict": predict,
    "probe": probe,
    "features": features,
    "export": export,
    "serve": serve,
    "bench": bench,
    "recipes": recipe_list,
    "weights": weights,
    "completion": completion,
}
BUG, PIPE_CLOSED = 1, 141


@terminal.printable_streams()
def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code.

    0 done, 1 a bug of patchform, 2 wrong command line or setting, 3 bad data, 4 bad model file, 5 folder in use,
    6 diverged, 7 disk, memory or permission, 8 some inputs failed, 128 + n interrupted by signal n: 130 and 143.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    debug, as_json = "--debug" in argv, "--json" in argv
    try:
        with signals.ending_by_exception():
            code = _run(argv)
            sys.stdout.flush()
            return code
    except PatchformError as error:
        if debug:
            traceback.print_exc()
        _report(error, as_json)
        return error.exit_code
    except KeyboardInterrupt as error:
        _say("patchform: stopped")
        return 128 + getattr(error, "number", signal.SIGINT)
    except BrokenPipeError:  # such as `patchform models | head`
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except Exception as error:
        if debug:
            raise
        if (refused := resources.as_resource(error)) is not None:
            _report(refused, as_json)
            return refused.exit_code
        _report(PatchformError(_line(error), remedy=f"please report it with {_saved_traceback()}"), as_json)
        return BUG


def _run(argv: list[str]) -> int:
    words, settings = _take_settings(argv)
    parser = _parser(words)
    arguments = parser.parse_args(words)
    arguments.parser = parser
    if settings and arguments.verb not in ("train", "data"):
        raise UsageError(f"no such option: --{next(iter(settings))}", remedy=f"patchform {arguments.verb} --help")
    arguments.settings = settings
    if arguments.plugin:
        from patchform import lookup

        for folder in arguments.plugin:
            lookup.add_plugin(folder)
    return VERBS[arguments.verb].run(arguments)


def _take_settings(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Command line without, and settings from, words of the form --section.key value or --section.key=value."""
    words: list[str] = []
    settings: dict[str, str] = {}
    rest = iter(argv)
    for word in rest:
        name, equals, value = word.partition("=")
        if word == "--":
            return [*words, word, *rest], settings
        if not (name.startswith("--") and "." in name):
            words.append(word)
            continue
        text = value if equals else next(rest, None)
        if text is None or (not equals and text.startswith("--")):
            raise UsageError(f"{name} needs a value")
        settings[name[2:]] = text
    return words, settings


class _Parser(argparse.ArgumentParser):
    """Errors are UsageErrors that say what was meant; a part of the help may be made when it is shown."""

    more: Callable[[], str] | None = None
    settings: Callable[[], Sequence[str]] = list
    """Those that its verb takes as options, dotted."""
    verbs: Any = None
    """Those below it."""

    def add_subparsers(self, **options: Any) -> Any:
        """Verbs below this one."""
        self.verbs = super().add_subparsers(**options)
        return self.verbs

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Look at names before anything is made of them."""
        words = list(args or ())
        if self.verbs is not None:
            spelling.check_verb(words, self.verbs.choices, self.prog)
        elif not {"-h", "--help"} & set(words):
            spelling.check_options(self, words, self.settings())
            spelling.check_assignments(self, words, self.settings())
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        example = f"{self.epilog}; " if "required" in message and self.epilog and "\n" not in self.epilog else ""
        raise UsageError(message, remedy=f"{example}{self.prog} --help")

    def format_help(self) -> str:
        return super().format_help() + (self.more() if self.more else "")


def _parser(words: Sequence[str] = ()) -> _Parser:
    """The parser of all verbs; `words` of the command line tell what a help text is about."""
    everywhere = _Parser(add_help=False, allow_abbrev=False)
    everywhere.add_argument("--json", action="store_true", help="speak JSON, errors too")
    everywhere.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    everywhere.add_argument(
        "--plugin",
        metavar="DIR",
        action="append",
        default=[],
        help="folder with own backbones/, heads/, ...: runs its code",
    )
    parser = _Parser(
        prog="patchform",
        description="Vision transformers: any backbone under any head.",
        epilog="examples:\n" + "\n".join(f"  {verb.EXAMPLE}" for verb in VERBS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"patchform {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, verb in VERBS.items():
        purpose = (verb.__doc__ or "").splitlines()[0]
        own = verbs.add_parser(
            name,
            help=purpose,
            description=purpose,
            epilog=f"example: {verb.EXAMPLE}",
            parents=[everywhere],
            allow_abbrev=False,
        )
        verb.add_arguments(own)
        if verb in (train, data):
            own.settings = recipes.names
        if verb is train:
            own.more = functools.partial(train.more_help, words)
    return parser


def _report(error: PatchformError, as_json: bool) -> None:
    if as_json:
        fields = {"kind": f"E-{error.kind}", "what": error.what, "where": error.where, "remedy": error.remedy}
        _say(json.dumps({"error": {**fields, "exit_code": error.exit_code}}))
    else:
        _say(f"patchform: error E-{error.kind}: {' '.join(str(error).split())}")


def _say(text: str) -> None:
    """A line on stderr, if there is anybody left to read it: the exit code is the same."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _saved_traceback() -> str:
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="patchform-", suffix=".txt", encoding="utf-8", errors="backslashreplace", delete=False
        ) as file:
            traceback.print_exc(file=file)
    except OSError:  # no place for that either
        return "what --debug shows"
    return file.name
