"""What became of each tensor when weights were loaded."""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple, TypeAlias, get_args

Fate: TypeAlias = Literal["matched", "joined", "converted", "resized", "new", "dropped"]
"""matched: taken as it is. joined: put together from several. converted: the source has another shape or order of axes.
resized: the source has another size or other rows. new: the source has it not, it stays as it was. dropped: only the
source has it."""


class Entry(NamedTuple):
    """The fate of one tensor."""

    fate: Fate
    name: str
    """Own name; of the source where it is dropped."""
    sources: tuple[str, ...] = ()
    """Names in the source that it was made from."""
    note: str = ""
    """How it was resized, what was assumed of it, or why it is new or dropped."""


class Report(NamedTuple):
    """The fate of every tensor of the model and of the source."""

    entries: tuple[Entry, ...] = ()
    layout: str = ""
    prefix: str = ""
    """What all names of the source had in front."""
    remarks: tuple[str, ...] = ()
    """Where the source's code computes other numbers from equal tensors."""

    def of(self, fate: Fate) -> tuple[Entry, ...]:
        """The entries of one fate."""
        return tuple(entry for entry in self.entries if entry.fate == fate)

    @property
    def dropped(self) -> tuple[Entry, ...]:
        """What the source had in vain."""
        return self.of("dropped")

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """What people are told: numbers of tensors by their fate, what is to be known of some, remarks."""
        counts = Counter(entry.fate for entry in self.entries)
        summary = ", ".join(f"{counts[fate]} {fate}" for fate in get_args(Fate) if counts[fate]) or "nothing loaded"
        where = f"layout {self.layout}: " * bool(self.layout) + f'prefix "{self.prefix}", ' * bool(self.prefix)
        groups: dict[tuple[Fate, str], list[str]] = {}
        for entry in self.entries:
            if entry.note:
                groups.setdefault((entry.fate, entry.note), []).append(entry.name)
        fates = (f"  {fate}, {why}: {shorten(of)}" for (fate, why), of in groups.items())
        return [where + summary, *fates, *(f"  {remark}" for remark in self.remarks)]

    def table(self) -> str:
        """Every tensor, a line each: own name, fate, names in the source, note."""
        rows = [(e.name, e.fate, " + ".join(e.sources) or "-", e.note) for e in self.entries]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
        lines = ("  ".join((*(cell.ljust(width) for cell, width in zip(row, widths)), row[3])).rstrip() for row in rows)
        return "\n".join(lines)


def shorten(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
