"""Data in formats that are not read: recognised, called by their names, with what to export instead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from patchform.data.data_yaml import is_yaml
from patchform.data.listing import SUFFIXES, is_hidden
from patchform.data.text_files import beginning
from patchform.errors import DataError

_SNIFFED = 1 << 16
_LOOKED_AT = 12
"""Files of a folder that are looked into."""
_INSIDE = ("annotations", "annotation", "labels", "label", "ann", "json", "ds", "ds0", "data")
"""Folders inside, in lower case, in which annotations may lie."""


class Foreign(NamedTuple):
    """A format that is not read."""

    name: str
    remedy: str
    suffixes: tuple[str, ...] = ()
    """Of its files, in lower case; what comes after a dash does not count, as in a.tfrecord-00000-of-00010."""
    signs: tuple[str, ...] = ()
    """Expressions that all occur in the beginning of a file; () where the name is enough."""
    bytes_: tuple[bytes, ...] = ()
    """What files begin with, whatever they are called."""
    folders: tuple[str, ...] = ()
    """A folder inside with one of these names, in lower case, tells."""


_COCO = "COCO's json, Pascal VOC's xml or YOLO's text"
_PACKED = "unpack it, and give the folder"
_TABLE = "write the pictures as files, in class folders or beside a CSV list"

_CELL, _END = r"(?i)\A[^\n]*(?<![a-z0-9])", r"(?![a-z0-9])"
"""Around the name of a column in the first line."""
_NAME = r"\A[^\n,;\t]*\.(?:jpe?g|png|bmp|tiff?|webp|JPE?G|PNG)[\"']?"
"""A first line that names a picture, and so no columns."""

FOREIGN: tuple[Foreign, ...] = (
    Foreign(
        "VIA's csv",
        "in VIA, export the annotations as COCO's json",
        (".csv",),
        (r"\A[^\n]*region_shape_attributes",),
    ),
    Foreign(
        "a table of boxes, a row for each object",
        f"write it as {_COCO}, and take the task detection",
        (".csv", ".tsv"),
        (
            f"{_CELL}(?:x_?min|x_?1|x_?cent(?:er|re)|bbox_x|box_x){_END}",
            f"{_CELL}(?:y_?min|y_?1|y_?cent(?:er|re)|bbox_y|box_y){_END}",
        ),
    ),
    Foreign(
        "a table of boxes, a row for each object",
        f"write it as {_COCO}, and take the task detection",
        (".csv", ".tsv"),
        (f"{_CELL}(?:bbox(?:es)?|boxes|bounding_?box(?:es)?){_END}",),
    ),
    Foreign(
        "a table of boxes without names of columns",
        f"write it as {_COCO}, and take the task detection",
        (".csv", ".tsv"),
        (_NAME + r"[,;\t](?:[ \"']*-?\d[\d.]*[ \"']*[,;\t]){3}",),
    ),
    Foreign(
        "a table of run lengths, a row for each mask",
        "write pictures of masks for semantic segmentation, or COCO's json for objects",
        (".csv", ".tsv"),
        (f"{_CELL}(?:encoded_?pixels|rle|run_?lengths?){_END}",),
    ),
    Foreign(
        "COCO's panoptic json",
        "give instances_*.json for objects, or stuff_*.json or pictures of masks for semantic segmentation",
        (".json",),
        (r'"segments_info"\s*:\s*\[',),
    ),
    Foreign(
        "COCO's captions",
        "give instances_*.json",
        (".json",),
        (r'"annotations"\s*:\s*\[\s*\{', r'"caption"\s*:'),
    ),
    Foreign(
        "labelme's json, a file for each picture",
        "convert it with labelme's labelme2coco.py, or to YOLO's text",
        (".json",),
        (r'"shapes"\s*:\s*\[', r'"image(?:Path|Data)"\s*:|"shape_type"\s*:'),
    ),
    Foreign(
        "VIA's json",
        "in VIA, export the annotations as COCO's json",
        (".json",),
        (r'"shape_attributes"\s*:|"_via_(?:settings|img_metadata)"\s*:',),
    ),
    Foreign(
        "CreateML's json",
        f"export {_COCO}",
        (".json",),
        (r"\A\s*\[", r'"image(?:filename)?"\s*:', r'"coordinates"\s*:\s*\{'),
    ),
    Foreign(
        "Label Studio's json",
        'in Label Studio, export "COCO", or "YOLO with Images"',
        (".json",),
        (r'"(?:annotations|completions|predictions)"\s*:\s*\[', r'"(?:from_name|to_name)"\s*:|"result"\s*:\s*\['),
    ),
    Foreign(
        "Label Studio's short json",
        'in Label Studio, export "COCO", or "YOLO with Images"',
        (".json",),
        (r"\A\s*\[", r'"(?:rectangle|polygon|brush)labels"\s*:'),
    ),
    Foreign(
        "Labelbox's json",
        f"export {_COCO}",
        (".json", ".ndjson"),
        (r'"(?:data_row|Labeled Data|media_attributes)"\s*:',),
    ),
    Foreign(
        "BDD100K's or Scalabel's json",
        "convert it with Scalabel's to_coco",
        (".json",),
        (r'"box2d"\s*:|"poly2d"\s*:',),
    ),
    Foreign(
        "Datumaro's json",
        'export it as "coco_instances"',
        (".json",),
        (r'"items"\s*:\s*\[', r'"(?:categories|dm_format_version|media_type)"\s*:'),
    ),
    Foreign(
        "Supervisely's json",
        "in Supervisely, export COCO's json",
        (".json",),
        (r'"objects"\s*:\s*\[', r'"(?:geometryType|classTitle)"\s*:'),
    ),
    Foreign(
        "Supervisely's meta.json",
        "in Supervisely, export COCO's json",
        (".json",),
        (r'"classes"\s*:\s*\[', r'"(?:projectType|shape)"\s*:'),
    ),
    Foreign(
        "CVAT's xml",
        'in CVAT, export "COCO 1.0", "PASCAL VOC 1.1" or "YOLO 1.1"',
        (".xml",),
        (r"<annotations[\s>]", r"<(?:version|meta|image|track)[\s>]"),
    ),
    Foreign(
        "COCO's results, which are predictions",
        "give the annotation file",
        (".json",),
        (r'\A\s*\[\s*\{[^}]*"score"\s*:',),
    ),
    Foreign(
        "DOTA's text", f"write it as {_COCO}, upright boxes", folders=("labeltxt", "labeltxt-v1.0", "labeltxt-v1.5")
    ),
    Foreign("KITTI's text", f"write it as {_COCO}", folders=("label_2",)),
    Foreign(
        "Pascal VOC's masks",
        "put the pictures that have one into images/ and the masks into masks/, with classes.txt beside",
        folders=("segmentationclass", "segmentationclassraw"),
    ),
    Foreign(
        "a list of pictures in plain text",
        'write it as CSV, with a first line "image,label"; for YOLO\'s text put data.yaml beside it',
        (".txt",),
        (r"\A[^\n]*\.(?:jpe?g|png|bmp|tiff?|webp|JPE?G|PNG|mp4|avi)\b",),
    ),
    Foreign("lines of JSON", 'write them as CSV, with a first line "image,label"', (".jsonl",)),
    Foreign("arrays in one file", _TABLE, (".npz", "-ubyte")),
    Foreign("a Jupyter notebook", "give the data that it reads", (".ipynb",)),
    Foreign("a pickle, which could run code if it were opened", _TABLE, (".pkl", ".pickle", ".joblib", ".pt", ".pth")),
    Foreign("a Parquet table", _TABLE, (".parquet",), bytes_=(b"PAR1",)),
    Foreign("an Arrow table", _TABLE, (".arrow", ".feather"), bytes_=(b"ARROW1",)),
    Foreign("TensorFlow's records", _TABLE, (".tfrecord", ".tfrecords")),
    Foreign("a HDF5 or MATLAB file", _TABLE, (".h5", ".hdf5", ".mat"), bytes_=(b"\x89HDF\r\n\x1a\n", b"MATLAB 5.0")),
    Foreign("an LMDB data base", _TABLE, (".mdb", ".lmdb")),
    Foreign("a spreadsheet", "save it as CSV", (".xlsx", ".xls", ".ods")),
    Foreign("a zip archive", _PACKED, (".zip",), bytes_=(b"PK\x03\x04", b"PK\x05\x06")),
    Foreign("a RAR archive", _PACKED, (".rar",), bytes_=(b"Rar!",)),
    Foreign("a 7z archive", _PACKED, (".7z",), bytes_=(b"7z\xbc\xaf\x27\x1c",)),
    Foreign("a tar archive", _PACKED, (".tar", ".tgz", ".tbz2", ".txz", ".tzst")),
    Foreign("a compressed file", _PACKED, (".gz", ".bz2", ".xz", ".zst"), bytes_=(b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")),
)
"""In the order in which they are asked."""


def foreign(path: Path) -> tuple[Foreign, Path] | None:
    """The format that a file is of, or the files of a folder are, and the first such file or folder."""
    for file in (path,) if path.is_file() else _candidates(path):
        name, text = file.name.lower(), beginning(file, _SNIFFED)
        for format_ in FOREIGN:
            named = name.endswith(format_.suffixes) or any(f"{suffix}-" in name for suffix in format_.suffixes)
            if format_.suffixes and named and all(re.search(sign, text) for sign in format_.signs):
                return format_, file
            if format_.bytes_ and _starts(file, format_.bytes_):
                return format_, file
    if path.is_dir():
        inside = {entry.name.lower(): entry for entry in path.iterdir() if entry.is_dir()}
        for format_ in FOREIGN:
            if folder := next((inside[name] for name in format_.folders if name in inside), None):
                return format_, folder
    return None


def refuse_foreign(path: Path, *, by_content: bool = False) -> None:
    """Raise DataError for what is in a format that is not read; `by_content`: if more than names says so."""
    if (known := foreign(path)) and (known[0].signs or not by_content):
        format_, file = known
        raise DataError(f"{format_.name}: a format that is not read", where=file, remedy=format_.remedy)


def _starts(file: Path, magic: tuple[bytes, ...]) -> bool:
    try:
        with file.open("rb") as stream:
            return stream.read(16).startswith(magic)
    except OSError:
        return False


def _candidates(folder: Path) -> Iterator[Path]:
    """The first files that may be annotations, of a folder and of those inside it that are called so."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not is_hidden(entry.name))
        inside = [entry for entry in entries if entry.is_dir() and entry.name.lower() in _INSIDE]
        files = [entry for entry in entries if _may_be(entry)][:_LOOKED_AT]
        for deeper in inside:
            below = sorted(deeper.iterdir())
            files += [entry for entry in below if _may_be(entry)][:_LOOKED_AT]
            for deepest in (entry for entry in below if entry.is_dir() and entry.name.lower() in _INSIDE):
                files += [entry for entry in sorted(deepest.iterdir()) if _may_be(entry)][:_LOOKED_AT]
    except OSError:
        return
    yield from files


def _may_be(entry: Path) -> bool:
    suffix = entry.suffix.lower()
    return entry.is_file() and suffix not in (*SUFFIXES, ".txt", "") and not is_yaml(entry)
