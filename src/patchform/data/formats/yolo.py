"""YOLO's text: a file of boxes, or outlines, for each picture.

    images/train/a.jpg   labels/train/a.txt   data.yaml
    train/images/a.jpg   train/labels/a.txt   data.yaml          (Roboflow)
    train/a.jpg          train/a.txt          classes.txt
    obj_train_data/a.jpg obj_train_data/a.txt obj.names, obj.data, train.txt          (CVAT, darknet)

A line is a class number, counted from 0, and x, y of the middle, width, height of a box, or x, y of three or more
points of an outline; all are shares of the upright picture's width and height. A picture without a file has no objects.
After a box may stand a score, or, where data.yaml has `kpt_shape`, key points: both are left out. Names are those of
`names` in the data.yaml that was given, whatever it is called, else in the one beside the pictures or above, or of a
line each in classes.txt or obj.names, or of `data.classes`.
`path`, `train` and `val` in data.yaml are followed inside its folder, and nowhere else.
(https://docs.ultralytics.com/datasets/detect/, /datasets/segment/)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from patchform.data import darknet
from patchform.data.annotations import Picture, annotate, class_table, notes_on, present
from patchform.data.data_yaml import USUAL, DataYaml, above, describes, find_yaml, is_yaml, read_yaml
from patchform.data.faults import Faults
from patchform.data.formats.base import Parts, WritableFormat
from patchform.data.listed_names import NearNames, inside, is_file, with_offer
from patchform.data.listing import (
    RLE,
    SUFFIXES,
    Listing,
    Objects,
    Segmentation,
    chosen_names,
    first_suffix,
    is_hidden,
    read_names,
    relative_name,
    shortened,
    walk,
)
from patchform.data.results import box_shares
from patchform.data.text_files import beginning, read_text
from patchform.data.writing import Copies, check_target, place_pictures, write_new
from patchform.data.yolo_lines import LabelLines, is_number
from patchform.errors import DataError, FolderError, ResourceError
from patchform.settings import DataSettings

_NAMES = ("classes.txt", darknet.NAMES)
_ABOVE = 3
"""Folders above the pictures in which names are looked for."""
_NO_LABELS = (*_NAMES, "readme.txt", "requirements.txt", "train.txt", "val.txt", "test.txt", "license.txt")
_SNIFFED = 4096
_PICTURES, _LABELS = ("images", "jpegimages"), "labels"


class Yolo(WritableFormat):
    """YOLO's text: a file of boxes, or outlines, for each picture."""

    tasks = ("detection", "instance_segmentation")
    layout = "YOLO's images/ and labels/ with data.yaml"
    keeps = frozenset({"outlines"})
    inside = ("images",)

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a data.yaml, a list of pictures, or a folder of pictures with labels."""
        if path.is_file():
            listed = path.suffix.lower() == ".txt" and (_home_of(path) is not None or _lists_pictures(path))
            return describes(path) or darknet.is_data(path) or listed
        folders = _folders(path) if path.is_dir() else None
        masks = folders is not None and folders.labels != folders.pictures  # pictures among labels are masks
        return folders is not None and not (masks and first_suffix(folders.labels, (*SUFFIXES, ".txt")) in SUFFIXES)

    def parts(self, path: Path) -> Parts | None:
        """What data.yaml, or obj.data, says of `train` and `val` (or `test`).

        Raises:
            DataError: it names what is not there, lies outside of its folder, or is several places; several files that
                describe the data.
        """
        file = path if is_yaml(path) else find_yaml(path) if path.is_dir() else None
        if file is None:
            return darknet.lists_of(path)
        content = read_yaml(file)
        train = content.part("train")
        validation = content.part("val") or content.part("test")
        return (train, validation) if train else None

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures with their objects. Of the pictures the headers are read.

        `settings.path`, `classes` (names, or a choice of them) and `skip_bad` are used.

        Raises:
            DataError: no picture, no names, or unknown classes.
            UsageError: a class in `settings.classes` that is not there.
        """
        given = _given_yaml(path, settings)
        root, pictures, labels = _pictures(path, given, faults)
        if not pictures:
            raise DataError("no picture", where=path, remedy=f"known file names end in {', '.join(SUFFIXES)}")
        described = given or _yaml_above(root)
        names, notes = _given_names(path, given, settings) or _names(root, described, settings, classes)
        order, table, more = class_table(names, settings, classes, root)
        if described is not None and classes is None:
            described.check_number(faults)
            more += described.notes()
        near = NearNames(root)
        sized = present([Picture(file, relative_name(file, root), None) for file in pictures], settings, faults, near)
        lines = LabelLines(names, described.keypoints() if described else None, faults)
        unlabelled = 0
        for index, (picture, file) in enumerate(zip(sized, labels, strict=True)):
            if not is_file(file):
                unlabelled += 1
            elif picture is not None and picture.size is not None:
                lines.read(file, index, picture.name, picture.size)
        lines.hint(learnt_from=classes is None)
        items = annotate(sized, lines.rows([table[name] for name in names]), faults)
        notes += more + ((f"{unlabelled} pictures have no file of labels, so no objects",) if unlabelled else ())
        notes += (f"{lines.with_points} objects have key points, which are left out",) if lines.with_points else ()
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


# ------------------------------------------------------------------------------------------------- folders and lists


class _Folders(NamedTuple):
    pictures: Path
    labels: Path


def _folders(path: Path) -> _Folders | None:
    """Folders of pictures and labels inside `path`, or that go with it when it holds pictures."""
    for pictures in sorted(entry for entry in path.iterdir() if entry.name.lower() in _PICTURES and entry.is_dir()):
        if (labels := _labels_of(pictures)) != pictures:
            return _Folders(pictures, labels)
    labels = _labels_of(path)
    if _any_label(labels, deep=labels != path):
        return _Folders(path, labels)
    return None


def _labels_of(folder: Path) -> Path:
    """The folder with its last part "images" called "labels" if there is such a one, else the same; in any case."""
    positions = [index for index, part in enumerate(folder.parts) if part.lower() in _PICTURES]
    if not positions:
        return folder
    home, below = Path(*folder.parts[: positions[-1]]), folder.parts[positions[-1] + 1 :]
    if not home.is_dir():
        return folder
    named = sorted(entry for entry in home.iterdir() if entry.name.lower() == _LABELS)
    return next((entry.joinpath(*below) for entry in named if entry.joinpath(*below).is_dir()), folder)


def _any_label(folder: Path, *, deep: bool) -> bool:
    if deep:
        return any(file.suffix.lower() == ".txt" for file in walk(folder))
    entries = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
    stems = {Path(entry.name.lower()).stem for entry in entries if entry.name.lower().endswith(SUFFIXES)}
    texts = [entry for entry in sorted(entries) if entry.suffix.lower() == ".txt" and entry.stem.lower() in stems]
    return any(_may_be_labels(entry) for entry in texts if entry.name.lower() not in _NO_LABELS)


def _may_be_labels(file: Path) -> bool:
    """Whether a text beside a picture is no caption: nothing, or numbers in its first line."""
    words = beginning(file, _SNIFFED).strip().partition("\n")[0].replace(",", " ").split()
    return not words or sum(map(is_number, words)) >= min(4, len(words))


def _pictures(path: Path, given: DataYaml | None, faults: Faults) -> tuple[Path, list[Path], list[Path]]:
    """Root, pictures, and the files where their labels would be."""
    if path.is_file() and path.suffix.lower() == ".txt":
        return _listed(path, given.file.parent if given else _home_of(path) or path.parent, faults)
    folders = _folders(path.parent if path.is_file() else path)
    if folders is None:
        raise DataError("no labels beside pictures", where=path, remedy=f"looked for {Yolo.layout}")
    files = list(walk(folders.pictures))
    pictures = [file for file in files if file.suffix.lower() in SUFFIXES]
    labels = [folders.labels / file.relative_to(folders.pictures).with_suffix(".txt") for file in pictures]
    _refuse_shared_labels(labels, pictures, faults)
    expected, near = set(labels), NearNames(folders.pictures)
    for file in walk(folders.labels):
        if file.suffix.lower() == ".txt" and file not in expected and file.name.lower() not in _NO_LABELS:
            name = file.relative_to(folders.labels).as_posix()
            offer = near.offer(name) or near.offer(name[: -len(file.suffix)])  # of "a.jpg.txt" too
            faults.add("labels-alone", shortened(name), offer)
    return folders.pictures, pictures, labels


def _refuse_shared_labels(labels: Sequence[Path], pictures: Sequence[Path], faults: Faults) -> None:
    seen: dict[Path, Path] = {}
    for label, picture in zip(labels, pictures, strict=True):
        if label in seen:
            faults.add("picture-twice", picture.name, f"and {seen[label].name} have one file of labels")
        seen[label] = picture


def _listed(path: Path, home: Path, faults: Faults) -> tuple[Path, list[Path], list[Path]]:
    """The pictures of a list, by paths relative to it or to the folder of the data set."""
    pictures: dict[Path, int] = {}
    near = NearNames(home)
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not (listed := line.strip()):
            continue
        name = inside(listed, home, path.parent)
        if name is None:
            what = with_offer(listed[:80], near.offer(listed))
            faults.add("picture-outside", f"{path.name}, line {number}", what)
            continue
        file = darknet.resolved(name, path.parent, home)
        if file in pictures:
            faults.add("picture-twice", shortened(name), f"lines {pictures[file]} and {number} of {path.name}")
        pictures[file] = number
    folders = {folder: _labels_of(folder) for folder in {file.parent for file in pictures}}
    return home, list(pictures), [folders[file.parent] / f"{file.stem}.txt" for file in pictures]


def _lists_pictures(path: Path) -> bool:
    """Whether the first line of a text is the name of a picture, and nothing else."""
    lines = beginning(path, _SNIFFED).split("\n", 1)
    return lines[0].strip().lower().endswith(SUFFIXES)


def _home_of(path: Path) -> Path | None:
    """The folder, of a list or above, with a file that names the classes."""
    for folder in above(path.parent, _ABOVE):
        if any((folder / name).is_file() for name in (*USUAL, *_NAMES)) and path.name not in _NAMES:
            return folder
    return None


# -------------------------------------------------------------------------------------------------------------- names


def _given_yaml(path: Path, settings: DataSettings) -> DataYaml | None:
    """The file that was given, or lies in the folder that was, where `path` is in its folder."""
    for given in (path, *((Path(settings.path).expanduser(),) if settings.path else ())):
        folder = given if given.is_dir() else given.parent
        file = given if is_yaml(given) else find_yaml(given) if given.is_dir() else None
        if file is not None and path.absolute().is_relative_to(folder.absolute()):
            return read_yaml(file)
    return None


def _yaml_above(root: Path) -> DataYaml | None:
    """The nearest one of a usual name, with names of classes if there is such a one."""
    folders = (root, _labels_of(root), *root.absolute().parents[:_ABOVE])
    files = [read_yaml(file) for folder in folders if (file := find_yaml(folder, usual=True))]
    return next((file for file in files if file.names()), files[0] if files else None)


_Named = tuple[tuple[str, ...], tuple[str, ...]]
"""Names of the classes in the order of their numbers, and notes on where they come from."""


def _given_names(path: Path, given: DataYaml | None, settings: DataSettings) -> _Named | None:
    """Of the file that was given, or lies in the folder that was: they count before those of other files."""
    if given is not None and (names := given.names()):
        return names, (f"names of classes from {given.file.name}",)
    for origin in (path, *((Path(settings.path).expanduser(),) if settings.path else ())):
        file = origin if darknet.is_data(origin) else darknet.find_data(origin) if origin.is_dir() else None
        listed = darknet.named(file, "names") if file else None
        if file and listed and path.absolute().is_relative_to(file.parent.absolute()):
            return read_names(listed), (f"names of classes from {listed.name}",)
    return None


def _names(root: Path, described: DataYaml | None, settings: DataSettings, classes: tuple[str, ...] | None) -> _Named:
    """Of the nearest file.

    Args:
        root: folder of the pictures.
        described: a file that may have them.
        settings: `classes`.
        classes: those known already.
    """
    named = described.names() if described else None
    for folder in (root, _labels_of(root), *root.absolute().parents[:_ABOVE]):
        if described and named and described.file.parent.absolute() == folder.absolute():
            return named, (f"names of classes from {described.file.name}",)
        for name in _NAMES:
            if (folder / name).is_file():
                return read_names(folder / name), (f"names of classes from {name}",)
    if settings.classes is not None:
        return chosen_names(settings.classes), ()
    if classes is not None:
        return classes, ("the labels have no names of classes: their numbers are taken for those known already",)
    raise DataError("no names of classes", where=root, remedy="write data.yaml or classes.txt, or set data.classes")


# ------------------------------------------------------------------------------------------------------------ writing


def _counted(objects: Objects) -> Iterator[Segmentation | None]:
    """Outlines of what is no crowd."""
    for index in range(len(objects.boxes)):
        if objects.crowd is None or not objects.crowd[index]:
            yield objects.segmentations[index] if objects.segmentations else None


def _write_yaml(classes: Sequence[str], folder: Path, part: str) -> None:
    """A new data.yaml, or one with a part more."""
    file = folder / USUAL[0]
    there = read_yaml(file) if file.is_file() else None
    content: dict[str, Any] = {**(there.content if there else {}), "names": dict(enumerate(classes))}
    if there is not None and (there.names() != tuple(classes) or part in there.content):
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
