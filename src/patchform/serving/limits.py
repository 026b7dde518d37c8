"""What a server takes at most."""

from __future__ import annotations

from typing import NamedTuple


class Limits(NamedTuple):
    """Sizes and times. What is beyond them is refused, and said."""

    body: int = 20_000_000
    """Bytes of a request."""
    pixels: int = 50_000_000
    """Of a picture, from its header."""
    waiting: int = 64
    """Requests that are prepared and wait for the model; more are refused with 503."""
    batch: int = 16
    """Pictures that go through the model at once."""
    batch_pixels: int = 16_000_000
    """Of them together, as the model takes them."""
    wait: float = 0.005
    """Seconds that a picture waits for others that are being decoded."""
    receive: float = 10.0
    """Seconds in which a request must be whole."""
    answer: float = 30.0
    """Seconds in which one that is whole is answered."""
    stop: float = 10.0
    """Seconds in which what was accepted is answered before the server ends."""
    opening: float = 300.0
    """Seconds in which a model is opened."""
    connections: int = 256
    """At once."""
