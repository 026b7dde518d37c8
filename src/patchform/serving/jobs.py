"""What goes between the processes of a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Wishes(NamedTuple):
    """What a request asks for beyond an answer."""

    threshold: float | None = None
    """Score from which an object counts; None: the model's own, of each class."""
    files: bool = False
    """What is too large for a record, such as the classes of all pixels as PNG."""


class Prepared(NamedTuple):
    """A picture or clip as the model takes it."""

    pixels: NDArray[Any]
    """(C, H, W), or (T, C, H, W) of a clip: uint8, or float32 in 0..1 of 16 bits."""
    size: tuple[int, int]
    """(height, width) before it was resized, pixels."""


class Job(NamedTuple):
    """What the model is asked."""

    picture: Prepared
    wishes: Wishes


class Answer(NamedTuple):
    """What the model says."""

    record: dict[str, Any]
    """As a line of `patchform predict` has it, without the name of a file."""
    files: dict[str, bytes]
    """By ending."""
    size: tuple[int, int]
    """(height, width) of the picture, pixels: boxes and masks are in these."""


Kind: TypeAlias = Literal["picture", "memory", "fault", "busy", "late", "away"]


class Refusal(NamedTuple):
    """Why there is no answer."""

    kind: Kind
    """picture: of the one that was sent; memory, fault: of the model on it; busy: too many wait; late: no answer in
    time; away: the process that had it ended."""
    message: str


class Card(NamedTuple):
    """What the model is."""

    task: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    """Score from which an object of each class counts."""
    colors: tuple[str, ...]
    """In which each class is drawn, as "#rrggbb"."""
    videos: bool
    facts: dict[str, str]
    """What is worth knowing, in words: backbone, head, input, how well it did."""
