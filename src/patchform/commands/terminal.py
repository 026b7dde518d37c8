"""The way of words to a terminal: nothing that a file or class is called steers it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO, cast

from patchform.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


class Printable:
    """A stream whose text is printable, but for line ends and tabs, and in letters that the stream has.

    Args:
        stream: where it goes. The colours and bars of rich go there past this (`rich_proxied_file` is its own word).
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream

    def write(self, text: str) -> int:
        """Write it as it may be shown."""
        shown = printable(text, keep="\n\t")
        encoding = getattr(self.rich_proxied_file, "encoding", None)
        if encoding and not shown.isascii():
            shown = shown.encode(encoding, "backslashreplace").decode(encoding)
        self.rich_proxied_file.write(shown)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write each."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rich_proxied_file, name)


@contextmanager
def printable_streams() -> Iterator[None]:
    """What is printed meanwhile, on stdout and stderr, is printable."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (stream and cast("TextIO", Printable(stream)) for stream in streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams


def say(sentence: str) -> None:
    """One line on stderr."""
    print(printable(sentence), file=sys.stderr)


def above(console: Console) -> Callable[[str], None]:
    """A function that says one line above the bars of a console."""
    return lambda sentence: console.print(printable(sentence))


def stderr_console() -> Console:
    """Lines as they are: not folded, without colours or markup."""
    from rich.console import Console

    return Console(file=sys.stderr, soft_wrap=True, highlight=False, markup=False)


@contextmanager
def progress_bars(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    """A function of (what is done, done, all) that shows a bar for each thing that is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as live:
        bars: dict[str, TaskID] = {}

        def progress(what: str, done: int, count: int) -> None:
            if what not in bars:
                bars[what] = live.add_task(what, total=count)
            live.update(bars[what], completed=done, total=count)

        yield progress
