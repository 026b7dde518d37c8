"""YOLO's text: a file of boxes, or outlines, for each picture.

    images/train/a.jpg   labels/train/a.txt   data.yaml
    train/images/a.jpg   train/labels/a.txt   data.yaml          (Roboflow)
    train/a.jpg          train/a.txt          classes.txt

A line is a class number, counted from 0, and x, y of the middle, width, height of a box, or x, y of three or more
points of an outline; all are shares of the upright picture's width and height. A picture without a file has no objects.
Names are those of `names` in data.yaml, or of a line each in classes.txt, beside the pictures or above, or of
`data.classes`.
`train` and `val` in data.yaml are followed inside its folder, and nowhere else.
(https://docs.ultralytics.com/datasets/detect/, /datasets/segment/)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from patchform.data.annotations import Annotations, Picture, annotate, class_table, is_inside, notes_on, present
from patchform.data.faults import Faults
from patchform.data.formats.base import Parts, WritableFormat
from patchform.data.listing import (
    RLE,
    SUFFIXES,
    Listing,
    Objects,
    Segmentation,
    chosen_names,
    first_suffix,
    is_hidden,
    quoted,
    read_names,
    read_text,
    relative_name,
    walk,
)
from patchform.data.results import box_shares
from patchform.data.writing import Copies, check_target, place_pictures, write_new
from patchform.errors import DataError, FolderError, ResourceError
from patchform.settings import DataSettings

_YAML, _NAMES = ("data.yaml", "data.yml", "dataset.yaml"), ("classes.txt", "obj.names")
_ABOVE = 3
"""Folders above the pictures in which names are looked for."""
_NO_LABELS = (*_NAMES, "readme.txt", "requirements.txt", "train.txt", "val.txt", "test.txt", "license.txt")


class Yolo(WritableFormat):
    """YOLO's text: a file of boxes, or outlines, for each picture."""

    tasks = ("detection", "instance_segmentation")
    layout = "YOLO's images/ and labels/ with data.yaml"
    keeps = frozenset({"outlines"})
    inside = ("images",)

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a data.yaml, a list of pictures beside one, or a folder of pictures with labels."""
        if path.is_file():
            kind = path.suffix.lower()
            return kind in (".yaml", ".yml") or (kind == ".txt" and _yaml_above(path) is not None)
        folders = _folders(path) if path.is_dir() else None
        masks = folders is not None and folders.labels != folders.pictures  # pictures among labels are masks
        return folders is not None and not (masks and first_suffix(folders.labels, (*SUFFIXES, ".txt")) in SUFFIXES)

    def parts(self, path: Path) -> Parts | None:
        """What data.yaml says of `train` and `val` (or `test`).

        Raises:
            DataError: it names what is not there, lies outside of its folder, or is several places.
        """
        candidates = [path] if path.suffix.lower() in (".yaml", ".yml") else [path / name for name in _YAML]
        file = next((candidate for candidate in candidates if candidate.is_file()), None)
        if file is None:
            return None
        content = _content(file)
        train = _part_path(file, content, "train")
        validation = _part_path(file, content, "val") or _part_path(file, content, "test")
        return (train, validation) if train else None

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures with their objects. Of the pictures the headers are read.

        `settings.classes` (names, or a choice of them) and `skip_bad` are used.

        Raises:
            DataError: no picture, no names, or unknown classes.
            UsageError: a class in `settings.classes` that is not there.
        """
        root, pictures, labels = _pictures(path, faults)
        if not pictures:
            raise DataError("no picture", where=path, remedy=f"known file names end in {', '.join(SUFFIXES)}")
        names, notes = _names(root, settings, classes)
        order, table, more = class_table(names, settings, classes, root)
        sized = present([Picture(file, relative_name(file, root), None) for file in pictures], settings, faults)
        lines = _Lines(names, faults)
        unlabelled = 0
        for index, (picture, file) in enumerate(zip(sized, labels, strict=True)):
            if not file.is_file():
                unlabelled += 1
            elif picture is not None and picture.size is not None:
                lines.read(file, index, picture.name, picture.size)
        if classes is None:  # a part to validate on may lack any class
            lines.hint_at_numbers()
        items = annotate(sized, lines.rows([table[name] for name in names]), faults)
        notes += more + ((f"{unlabelled} pictures have no file of labels, so no objects",) if unlabelled else ())
        notes += notes_on(items, "regions")
        return Listing(classes=order, items=items, root=root, notes=notes, sizes_annotated=False)

    def write(
        self, listing: Listing, folder: Path, *, part: str = "train", pictures: Copies = "none"
    ) -> tuple[str, ...]:
        """Write labels/<part>/, pictures into images/<part>/, and data.yaml.

        Shares have nine digits: a hundred-thousandth of a pixel. An object with an outline loses its box, which is then
        that of the outline; of several polygons one is made, by lines there and back.

        Raises:
            FolderError: the folder is inside the data set, or has such files, or a data.yaml of other classes.
            ResourceError: it cannot be written to.
            DataError: two pictures of one name but for the suffix; outlines that are run lengths.
        """
        check_target(folder, listing.root)
        names = [Path(listing.name(index)).with_suffix(".txt") for index in range(len(listing))]
        if len(set(names)) < len(names):
            raise DataError("two pictures have one name but for the suffix", where=listing.root)
        annotated = [item.objects for item in listing.items if item.objects is not None]
        crowds = sum(int(objects.crowd.sum()) for objects in annotated if objects.crowd is not None)
        runs = sum(isinstance(outline, RLE) for objects in annotated for outline in _counted(objects))
        if runs:
            what = f"{runs} outlines are run lengths, for which YOLO's text has no place"
            raise DataError(what, where=listing.root, remedy="write COCO's json")
        _write_yaml(listing.classes, folder, part)
        for name, objects in zip(names, annotated, strict=True):
            write_new(folder / "labels" / part / name, _lines(objects))
        place_pictures(listing, folder / "images" / part, pictures)
        joined = sum(not isinstance(o, RLE | None) and len(o) > 1 for objects in annotated for o in _counted(objects))
        notes = (f"{crowds} crowd regions, for which YOLO's text has no place",) if crowds else ()
        return notes + ((f"{joined} outlines of several polygons became one, with lines between",) if joined else ())


# ------------------------------------------------------------------------------------------------- folders and names


class _Folders(NamedTuple):
    pictures: Path
    labels: Path


def _folders(path: Path) -> _Folders | None:
    """Folders of pictures and labels inside `path`, or that go with it when it holds pictures."""
    if (path / "images").is_dir() and (path / "labels").is_dir():
        return _Folders(path / "images", path / "labels")
    labels = _labels_of(path)
    if _any_label(labels, deep=labels != path):
        return _Folders(path, labels)
    return None


def _labels_of(folder: Path) -> Path:
    """The folder with its last part "images" called "labels" if there is such a one, else the same."""
    positions = [index for index, part in enumerate(folder.parts) if part == "images"]
    if not positions:
        return folder
    labels = Path(*folder.parts[: positions[-1]], "labels", *folder.parts[positions[-1] + 1 :])
    return labels if labels.is_dir() else folder


def _any_label(folder: Path, *, deep: bool) -> bool:
    if deep:
        return any(file.suffix.lower() == ".txt" for file in walk(folder))
    names = {entry.name.lower() for entry in folder.iterdir() if not is_hidden(entry.name)}
    stems = {Path(name).stem for name in names if name.endswith(SUFFIXES)}
    return any(name.endswith(".txt") and name not in _NO_LABELS and Path(name).stem in stems for name in names)


def _pictures(path: Path, faults: Faults) -> tuple[Path, list[Path], list[Path]]:
    """Root, pictures, and the files where their labels would be."""
    if path.is_file() and path.suffix.lower() == ".txt":
        return _listed(path, faults)
    folders = _folders(path.parent if path.is_file() else path)
    if folders is None:
        raise DataError("no labels beside pictures", where=path, remedy=f"looked for {Yolo.layout}")
    files = list(walk(folders.pictures))
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    labels = [folders.labels / file.relative_to(folders.pictures).with_suffix(".txt") for file in pictures]
    _refuse_shared_labels(labels, pictures, faults)
    expected = set(labels)
    for file in walk(folders.labels):
        if file.suffix.lower() == ".txt" and file not in expected and file.name.lower() not in _NO_LABELS:
            faults.add("labels-alone", file.relative_to(folders.labels).as_posix())
    return folders.pictures, pictures, labels


def _refuse_shared_labels(labels: Sequence[Path], pictures: Sequence[Path], faults: Faults) -> None:
    seen: dict[Path, Path] = {}
    for label, picture in zip(labels, pictures, strict=True):
        if label in seen:
            faults.add("picture-twice", picture.name, f"and {seen[label].name} have one file of labels")
        seen[label] = picture


def _listed(path: Path, faults: Faults) -> tuple[Path, list[Path], list[Path]]:
    """The pictures of a list, by paths relative to it or to data.yaml."""
    yaml_ = _yaml_above(path)
    home = yaml_.parent if yaml_ else path.parent
    pictures: dict[Path, int] = {}
    for number, line in enumerate(read_text(path).splitlines(), 1):
        name = line.strip().replace("\\", "/").removeprefix("./")
        if not name:
            continue
        if Path(name).is_absolute() and Path(name).is_relative_to(home):
            name = Path(name).relative_to(home).as_posix()
        if not is_inside(name):
            faults.add("picture-outside", f"{path.name}, line {number}", name[:80])
            continue
        file = path.parent / name if (path.parent / name).is_file() else home / name
        if file in pictures:
            faults.add("picture-twice", name, f"lines {pictures[file]} and {number} of {path.name}")
        pictures[file] = number
    folders = {folder: _labels_of(folder) for folder in {file.parent for file in pictures}}
    return home, list(pictures), [folders[file.parent] / f"{file.stem}.txt" for file in pictures]


def _yaml_above(path: Path) -> Path | None:
    folders = (path, *path.absolute().parents)[: _ABOVE + 1]
    return next((folder / name for folder in folders for name in _YAML if (folder / name).is_file()), None)


def _content(file: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(read_text(file))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"not YAML ({str(error).splitlines()[0][:80]})", where=file) from None
    if not isinstance(content, dict):
        raise DataError("no keys", where=file, remedy="write names, train and val")
    return content


def _part_path(file: Path, content: dict[str, Any], key: str) -> Path | None:
    """Where a part lies: below `path` if that is inside the folder of data.yaml, else below that folder."""
    value = content.get(key)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if value is None or value == [] or value == "":
        return None
    if not isinstance(value, str):
        raise DataError(f"{key} is several places", where=file, remedy="list the pictures in one text file")
    folder, base = file.parent, content.get("path")
    homes = ([folder / base] if isinstance(base, str) and is_inside(base) else []) + [folder]
    # exports of Roboflow write "../train/images" for train/images beside the file
    names = [value] if is_inside(value) else [value.removeprefix("../")] * value.startswith("../")
    if Path(value).is_absolute() and Path(value).is_relative_to(folder.absolute()):
        names = [Path(value).relative_to(folder.absolute()).as_posix()]
    names = [name for name in names if is_inside(name)]
    if not names:
        raise DataError(
            f'{key} leads out of its folder: "{value[:80]}"',
            where=file,
            remedy="put data.yaml beside the pictures, with relative paths, or set data.path to the folder of pictures",
        )
    for candidate in (home / name for home in homes for name in names):
        if candidate.exists():
            return candidate
    raise DataError(f'no such {key}: "{value[:80]}"', where=file, remedy=f"looked in {quoted(homes)}")


def _names(
    root: Path, settings: DataSettings, classes: tuple[str, ...] | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the classes in the order of their numbers, and where they come from."""
    folders = (root, _labels_of(root), *root.absolute().parents[:_ABOVE])
    for folder in folders:
        for name in _YAML:
            if (folder / name).is_file() and (names := _content(folder / name).get("names")):
                return _in_order(names, folder / name), (f"names of classes from {name}",)
        for name in _NAMES:
            if (folder / name).is_file():
                return read_names(folder / name), (f"names of classes from {name}",)
    if settings.classes is not None:
        return chosen_names(settings.classes), ()
    if classes is not None:
        return classes, ("the labels have no names of classes: their numbers are taken for those known already",)
    raise DataError("no names of classes", where=root, remedy="write data.yaml or classes.txt, or set data.classes")


def _in_order(names: Any, file: Path) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(range(len(names)), key=str):
            raise DataError("names are not numbered from 0 without gaps", where=file)
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise DataError("names are no list of names", where=file, remedy="write names: [cat, dog]")
    return tuple(str(name) for name in names)


# ------------------------------------------------------------------------------------------------------------- labels


class _Lines:
    """The lines of all files of labels, in columns.

    Args:
        names: of the classes, by number.
        faults: for lines that are none.
    """

    def __init__(self, names: Sequence[str], faults: Faults) -> None:
        self.names, self.faults = names, faults
        self._boxes: list[tuple[float, ...]] = []
        self._alternative: list[tuple[float, ...]] = []
        self._classes: list[int] = []
        self._of_picture: list[int] = []
        self._locations: list[tuple[str, int]] = []
        self._outlines: list[Segmentation | None] = []

    def read(self, file: Path, picture: int, name: str, size: tuple[int, int]) -> None:
        """Take the objects of a picture in, given its index and (height, width)."""
        try:
            text = read_text(file)
        except DataError as error:
            self.faults.add("labels-bad", name, error.what)
            return
        seen: set[str] = set()
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split()
            if not words:
                continue
            if line in seen:
                self.faults.add("box-twice", f"{name}, line {number}")
                continue
            seen.add(line)
            try:
                class_, values = _numbers(words)
            except (ValueError, OverflowError) as error:
                self.faults.add("record-bad", f"{name}, line {number}", str(error)[:80])
                continue
            if not 0 <= class_ < len(self.names):
                what = f"number {class_}, there are {len(self.names)} classes, numbered from 0"
                self.faults.add("class-unknown", f"{name}, line {number}", what)
                continue
            self._add(class_, values, size)
            self._of_picture.append(picture)
            self._locations.append((name, number))

    def _add(self, class_: int, values: Sequence[float], size: tuple[int, int]) -> None:
        height, width = size
        if len(values) == 4:
            x, y, w, h = values
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            alternative, outline = (x - w / 2, y - h / 2, x + w / 2, y + h / 2), None
        else:
            points = np.array(values).reshape(-1, 2)
            scaled = (points * (width, height)).astype(np.float32)
            box = (*scaled.min(0).tolist(), *scaled.max(0).tolist())
            alternative, outline = (*points.min(0).tolist(), *points.max(0).tolist()), (scaled,)
        self._boxes.append(box)
        self._alternative.append(alternative)
        self._classes.append(class_)
        self._outlines.append(outline)

    def hint_at_numbers(self) -> None:
        """Note that the first number is never used and the last one is: names stand in a list of their own."""
        if len(self.names) > 1 and 0 not in self._classes and len(self.names) - 1 in self._classes:
            self.faults.add("class-first", f'class "{self.names[0]}"')

    def rows(self, table: Sequence[int]) -> Annotations:
        """All objects, given the index of the class of each number."""
        return Annotations(
            boxes=np.array(self._boxes, np.float64).reshape(-1, 4),
            classes=np.array([table[class_] for class_ in self._classes], np.int64),
            pictures=np.array(self._of_picture, np.int64),
            location=lambda index: "{}, line {}".format(*self._locations[index]),
            segmentations=self._outlines if any(outline is not None for outline in self._outlines) else None,
            alternative=np.array(self._alternative, np.float64).reshape(-1, 4),
            notation="pixels, where shares of width and height are expected",
        )


def _numbers(words: Sequence[str]) -> tuple[int, list[float]]:
    """The class and the shares of a line. Raises ValueError, OverflowError."""
    class_, *values = map(float, words)
    if class_ != int(class_):
        raise ValueError(f"{words[0]} is no class")
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(words)} numbers, a box has 5, an outline an odd number from 7 on")
    return int(class_), values


# ------------------------------------------------------------------------------------------------------------ writing


def _counted(objects: Objects) -> Iterator[Segmentation | None]:
    """Outlines of what is no crowd."""
    for index in range(len(objects.boxes)):
        if objects.crowd is None or not objects.crowd[index]:
            yield objects.segmentations[index] if objects.segmentations else None


def _write_yaml(classes: Sequence[str], folder: Path, part: str) -> None:
    """A new data.yaml, or one with a part more."""
    file = folder / _YAML[0]
    content: dict[str, Any] = _content(file) if file.is_file() else {"names": dict(enumerate(classes))}
    if content.get("names") != dict(enumerate(classes)) or part in content:
        raise FolderError(
            "exists already, with this part or of other classes", where=file, remedy="choose another folder"
        )
    content[part] = f"images/{part}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot be written: {error.strerror}", where=file) from None


def _lines(objects: Objects) -> Iterator[str]:
    height, width = objects.size
    outlines = iter(_counted(objects))
    for index, class_ in enumerate(objects.classes.tolist()):
        if objects.crowd is not None and objects.crowd[index]:
            continue
        outline = next(outlines)
        if outline is None or isinstance(outline, RLE):
            shares = box_shares(objects.boxes[index].tolist(), objects.size)
        else:
            shares = (_joined(outline).astype(np.float64) / (width, height)).ravel().tolist()
        yield " ".join([str(class_), *(f"{share:.9g}" for share in shares)]) + "\n"


def _joined(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """One polygon: from the first point of the first one to each of the others, round it, and back."""
    first, *others = polygons
    loops = [np.concatenate([other, other[:1], first[:1]]) for other in others]
    return np.concatenate([first, first[:1], *loops]) if others else first
