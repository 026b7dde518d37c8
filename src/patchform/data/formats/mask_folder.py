"""Pictures and, in folders beside them, masks: pictures of a class for every pixel.

    images/a.jpg                                  masks/a.png  (or annotations/, labels/)
    images/training/a.jpg                         annotations/training/a.png                 (ADE20K)
    train/images/a.jpg                            train/masks/a.png
    leftImg8bit/train/ulm/x_leftImg8bit.png       gtFine/train/ulm/x_gtFine_labelTrainIds.png (Cityscapes)

A picture and its mask have the same name but for the suffix, in the same folder below. Names of classes are those of
`data.classes`, else of `classes.txt` (a name a line), `classes.json` (a list) or ADE20K's `objectInfo150.txt` beside
the folders.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from patchform.data.faults import Faults
from patchform.data.formats.base import Format
from patchform.data.known_classes import with_unknown
from patchform.data.listed_names import NearNames, with_offer
from patchform.data.listing import (
    SUFFIXES,
    TRAIN,
    VALIDATION,
    Item,
    Listing,
    MaskCodes,
    by_name,
    check_names,
    chosen_names,
    first_suffix,
    quoted,
    read_names,
    walk,
)
from patchform.data.text_files import read_text
from patchform.errors import DataError, UsageError
from patchform.records import IGNORED
from patchform.settings import DataSettings

_CITY_MASKS = "gtFine"
_KINDS = (("images", ("masks", "annotations", "labels")), ("leftImg8bit", (_CITY_MASKS,)))
"""Folders of pictures, and of masks beside them; of several the first is taken."""
_TRAIN_IDS, _LABEL_IDS = "_gtFine_labelTrainIds.png", "_gtFine_labelIds.png"
_LISTS = ("classes.txt", "classes.json")
_NO_MASKS = (".txt", ".json", ".xml")
"""Of files beside pictures that are annotations of other formats."""
_TABLE = "objectInfo150.txt"
"""ADE20K's: columns between tabs, one of them "Name", of synonyms."""

CITYSCAPES = {
    "road": 7,
    "sidewalk": 8,
    "building": 11,
    "wall": 12,
    "fence": 13,
    "pole": 17,
    "traffic light": 19,
    "traffic sign": 20,
    "vegetation": 21,
    "terrain": 22,
    "sky": 23,
    "person": 24,
    "rider": 25,
    "car": 26,
    "truck": 27,
    "bus": 28,
    "train": 31,
    "motorcycle": 32,
    "bicycle": 33,
}
"""The classes that are scored, in the order of their train ids, with their numbers in labelIds masks (0..33; Cordts et
al. 2016, "The Cityscapes dataset", and its published table of labels)."""


class _Folders(NamedTuple):
    pictures: Path
    masks: Path
    home: Path
    """What holds the folders of pictures and of masks."""
    unused: tuple[Path, ...]
    """Other folders that might hold masks."""

    @property
    def city(self) -> bool:
        """Whether files are named as in Cityscapes."""
        return self.masks.is_relative_to(self.home / _CITY_MASKS)


class MaskFolders(Format):
    """Pictures and, in folders beside them, masks: pictures of a class for every pixel."""

    tasks = ("semantic_segmentation",)
    layout = "images/ beside masks/ or annotations/, leftImg8bit/ beside gtFine/"
    inside = tuple(pictures for pictures, _ in _KINDS)

    def recognises(self, path: Path) -> bool:
        """Whether `path` holds such folders, or is a part (`images/training`) inside one. Text is no mask."""
        folders = _folders(path) if path.is_dir() else None
        return folders is not None and first_suffix(folders.masks, (*SUFFIXES, *_NO_MASKS), _LISTS) not in _NO_MASKS

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures with their masks. `settings.classes`, `zero`, `ignore` and `colors` are used.

        Names of the data are matched with `classes`, and data without names are taken to number these alike.

        Raises:
            DataError: no picture; a picture without a mask or a mask without a picture; no names of classes, or unknown
                or too many ones.
            UsageError: settings that do not go together, or with masks.
        """
        folders = _folders(path)
        assert folders is not None
        if settings.balanced:
            raise UsageError("data.balanced needs a class for each picture", remedy="set it to false for masks")
        pairs, train_ids = _pairs(folders)
        names, notes = _names(path, folders, settings)
        colors = _colors(Path(settings.colors).expanduser()) if settings.colors else ()
        if not names and colors:
            names = tuple(dict.fromkeys(name for name, _ in colors if classes is None or name in classes))
            notes = (f"classes in the order of their colours in {Path(settings.colors or '').name}",)
        if not names and classes is not None:
            names = classes
            notes = ("the masks have no names of classes: their numbers are taken for those known already",)
        if not names:
            raise DataError(
                "no names of classes",
                where=folders.home,
                remedy="write classes.txt, a name a line in the order of the numbers, or set data.classes",
            )
        if len(names) > IGNORED:
            raise DataError(f"{len(names)} classes, masks can have {IGNORED}", where=folders.home)
        check_names(names, folders.home)
        order = names if classes is None else with_unknown(names, classes)
        indices = by_name(names, order, folders.home)
        class_of = {name: indices[name] for name in names}
        if colors:
            coding, more = _by_color(colors, class_of, settings)
        else:
            table = tuple(CITYSCAPES.values()) if folders.city and not train_ids else None
            coding, more = _by_id(class_of, settings, table, fixed=folders.city)
        if folders.unused:
            others = quoted([folder.name for folder in folders.unused])
            more += (f"masks are those of {folders.masks.name}/, not of {others}",)
        items = tuple(Item(picture, (), mask) for picture, mask in pairs)
        return Listing(classes=order, items=items, root=folders.pictures, notes=(*notes, *more), mask_codes=coding)


# ------------------------------------------------------------------------------------------------------------ folders


def _folders(path: Path) -> _Folders | None:
    """Both folders inside `path`, else those of the nearest folder above that is called like one of pictures."""
    start = path.absolute()
    for home in (start, *start.parents):
        for pictures, kinds in _KINDS:
            inside = start == home
            if not (inside or (home / pictures) in (start, *start.parents)):
                continue
            masks = [home / kind for kind in kinds if (home / kind).is_dir()]
            if masks and (home / pictures).is_dir():
                below = "" if inside else start.relative_to(home / pictures)
                return _Folders(home / pictures / below, masks[0] / below, home, tuple(masks[1:]))
    return None


def _pairs(folders: _Folders) -> tuple[list[tuple[Path, Path]], bool]:
    """Pictures and their masks by name, and whether Cityscapes' masks hold train ids."""
    if not folders.masks.is_dir():
        raise DataError("no folder of masks for these pictures", where=folders.pictures, remedy=f"make {folders.masks}")
    pictures = _by_stem(folders.pictures, "_leftImg8bit.png" if folders.city else "")
    if not pictures:
        raise DataError("no picture", where=folders.pictures, remedy=f"known file names end in {', '.join(SUFFIXES)}")
    masks, train_ids = _by_stem(folders.masks, _TRAIN_IDS if folders.city else ""), folders.city
    if folders.city and set(pictures) - set(masks):
        masks, train_ids = _by_stem(folders.masks, _LABEL_IDS), False
    for files, others, kind, lacks in ((pictures, masks, "pictures", "mask"), (masks, pictures, "masks", "picture")):
        if alone := [name for name in files if name not in others]:
            here, there = folders.pictures, folders.masks
            if kind == "masks":
                here, there = there, here
            remedy = f"a picture and its mask, a picture too, have one name; looked in {folders.masks}"
            remedy = with_offer(remedy, NearNames(there).offer(alone[0]))
            raise DataError(
                f"{len(alone)} of {len(files)} {kind} have no {lacks}: {quoted(alone)}", where=here, remedy=remedy
            )
    return [(pictures[name], masks[name]) for name in pictures], train_ids


def _by_stem(folder: Path, ending: str) -> dict[str, Path]:
    """Pictures below a folder by their path in it without the ending, or without the suffix if none is given."""
    files: dict[str, Path] = {}
    for file in walk(folder):
        if not file.name.endswith(ending) or file.suffix.lower() not in SUFFIXES:
            continue
        inside = file.relative_to(folder)
        name = (inside.parent / (file.name.removesuffix(ending) if ending else file.stem)).as_posix()
        if name in files:
            raise DataError(f'"{files[name].name}" and "{file.name}" have one name', where=file.parent)
        files[name] = file
    return files


# ------------------------------------------------------------------------------------------------- names and numbers


def _names(path: Path, folders: _Folders, settings: DataSettings) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes in the order of their numbers, if there are any, and where they come from."""
    if settings.classes is not None:
        return chosen_names(settings.classes), ()
    part_of_a_set = folders.home.name.lower() in TRAIN + VALIDATION
    for folder in (path, folders.home, *((folders.home.parent,) if part_of_a_set else ())):
        for name in _LISTS:
            if (folder / name).is_file():
                return read_names(folder / name), (f"names of classes from {name}",)
        if (folder / _TABLE).is_file():
            return _table_names(folder / _TABLE), (f"names of classes from {_TABLE}, the first of synonyms",)
    return (tuple(CITYSCAPES), ()) if folders.city else ((), ())


def _table_names(file: Path) -> tuple[str, ...]:
    """The column "Name": of synonyms the first, or all of them where that would name two classes alike."""
    rows = [line.split("\t") for line in read_text(file).splitlines() if line.strip()]
    titles = [title.strip() for title in rows[0]] if rows else []
    if "Name" not in titles or any(len(row) != len(titles) for row in rows) or len(rows) < 2:
        raise DataError('not a table with a column "Name" and tabs between', where=file, remedy="write classes.txt")
    names = [row[titles.index("Name")].strip() for row in rows[1:]]
    first = [re.split("[,;]", name)[0].strip() for name in names]
    return tuple(first if len(set(first)) == len(first) else names)


def _by_id(
    class_of: dict[str, int], settings: DataSettings, table: Sequence[int] | None, *, fixed: bool
) -> tuple[MaskCodes, tuple[str, ...]]:
    """What the numbers mean, and a note on it.

    Args:
        class_of: class of each name, in the order of the numbers.
        settings: `zero` and `ignore`.
        table: the numbers, when they are not consecutive: those of Cityscapes' labelIds.
        fixed: `zero` is known.
    """
    names, ignore = tuple(class_of), settings.ignore
    if fixed and settings.zero == "ignore":
        raise UsageError("data.zero ignore does not fit Cityscapes, whose 0 is known", remedy="leave it at class")
    if not 0 <= ignore <= 65535:
        raise UsageError(f"data.ignore {ignore} is not in 0..65535")
    if table is not None and names != tuple(CITYSCAPES):
        raise DataError("labelIds masks have the classes of Cityscapes", remedy="leave data.classes out")
    first = 1 if settings.zero == "ignore" else 0
    numbers = table or range(first, first + len(names))
    if ignore in numbers:
        what = f'data.ignore {ignore} is the number of class "{names[numbers.index(ignore)]}"'
        raise UsageError(what, remedy="see data.zero and the list of classes")
    if table is not None:
        others = [number for number in range(34) if number not in table]
        note = (
            f'in labelIds masks {table[0]} is class "{names[0]}"; those of 0..33 that are not scored and {ignore} are'
        )
    else:
        others = [0] * first
        begin = "0 is unlabelled and ignored, 1" if first else "0"
        note = f'in masks {begin} is class "{names[0]}"; {ignore} is'
    ids = dict(zip(numbers, class_of.values())) | dict.fromkeys((*others, ignore), IGNORED)
    return MaskCodes(ids=tuple(ids.items())), (f"{note} ignored",)


Colors = tuple[tuple[str, tuple[int, int, int]], ...]


def _by_color(colors: Colors, class_of: dict[str, int], settings: DataSettings) -> tuple[MaskCodes, tuple[str, ...]]:
    """What the colours mean, and notes on it. Colours of other names than the classes' are ignored."""
    if settings.zero == "ignore":
        raise UsageError("data.zero is about numbers, and data.colors is given", remedy="leave out one of them")
    others = list(dict.fromkeys(name for name, _ in colors if name not in class_of))
    bare = [name for name in class_of if name not in dict(colors)]
    if bare:
        raise DataError(f"classes without a colour: {quoted(bare)}", where=settings.colors, remedy="add them")
    coding = MaskCodes(colors=tuple((color, class_of.get(name, IGNORED)) for name, color in colors))
    ignored = (f"colours of no class are ignored: {quoted(others)}",) if others else ()
    return coding, (f"masks are read by colour, {len(colors)} of them", *ignored)


def _colors(file: Path) -> Colors:
    """Lines "name r g b", or "r g b name", separated by spaces, tabs or commas."""
    names: dict[tuple[int, int, int], str] = {}
    for number, line in enumerate(read_text(file).splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words:
            continue
        for digits, name in ((words[-3:], words[:-3]), (words[:3], words[3:])):
            if name and all(word.isascii() and word.isdigit() and int(word) < 256 for word in digits):
                red, green, blue = map(int, digits)
                break
        else:
            raise DataError(f'not a name and a colour: "{line[:60]}"', where=f"{file}, line {number}")
        if (red, green, blue) in names:
            raise DataError(f"the colour {red} {green} {blue} a second time", where=f"{file}, line {number}")
        names[red, green, blue] = " ".join(name)
    if not names:
        raise DataError("no colours", where=file, remedy="write lines of a name and three numbers")
    return tuple((name, color) for color, name in names.items())
