"""What commands say on stderr while they work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import TaskID


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
