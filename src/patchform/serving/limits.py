"""What a server takes at most."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import NamedTuple

from patchform.errors import UsageError, printable

FAR = 1e12


class Limits(NamedTuple):
    """Sizes and times. What is beyond them is refused, and said."""

    body: int = 20_000_000
    """Bytes of a request."""
    small: int = 500_000
    """Bytes of a body that is always read; of larger ones only so many at once, others wait:"""
    large: int = 4
    """Larger bodies that are in memory at once."""
    pictures: int = 16
    """Of one request."""
    pixels: int = 50_000_000
    """Of a picture, from its header."""
    queue: int = 64
    """Pictures that are decoded or wait for the model; more are refused with 503."""
    batch: int = 16
    """Pictures that go through the model at once."""
    batch_pixels: int = 16_000_000
    """Of them together, as the model takes them."""
    wait: float = 0.005
    """Seconds that a picture waits for others that are being decoded."""
    receive: float = 10.0
    """Seconds in which a request must be whole."""
    answer: float = 30.0
    """Seconds in which one that is whole is answered; so long a picture may be decoded or computed."""
    farewell: float = 0.5
    """Seconds in which a server that was told to end refuses what comes, before its port is closed."""
    stop: float = 9.0
    """Seconds in which what was accepted is answered before the server ends."""
    opening: float = 300.0
    """Seconds in which a model is opened."""
    connections: int = 256
    """At once."""

    def told(self) -> dict[str, float]:
        """Those that who sends pictures should know."""
        return {name: getattr(self, name) for name in ("body", "pictures", "pixels", "answer")}


def parse(words: Sequence[str]) -> Limits:
    """What `queue=32` and the like say.

    Raises:
        UsageError: no such limit, or no such number.
    """
    values: dict[str, float] = {}
    for word in words:
        name, _, text = word.partition("=")
        if name not in Limits._fields:
            near = difflib.get_close_matches(name, Limits._fields, 1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(Limits._fields)}"
            raise UsageError(f'no limit is called "{printable(name)}"', remedy=remedy)
        kind = type(getattr(Limits(), name))
        try:
            values[name] = kind(text)
        except ValueError:
            values[name] = -1
        if not 0 < values[name] < FAR:
            raise UsageError(
                f"--limit {printable(word)}", remedy=f"write {name}={getattr(Limits(), name)}, or another number"
            )
    return Limits(**values)  # type: ignore[arg-type]
