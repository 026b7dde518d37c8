"""What became of each tensor when weights were loaded."""

from __future__ import annotations

from typing import NamedTuple


class Dropped(NamedTuple):
    """A tensor of the source that the model has no use for."""

    name: str
    why: str


class Report(NamedTuple):
    """The fate of every tensor, by name: own names, except `dropped`, which holds names of the source."""

    matched: tuple[str, ...] = ()
    """Taken as they are."""
    joined: tuple[str, ...] = ()
    """Put together from several tensors of the source."""
    converted: tuple[str, ...] = ()
    """Of another shape or order of axes in the source."""
    dropped: tuple[Dropped, ...] = ()

    def __str__(self) -> str:
        lines = [f"{len(names)} {fate}" for fate, names in zip(self._fields, self, strict=True) if names]
        summary = ", ".join(lines) or "nothing loaded"
        reasons: dict[str, list[str]] = {}
        for name, why in self.dropped:
            reasons.setdefault(why, []).append(name)
        return "\n".join([summary, *(f"  dropped, {why}: {shorten(names)}" for why, names in reasons.items())])


def shorten(names: list[str], most: int = 4) -> str:
    """The first few names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
