"""Pascal VOC's xml: a file of boxes for each picture.

    Annotations/a.xml   JPEGImages/a.jpg   ImageSets/Main/train.txt   ImageSets/Main/val.txt   (or trainval, test)
    annotations/a.xml   images/a.jpg
    train/a.xml         train/a.jpg                                   (Roboflow)

A file and its picture have one name but for the suffix, else `filename` says. Boxes are the first and the last pixel
in each direction, counted from 1 (Everingham et al. 2010, "The Pascal visual object classes challenge", and its
development kit). Objects marked difficult count for nothing, as there. Classes are those that occur, by name.
Where there is no list to learn from, what is listed to validate or to test on is not learnt from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree
from xml.sax.saxutils import escape

import numpy as np

from patchform.data.annotations import Annotations, Picture, annotate, class_table, notes_on, present
from patchform.data.faults import Faults
from patchform.data.formats.base import Parts, WritableFormat
from patchform.data.images import read as read_bytes
from patchform.data.listed_names import NearNames, inside, with_offer
from patchform.data.listing import (
    SUFFIXES,
    TRAIN,
    VALIDATION,
    Item,
    Listing,
    is_hidden,
    ordered,
    quoted,
    shortened,
    walk,
)
from patchform.data.text_files import beginning, decoded, read_text
from patchform.data.writing import Copies, check_target, place_pictures, write_new
from patchform.errors import DataError
from patchform.settings import DataSettings

_LABELS, _PICTURES = ("Annotations", "annotations"), ("JPEGImages", "images")
_SETS = Path("ImageSets", "Main")
_BOTH = "trainval"
_ROOT = re.compile(r"<annotation[\s>]")
_SNIFFED = 4096
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class _Folders(NamedTuple):
    labels: Path
    pictures: Path
    names: Path | None
    """The list of a part, if there is one."""


class Voc(WritableFormat):
    """Pascal VOC's xml: a file of boxes for each picture."""

    tasks = ("detection",)
    layout = "Pascal VOC's Annotations/ and JPEGImages/"
    keeps = frozenset({"crowd"})

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a list in ImageSets/Main, or a folder with such folders or with xml beside pictures."""
        return _folders(path) is not None

    def parts(self, path: Path) -> Parts | None:
        """The lists of a training and a validation part, if there are any; trainval trains where train is not there."""
        if not path.is_dir() or not _folders(path):
            return None
        train, validation = _lists(path, (*TRAIN, _BOTH)), _lists(path, VALIDATION)
        return (train[0], validation[0] if validation else None) if train else None

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the pictures with their objects. `settings.classes` and `skip_bad` are used.

        Raises:
            DataError: nothing listed, or unknown classes.
            UsageError: a class in `settings.classes` that does not occur.
        """
        folders = _folders(path)
        if folders is None:
            raise DataError("no Pascal VOC data", where=path, remedy=f"looked for {self.layout}")
        pictures: list[Picture] = []
        names, boxes, of_picture, difficult, locations = [], [], [], bytearray(), []
        near = NearNames(folders.pictures)
        files = {
            file.relative_to(folders.pictures).with_suffix("").as_posix(): file
            for file in walk(folders.pictures)
            if file.suffix.lower() in SUFFIXES
        }
        listed = _listed(folders, faults)
        explicit = settings.path is not None and Path(settings.path).expanduser() == path
        held_out = _held_out(folders, explicit) if classes is None else {}
        kept = [(name, file) for name, file in listed if name not in held_out]
        for name, file in kept:
            try:
                size, filename, objects = _parse(file)
            except DataError as error:
                faults.add("labels-bad", name, error.what)
                continue
            picture = files.get(name)
            if picture is None and (other := inside(filename, folders.pictures)):
                picture = folders.pictures / other
            of_picture += [len(pictures)] * len(objects)
            shown = picture.relative_to(folders.pictures).as_posix() if picture else name
            pictures.append(Picture(picture or folders.pictures / f"{name}.jpg", shown, size))
            for number, (class_, box, hard) in enumerate(objects, 1):
                names.append(class_)
                boxes.append(box)
                difficult.append(hard)
                locations.append(f"{shown}, object {number}")
        if not kept and not faults.counts["labels-missing"]:
            what = "all pictures are listed to test on" if listed else "no picture is listed"
            raise DataError(what, where=path, remedy=f"write {_SETS / 'train.txt'}" if listed else "")
        occurring = ordered(names)
        order, table, notes = class_table(occurring, settings, classes, folders.labels)
        rows = Annotations(
            boxes=np.array(boxes, np.float64).reshape(-1, 4) - (1, 1, 0, 0),
            classes=np.array([table[name] for name in names], np.int64),
            pictures=np.array(of_picture, np.int64),
            location=locations.__getitem__,
            crowd=np.frombuffer(bytes(difficult), np.uint8).astype(bool),
        )
        items = annotate(present(pictures, settings, faults, near), rows, faults)
        notes += _held_out_notes(listed, held_out)
        without = len(files) - len(listed) if folders.names is None else 0
        notes += (f"{without} pictures without a file of annotations are left out",) if without > 0 else ()
        notes += notes_on(items, "objects marked difficult")
        return Listing(classes=order, items=items, root=folders.pictures, notes=notes)

    def write(
        self, listing: Listing, folder: Path, *, part: str = "train", pictures: Copies = "none"
    ) -> tuple[str, ...]:
        """Write Annotations/, ImageSets/Main/<part>.txt, and pictures into JPEGImages/.

        Corners are as exact as float32: whole pixels stay whole. Regions that count for nothing become difficult
        objects; a class without an object is not known any more. Two pictures of one name but for the suffix are a
        DataError.
        """
        check_target(folder, listing.root)
        names = [str(Path(listing.name(index)).with_suffix("").as_posix()) for index in range(len(listing))]
        if len(set(names)) < len(names):
            raise DataError("two pictures have one name but for the suffix", where=listing.root)
        for name, item in zip(names, listing.items, strict=True):
            write_new(folder / "Annotations" / f"{name}.xml", _document(item, listing.classes))
        write_new(folder / _SETS / f"{part}.txt", [f"{name}\n" for name in names])
        place_pictures(listing, folder / "JPEGImages", pictures)
        outlined = sum(
            sum(outline is not None for outline in item.objects.segmentations or ())
            for item in listing.items
            if item.objects
        )
        return (f"{outlined} outlines, which Pascal VOC's xml has no place for",) if outlined else ()


def _folders(path: Path) -> _Folders | None:
    if path.is_file():
        lists = path.absolute().parent
        home = lists.parent if lists.name.lower() == "main" else lists
        if path.suffix.lower() != ".txt" or home.name.lower() != "imagesets":
            return None
        folders = _folders(path.parent.parent if home == lists else path.parent.parent.parent)
        return folders and folders._replace(names=path)
    for labels in (path / name for name in _LABELS):
        if labels.is_dir() and any(map(_is_annotation, walk(labels))):
            inside = (path / kind for kind in _PICTURES)
            return _Folders(labels, next((folder for folder in inside if folder.is_dir()), path), None)
    beside = path.is_dir() and any(map(_is_annotation, sorted(path.iterdir())))
    return _Folders(path, path, None) if beside else None


def _is_annotation(file: Path) -> bool:
    named = file.suffix.lower() == ".xml" and not is_hidden(file.name)
    return named and _ROOT.search(beginning(file, _SNIFFED)) is not None


def _lists(folder: Path, names: Sequence[str]) -> list[Path]:
    """Lists of these names, in their order, of a folder of data."""
    lists: list[Path] = []
    for sets in (
        *_folders_called("main", *_folders_called("imagesets", folder)),
        *_folders_called("imagesets", folder),
    ):
        texts = {entry.stem.lower(): entry for entry in sorted(sets.iterdir()) if entry.suffix.lower() == ".txt"}
        lists += [texts[name] for name in names if name in texts]
    return lists


def _folders_called(name: str, *homes: Path) -> list[Path]:
    """Folders of a name in any case."""
    inside = (entry for home in homes if home.is_dir() for entry in sorted(home.iterdir()))
    return [entry for entry in inside if entry.name.lower() == name and entry.is_dir()]


def _names_in(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _held_out(folders: _Folders, explicit: bool) -> dict[str, str]:
    """Names that are not to be learnt from, each with its list.

    Args:
        folders: where there is no list of training alone.
        explicit: the user named this very list.
    """
    if folders.names is not None and (explicit or folders.names.stem.lower() != _BOTH):
        return {}
    home = folders.labels if folders.labels == folders.pictures else folders.labels.parent
    return {name: file.name for file in _lists(home, VALIDATION) for name in _names_in(file)}


def _held_out_notes(listed: Sequence[tuple[str, Path]], held_out: dict[str, str]) -> tuple[str, ...]:
    lists = [held_out[name] for name, _ in listed if name in held_out]
    return tuple(f"{lists.count(name)} pictures of {name} are not learnt from" for name in dict.fromkeys(lists))


def _listed(folders: _Folders, faults: Faults) -> list[tuple[str, Path]]:
    """Names and files of annotations, in the order of the list or of the names."""
    files = {
        file.relative_to(folders.labels).with_suffix("").as_posix(): file
        for file in walk(folders.labels)
        if file.suffix.lower() == ".xml"
    }
    if folders.names is None:
        return list(files.items())
    names, near = _names_in(folders.names), NearNames(folders.labels, (".xml",))
    for name in names:
        if name not in files:
            what = with_offer(f"no {shortened(name)}.xml", near.offer(name))
            faults.add("labels-missing", shortened(name), what)
    if len(set(names)) < len(names):
        faults.add("picture-twice", folders.names.name, quoted(sorted({n for n in names if names.count(n) > 1})))
    return [(name, files[name]) for name in dict.fromkeys(names) if name in files]


_Parsed = tuple[tuple[int, int] | None, str, list[tuple[str, tuple[float, ...], bool]]]


def _parse(file: Path) -> _Parsed:
    """Size if it is given, name of the picture, and (class, corners as written, difficult) of each object."""
    data = read_bytes(file)
    if re.search(rb"<!\s*(DOCTYPE|ENTITY)", data):
        raise DataError("a document type, which may define anything")
    try:
        root = ElementTree.fromstring(data)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        decoded(data, file)  # a text in another encoding, which it does not name, is called so
        raise DataError(f"no XML ({error})") from None
    if root.tag != "annotation":
        raise DataError(f"<{root.tag}> where <annotation> is expected")
    try:
        height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
        objects = []
        for element in root.findall("object"):
            name, box = (element.findtext("name") or "").strip(), element.find("bndbox")
            if not name or box is None:
                raise DataError("an object without a name or a bndbox")
            corners = tuple(float(box.findtext(corner) or "nothing") for corner in _CORNERS)
            hard = (element.findtext("difficult") or "0").strip() not in ("0", "Unspecified", "")
            objects.append((name, corners, hard))
    except (ValueError, OverflowError) as error:
        raise DataError(f"not a number ({error})"[:100]) from None
    size = (height, width) if height > 0 and width > 0 else None
    return size, (root.findtext("filename") or "").strip(), objects


# ------------------------------------------------------------------------------------------------------------ writing


def _document(item: Item, classes: Sequence[str]) -> Iterator[str]:
    assert item.objects is not None
    height, width = item.objects.size
    yield f"<annotation>\n  <filename>{escape(item.path.name)}</filename>\n"
    yield f"  <size><width>{width}</width><height>{height}</height><depth>3</depth></size>\n"
    crowd = item.objects.crowd
    for index, class_ in enumerate(item.objects.classes.tolist()):
        left, top, right, bottom = item.objects.boxes[index].tolist()
        corners = zip(_CORNERS, (left + 1, top + 1, right, bottom), strict=True)
        box = "".join(f"<{name}>{value:.17g}</{name}>" for name, value in corners)
        difficult = int(crowd is not None and bool(crowd[index]))
        yield f"  <object><name>{escape(classes[class_])}</name><difficult>{difficult}</difficult>"
        yield f"<bndbox>{box}</bndbox></object>\n"
    yield "</annotation>\n"
