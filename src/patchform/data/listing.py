"""What a data set holds, before any picture is opened: classes by name, files by path."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from patchform.data.text_files import read_text
from patchform.errors import DataError

PICTURE_FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WebP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "PNM": (".pnm", ".pbm", ".pgm", ".ppm"),
    "NumPy": (".npy",),
}
SUFFIXES = tuple(suffix for suffixes in PICTURE_FORMATS.values() for suffix in suffixes)
"""Names that are taken for pictures in a folder; what they really are is decided by their content."""
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".avi", ".mkv", ".webm", ".wmv", ".flv", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    ".gif",
)
"""Names that are taken for videos where videos are looked for."""
TRAIN, VALIDATION = ("train", "training"), ("val", "valid", "validation", "test")
"""Names of the parts of a data set."""


class RLE(NamedTuple):
    """Pixels of an object as COCO counts them: down the columns, off and on in turn, off first."""

    counts: bytes | tuple[int, ...]
    """Lengths of the runs; as bytes, in COCO's compression."""
    size: tuple[int, int]
    """(height, width) of the picture."""


Segmentation: TypeAlias = tuple[np.ndarray, ...] | RLE
"""Polygons, each (K, 2) float32 x, y in pixels, K >= 3, which together are one object; or its run lengths."""


class Objects(NamedTuple):
    """The annotated objects of a picture, N of them."""

    boxes: np.ndarray
    """(N, 4) float32 xyxy, pixels of the upright picture, inside it and not empty."""
    classes: np.ndarray
    """(N,) int64 indices into the listing's classes."""
    size: tuple[int, int]
    """(height, width) of the upright picture: as annotated, or from the file's header where that is not."""
    crowd: np.ndarray | None = None
    """(N,) bool: a region of many objects, or one that does not count; None where there are none."""
    areas: np.ndarray | None = None
    """(N,) float32 pixels, as annotated."""
    segmentations: tuple[Segmentation | None, ...] | None = None
    """None: boxes only."""
    id: int | str | None = None
    """The picture's own in its annotation file: kept for results."""


class PolygonMask(NamedTuple):
    """A class for every pixel as regions draw it: each covers those before it, and what none covers is ignored."""

    segmentations: tuple[Segmentation, ...]
    classes: tuple[int, ...]
    """Of each, an index into the listing's classes, or `records.IGNORED`."""
    size: tuple[int, int]
    """(height, width) of the upright picture."""


class Item(NamedTuple):
    """A picture, or a video, and what is known of it."""

    path: Path
    """A file; or a folder, whose pictures are the frames of a video."""
    classes: tuple[int, ...]
    """Indices into the listing's classes: one for single labels, any number for multiple ones, none with a mask, those
    that occur in rising order with objects."""
    mask: Path | PolygonMask | None = None
    """A class for every pixel: as a picture, or as regions."""
    objects: Objects | None = None
    """Boxes, and outlines; not None, but of none, for a picture without objects in a set that has them."""
    truth: Any = None
    """What a data format of a plug-in knows, for the task of that plug-in: a plain value."""


@dataclass(frozen=True, kw_only=True)
class MaskCodes:
    """What the numbers, or the colours, of label pictures mean. A class is an index into the listing's classes."""

    ids: tuple[tuple[int, int], ...] = ()
    """(number in the file, class or `IGNORED`); any other number is a fault."""
    colors: tuple[tuple[tuple[int, int, int], int], ...] = ()
    """((red, green, blue), class or `IGNORED`). When given, colours count and numbers do not."""
    unknown: tuple[tuple[int, str], ...] = field(default=(), repr=False)
    """(number in the file, name) of classes of the data that are not known where they are read: faults, too. Not in the
    digest of what is listed, which older runs have without."""


def videos_among(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Video files, and folders of pictures without any beside them."""
    videos = [file for file in files if file.suffix.lower() in VIDEO_SUFFIXES]
    taken = {folder, *(file.parent for file in videos)}
    frames = {file.parent for file in files if file.suffix.lower() in SUFFIXES} - taken
    return sorted([*videos, *frames])


def pictures_among(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Picture files."""
    return [file for file in files if file.suffix.lower() in SUFFIXES]


class Medium(NamedTuple):
    """What items are."""

    thing: str
    """In a word."""
    suffixes: tuple[str, ...]
    """Of files that are taken for such, by their names."""
    among: Callable[[Path, Sequence[Path]], list[Path]]
    """From a folder and all files below it to the items: files, or folders that are one item each."""


PICTURES = Medium("picture", SUFFIXES, pictures_among)
VIDEOS = Medium("video", VIDEO_SUFFIXES, videos_among)


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All pictures of one part of a data set."""

    classes: tuple[str, ...]
    """Names; a position is the class index everywhere."""
    items: tuple[Item, ...]
    root: Path
    """Folder that names are relative to."""
    notes: tuple[str, ...] = ()
    """What the user should know: things ignored, counted or mapped. One sentence each."""
    mask_codes: MaskCodes | None = None
    """Of the masks; None without any."""
    ids: tuple[int | str, ...] | None = None
    """Of objects: the raw category ids in the order of the classes; None where a format has none of its own."""
    medium: Medium = PICTURES
    """What an item is."""
    sizes_annotated: bool = True
    """Whether the sizes of pictures with objects were annotated, or else are those of the files."""
    content: str = ""
    """A digest of the pictures themselves, where their paths do not stand for them."""

    def __len__(self) -> int:
        return len(self.items)

    def name(self, index: int) -> str:
        """Path of an item relative to the root, with forward slashes."""
        return relative_name(self.items[index].path, self.root)

    @property
    def thing(self) -> str:
        """What an item is, in a word."""
        return self.medium.thing

    @property
    def videos(self) -> bool:
        """Whether the items are videos."""
        return self.medium == VIDEOS

    @property
    def objects(self) -> bool:
        """Whether the items have objects."""
        return bool(self.items) and self.items[0].objects is not None

    def as_bytes(self) -> bytes:
        """Names and classes of all items, and what stands for objects and regions, for a digest of what is listed."""
        lines = [f"{self.name(index)}\0{item.classes}\n" for index, item in enumerate(self.items)]
        lines += [repr(item.truth) for item in self.items if item.truth is not None]
        lines += [repr(self.mask_codes)] * (self.mask_codes is not None)
        if self.objects or any(isinstance(item.mask, PolygonMask) for item in self.items):
            lines.append(_digest(self.items))
        return "".join([*lines, self.content]).encode(errors="surrogateescape")

    def counts(self) -> tuple[int, ...]:
        """Number of pictures of each class."""
        counts = [0] * len(self.classes)
        for item in self.items:
            for index in item.classes:
                counts[index] += 1
        return tuple(counts)


def _digest(items: Iterable[Item]) -> str:
    """A hash of all objects, and of masks that are regions."""
    digest = hashlib.blake2b(digest_size=16)
    for item in items:
        if isinstance(item.mask, PolygonMask):
            digest.update(repr(item.mask[1:]).encode())
            _add_outlines(digest, item.mask.segmentations)
        if item.objects is not None:
            boxes, classes, size, crowd, areas, outlines, id_ = item.objects
            digest.update(repr((size, id_, len(boxes))).encode())
            for array in (boxes, classes, crowd, areas):
                digest.update(b"none" if array is None else array.tobytes())
            _add_outlines(digest, outlines or ())
    return digest.hexdigest()


def _add_outlines(digest: hashlib.blake2b, outlines: Iterable[Segmentation | None]) -> None:
    for outline in outlines:
        for part in (outline,) if outline is None or isinstance(outline, RLE) else outline:
            digest.update(part.tobytes() if isinstance(part, np.ndarray) else repr(part).encode())


def few_of(listing: Listing, count: int) -> Listing:
    """So many items at most, evenly spread."""
    if len(listing) <= count:
        return listing
    items = tuple(listing.items[number * len(listing) // count] for number in range(count))
    return replace(listing, items=items)


def files_of(path: Path) -> tuple[Path, ...]:
    """The file of an item; or of a folder the pictures in it, in their natural order. Raises DataError."""
    if not path.is_dir():
        return (path,)
    try:
        files = [file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and not is_hidden(file.name)]
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=path) from None
    return tuple(sorted(files, key=natural))


def natural(path: Path) -> tuple[list[str | int], str]:
    """A key to sort by: 2 comes before 10."""
    parts = re.split(r"(\d+)", path.as_posix())  # text and digits in turn
    return [int(part) if index % 2 else part.casefold() for index, part in enumerate(parts)], path.as_posix()


def relative_name(path: Path, root: Path) -> str:
    """`path` relative to `root` with forward slashes, or as it is when it lies elsewhere."""
    return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def is_hidden(name: str) -> bool:
    """Whether a file or folder belongs to the system or to a tool, not to the data set."""
    return name.startswith((".", "@eaDir", "__MACOSX")) or name.lower() in ("thumbs.db", "desktop.ini", "$recycle.bin")


def walk(folder: Path) -> Iterator[Path]:
    """All files below a folder, by name. Links to folders are followed unless they lead back to a folder above.

    A folder named like a picture is given as it is, for the decoder to refuse.
    """
    above: list[tuple[int, int]] = []

    def visit(directory: Path) -> Iterator[Path]:
        status = directory.stat()
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            return
        above.append(identity)
        with os.scandir(directory) as scan:
            entries = sorted((entry for entry in scan if not is_hidden(entry.name)), key=lambda entry: entry.name)
        for entry in entries:
            path = directory / entry.name
            is_folder = path.is_dir() if entry.is_symlink() else entry.is_dir()  # a link to itself is none
            if is_folder and not entry.name.lower().endswith(SUFFIXES):
                yield from visit(path)
            else:
                yield path
        above.pop()

    try:
        yield from visit(folder)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", where=error.filename or folder) from None


def first_suffix(folder: Path, suffixes: Sequence[str], but: Sequence[str] = ()) -> str | None:
    """The first of these suffixes, in lower case, that a file below a folder has; files of the names `but` aside."""
    files = walk(folder) if folder.is_dir() else ()
    present = (file.suffix.lower() for file in files if file.name.lower() not in but)
    return next((suffix for suffix in present if suffix in suffixes), None)


def ordered(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in their order: by number when all are whole numbers, else by character."""
    names = set(names)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def mapping_note(classes: Sequence[str]) -> tuple[str, ...]:
    """A note on how names that are numbers, but not their own positions, were numbered."""
    if not classes or not all(name.isascii() and name.isdigit() for name in classes):
        return ()
    pairs = ", ".join(f"{name} -> {index}" for index, name in enumerate(classes[:12]))
    return (f"class names are numbers, in numerical order (name -> index): {pairs}{' ...' * (len(classes) > 12)}",)


def check_names(names: Sequence[str], where: Path) -> None:
    """Raise DataError when two class names look alike: most likely they mean one class."""
    seen: dict[str, str] = {}
    for name in names:
        key = _look_of(name)
        if key in seen and seen[key] != name:
            what = f'classes "{seen[key]}" and "{name}" {_difference(seen[key], name)}'
            raise DataError(what, where=where, remedy="rename one")
        seen[key] = name


def _look_of(name: str) -> str:
    """What is seen of a name, without case and spaces."""
    seen = (letter for letter in unicodedata.normalize("NFC", name.casefold()) if unicodedata.category(letter) != "Cf")
    return unicodedata.normalize("NFC", "".join("".join(seen).split()))


def _difference(name: str, other: str) -> str:
    """In what two names of one look differ."""
    if "".join(name.casefold().split()) == "".join(other.casefold().split()):
        return "differ only by case or spaces"
    spelt = (ascii(unicodedata.normalize("NFC", each)) == ascii(each) for each in (name, other))
    form = "are written in two forms of Unicode, NFC and NFD" if not all(spelt) else "differ by what is not seen"
    return f"look alike, and {form}"


def by_name(names: Iterable[str], classes: Sequence[str], where: Path) -> dict[str, int]:
    """Indices by name. Raises DataError for a name that is not among `classes`."""
    indices = {name: index for index, name in enumerate(classes)}
    unknown = [name for name in names if name not in indices]
    if unknown:
        raise unknown_classes(unknown, classes, where)
    return indices


def unknown_classes(names: Sequence[str], classes: Sequence[str], where: Path) -> DataError:
    """The error for names that are not among `classes`; those that look like one of them are told."""
    looks = {_look_of(name): name for name in classes}
    alike = [(name, looks[_look_of(name)]) for name in names if _look_of(name) in looks]
    near = "".join(f'; "{name}" and the known "{known}" {_difference(name, known)}' for name, known in alike[:3])
    what = f"{len(names)} unknown class{'es' * (len(names) > 1)}: {quoted(names)}{near}"
    return DataError(what, where=where, remedy=f"known are {quoted(classes)}")


def chosen_names(classes: str | Sequence[str]) -> tuple[str, ...]:
    """Names of classes as a recipe gives them: a list, or the path of a file of them. Raises DataError."""
    return read_names(Path(classes).expanduser()) if isinstance(classes, str) else tuple(classes)


def read_names(file: Path) -> tuple[str, ...]:
    """Names of classes: a name a line, or a list in a .json file. Raises DataError."""
    text = read_text(file)
    if file.suffix.lower() == ".json":
        try:
            names = json.loads(text)
        except (ValueError, RecursionError):
            names = None
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError("not a list of names", where=file, remedy='write ["sky", "road"]')
    else:
        names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise DataError("no names of classes", where=file, remedy="write a name a line")
    return tuple(names)


def quoted(names: Sequence[object], limit: int = 5) -> str:
    """The first few names for a message."""
    shown = ", ".join(f'"{shortened(str(name))}"' for name in names[:limit])
    return shown + (f" and {len(names) - limit} more" * (len(names) > limit))


def shortened(name: str, limit: int = 160) -> str:
    """A name for a message: the ends of one that is longer than any line."""
    return name if len(name) <= limit else f"{name[: limit - 50]}...{name[-47:]}"
