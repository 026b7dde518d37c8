"""Data whose classes are known beforehand, a model's or those of training: a name that nothing has hurts nobody.

Formats number unknown names after the known ones (`with_unknown`); here it is seen whether anything has them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from patchform.data.listing import Item, Listing, MaskCodes, PolygonMask, quoted, unknown_classes
from patchform.records import IGNORED


def with_unknown(names: Sequence[str], classes: Sequence[str]) -> tuple[str, ...]:
    """The known classes, then the other names of the data."""
    known = set(classes)  # of which two may have one name
    return (*classes, *(name for name in dict.fromkeys(names) if name not in known))


def only_known(listing: Listing, classes: Sequence[str], where: Path) -> Listing:
    """A listing without unknown classes, and a note on those that were dropped.

    In masks that are pictures an unknown class is found when they are read: its number then stands for nothing.

    Args:
        listing: with classes of `with_unknown`.
        classes: those that are known.
        where: the data, for messages.

    Raises:
        DataError: an unknown class that anything listed has.
    """
    number = len(classes)
    unknown = listing.classes[number:]
    if not unknown:
        return listing
    used = sorted({class_ for item in listing.items for class_ in _classes_of(item) if class_ >= number})
    codes = listing.mask_codes
    if used or (codes is not None and not _any_class(_known_codes(codes, listing.classes, number))):
        names = [listing.classes[class_] for class_ in used] or unknown
        raise unknown_classes(names, classes, where)
    fate = "of which there is nothing" if codes is None or not codes.ids else "refused where a mask has one"
    return replace(
        listing,
        classes=tuple(classes),
        ids=None if listing.ids is None else listing.ids[:number],
        notes=(*listing.notes, f"unknown classes, {fate}: {quoted(unknown)}"),
        mask_codes=None if codes is None else _known_codes(codes, listing.classes, number),
    )


def _classes_of(item: Item) -> Iterator[int]:
    yield from item.classes
    if isinstance(item.mask, PolygonMask):
        yield from (class_ for class_ in item.mask.classes if class_ != IGNORED)


def _known_codes(codes: MaskCodes, classes: Sequence[str], number: int) -> MaskCodes:
    """Without the classes from `number` on, whose names are kept for messages."""
    return MaskCodes(
        ids=tuple(pair for pair in codes.ids if not number <= pair[1] < IGNORED),
        colors=tuple(pair for pair in codes.colors if not number <= pair[1] < IGNORED),
        unknown=tuple((id_, classes[class_]) for id_, class_ in codes.ids if number <= class_ < IGNORED),
    )


def _any_class(codes: MaskCodes) -> bool:
    return not codes.ids + codes.colors or any(class_ != IGNORED for _, class_ in (*codes.ids, *codes.colors))
