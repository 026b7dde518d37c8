"""What goes wrong, said in one line: what, where, and the remedy; with the exit code of its kind."""

import unicodedata
import warnings
from typing import TypeVar

T = TypeVar("T")


class PatchformError(Exception):
    """A fault that the user can mend. The command line prints it as one line and exits with `exit_code`.

    Args:
        what: what is wrong, in the user's words, without a full stop.
        where: the file, key or place, if there is one.
        remedy: what to do about it, an imperative.
    """

    exit_code = 1
    kind = "bug"

    def __init__(self, what: str, *, where: object = None, remedy: str = "") -> None:
        self.what, self.where, self.remedy = what, None if where is None else str(where), remedy
        super().__init__(str(self))

    def __str__(self) -> str:
        where = f" in {self.where}" if self.where else ""
        return f"{self.what}{where}" + (f"; {self.remedy}" if self.remedy else "")


class UsageError(PatchformError):
    """A wrong command line, setting or argument."""

    exit_code, kind = 2, "usage"


class DataError(PatchformError):
    """Data that cannot be used as it is."""

    exit_code, kind = 3, "data"


class ModelFileError(PatchformError):
    """A model, checkpoint or weights file that is damaged, foreign, untrusted or of another model."""

    exit_code, kind = 4, "model"


class FolderError(PatchformError):
    """A folder that exists already or is in use by another process."""

    exit_code, kind = 5, "folder"


class DivergedError(PatchformError):
    """Training produced a loss or gradient that is not finite."""

    exit_code, kind = 6, "diverged"


class ResourceError(PatchformError):
    """The machine said no: disk full, out of memory, no permission."""

    exit_code, kind = 7, "resource"


class Interrupted(PatchformError):
    """The user asked a run to stop, and it saved and stopped.

    Args:
        exit_code: 128 + the number of the signal.
        where: the run folder.
        after: " after step 5", if it took any.
        remedy: how to go on.
    """

    kind = "interrupted"

    def __init__(
        self, exit_code: int, *, where: object = None, after: str = "", remedy: str = "resume the run to go on"
    ) -> None:
        self.exit_code = exit_code
        super().__init__(f"stopped as asked{after}", where=where, remedy=remedy)


class PeerError(PatchformError):
    """Another process of several that train together failed; its own message says why. It has that one's exit code."""

    kind = "elsewhere"

    def __init__(self, exit_code: int = 1) -> None:
        self.exit_code = exit_code
        super().__init__("another process of this run failed", remedy="see what it says")


def printable(text: str, *, keep: str = "") -> str:
    r"""Text of files and people as it may go to a terminal, a page or a line of a list.

    What would steer a terminal, turn the direction of writing or not be seen, line ends included, is spelt as Python
    does: `\x1b`, `\n`, `\u202e`. So are bytes of file names that are not UTF-8: `\udce9`.

    Args:
        text: anything.
        keep: letters that stay all the same.
    """
    plain = text
    for letter in keep:
        plain = plain.replace(letter, "")
    if plain.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in keep or unicodedata.category(letter) == "Zs"
        else ascii(letter)[1:-1]
        for letter in text
    )


def unheard(sentence: str) -> None:
    """Say nothing: where nobody asked to be told."""


def warned(sentence: str) -> None:
    """Say it as a warning of Python: where the caller should hear of it unasked."""
    warnings.warn(sentence, stacklevel=3)


def expect(value: object, kind: type[T], what: str) -> T:
    """The value, which must be of a type: else UsageError with `what`."""
    if not isinstance(value, kind):
        raise UsageError(what)
    return value
