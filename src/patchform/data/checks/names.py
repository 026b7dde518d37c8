"""Names of classes and files: whether they can be written, and whether two of them, or parts of one, mean one class."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator

from patchform.data.checks.base import Check, Subject
from patchform.data.faults import Faults
from patchform.data.listing import Listing

_SEPARATORS = re.compile(r"\s*(?:[,;|/+&]|\band\b)\s*", re.IGNORECASE)
_LIST = re.compile(r"""[\[{(]\s*['"].*['"]\s*[\]})]""")
_GLUED = re.compile(r",(?=[^\s\d])")
"""A comma as lists of names have it; in a name a blank follows, or a digit: "tench, Tinca tinca"."""
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")


def _told(listing: Listing) -> Iterator[tuple[str, str]]:
    """Every name of a class, each with where it is, and every path of an item below the root."""
    root = os.path.join(listing.root, "")
    for number, name in enumerate(listing.classes):
        yield name, f"class {number}"
    for item in listing.items:
        yield os.fspath(item.path).removeprefix(root), ""


def encoding(subject: Subject, faults: Faults) -> None:
    """Names that are not UTF-8, as far as the system gave them: no model or list can hold those of classes."""
    for name, where in _told(subject.listing):
        if not name.isascii() and any("\ud800" <= letter <= "\udfff" for letter in name):
            faults.add("name-bytes" if where else "name-odd", where or _last(name), _spelt(name) if where else "")


def control(subject: Subject, faults: Faults) -> None:
    """Names with characters that are not seen, and may do something where they are printed."""
    for name, where in _told(subject.listing):
        if not name.isprintable() and any(_unseen(letter) for letter in name):
            faults.add("name-control", where or _spelt(_last(name)), _spelt(name) if where else "")


def blanks(subject: Subject, faults: Faults) -> None:
    """Names of classes with blanks around them."""
    for name in subject.listing.classes:
        if name != name.strip():
            faults.add("name-blanks", f'class "{name}"')


def alike(subject: Subject, faults: Faults) -> None:
    """Names of classes that may mean one, each pair once. Those that differ by case are refused when they are read."""
    seen: set[tuple[str, str]] = set()
    for why, key in _LIKENESSES:
        first: dict[str, str] = {}
        for name in subject.listing.classes:
            for form in key(name):
                other = first.setdefault(form, name)
                if other != name and (other, name) not in seen:
                    seen.add((other, name))
                    faults.add("class-alike", f'classes "{other}" and "{name}"', why)


def several(subject: Subject, faults: Faults) -> None:
    """Names of classes that look like lists of names, such as of a field that was not split."""
    names = {name.casefold() for name in subject.listing.classes}
    groups: dict[tuple[str, ...], str] = {}
    for name in subject.listing.classes:
        parts = tuple(sorted(part for part in _SEPARATORS.split(name.casefold()) if part))
        if len(parts) < 2:
            continue
        same = groups.setdefault(parts, name)
        if all(part in names for part in parts):
            faults.add("class-several", f'class "{name}"', "each of its parts is a class too")
        elif same != name:
            faults.add("class-several", f'class "{name}"', f'has the parts of "{same}"')
        elif _LIST.fullmatch(name.strip()):
            faults.add("class-several", f'class "{name}"', "a list in brackets")
        elif _GLUED.search(name):
            faults.add("class-several", f'class "{name}"', "a comma without a blank")


def _number(name: str) -> Iterable[str]:
    """1, 01 and 1.0 have one; 1.10 and 1.1 too, which may be numbers of sections."""
    if not _NUMBER.fullmatch(name.strip()):
        return ()
    whole, _, fraction = name.strip().partition(".")
    return (f"{int(whole)}.{fraction.rstrip('0')}",)


def _shape(name: str) -> Iterable[str]:
    return (unicodedata.normalize("NFKC", name).casefold(),)


def _words(name: str) -> Iterable[str]:
    """Without what joins words: letters on both sides."""
    return (re.sub(r"(?<=[^\W\d_])[\s_.-]+(?=[^\W\d_])", "", name.casefold()),)


def _singular(name: str) -> Iterable[str]:
    word = name.casefold()
    return (word.removesuffix("s"),) if len(word) > 3 and not word.endswith("ss") else (word,)


_LIKENESSES: tuple[tuple[str, Callable[[str], Iterable[str]]], ...] = (
    ("equal as numbers", _number),
    ("equal but for the forms of letters", _shape),
    ("equal but for what joins the words", _words),
    ("equal but for a plural", _singular),
)


def _unseen(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf", "Zl", "Zp")


def _spelt(name: str) -> str:
    """With escapes for what is not seen or no character."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in name)


def _last(path: str) -> str:
    """The end of a path: its file, and the folder that may be a class."""
    return "/".join(path.replace(os.sep, "/").split("/")[-2:])


ENCODING, CONTROL = Check(encoding), Check(control)
OF_CLASSES = (Check(blanks), Check(alike), Check(several))
