"""Weights from a file or folder that the user named: recognised by content, read whole or refused with the reason.

    a model folder of patchform     model.json and model.safetensors, every bit checked against the manifest
    safetensors                     one file, or shards with an index (a folder, or its *.safetensors.index.json)
    .npz                            arrays by name, as JAX projects publish them

None of these can hold code, and nothing here fetches anything. A pickle (.pth, .pt, .bin) can: `weights.pickles` opens
it, and only the command that converts it calls that.
"""

from __future__ import annotations

import io
import json
import math
import os
import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy
import torch
from numpy.lib import format as npy
from torch import Tensor

from patchform import system
from patchform.errors import ModelFileError
from patchform.weights import files
from patchform.weights.load_report import shorten

FORMAT = 2
"""Version of model.json; a reader refuses all others."""
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
"""The files of a model in its folder."""
CHECKPOINTS, BEST = "checkpoints", "best"
"""In a run folder: what it goes on from, and its best model so far."""
MOST_CLASSES = 100_000
INDEX = ".safetensors.index.json"
MOST_ENTRIES = 1 << 16
"""Entries of an archive, or values of a pickle, that are still looked at."""


class Source(NamedTuple):
    """Weights by name, and what the file says about them."""

    tensors: dict[str, Tensor]
    """On the CPU, finite, at least one."""
    classes: tuple[str, ...] = ()
    """Names in the order of the classifier's outputs; empty where the source does not say."""
    metadata: Mapping[str, str] = MappingProxyType({})
    """Notes in the header of safetensors, or in the index; written by whoever made the file."""
    own: bool = False
    """A model folder of patchform: the names are our own, and every bit is as it was written."""
    head: str = ""
    """Name of the head of a model folder."""
    family: str = ""
    """Of the backbone of a model folder."""
    grids: Mapping[str, tuple[int, ...]] = MappingProxyType({})
    """Rows and columns (of clips, moments in front) of the layers of a model folder whose tables do not tell them."""


def read(path: Path) -> Source:
    """Read the weights in a file or folder.

    Raises:
        ModelFileError: missing, damaged, of another format, a pickle, weights that are not finite, an archive that
            unpacks to far more than it is, or an index that does not say where each tensor is. Nothing is half read.
    """
    folder = model_folder(path) or path
    source = _folder(folder) if os.path.isdir(folder) else _file(path)
    check(source.tensors, path)
    return source


def model_folder(path: Path) -> Path | None:
    """The model folder that a path leads to, or in which it is the file of weights; None: neither."""
    folder = path.parent if path.name == WEIGHTS and os.path.exists(path.with_name(files.MANIFEST)) else path
    return folder if os.path.exists(folder / DESCRIPTION) else None


def check(tensors: Mapping[str, Tensor], where: Path) -> None:
    """Refuse weights that no model can use, wherever they are from.

    Raises:
        ModelFileError: no tensor at all, a name that cannot be printed, or NaN or infinity in one.
    """
    if not tensors:
        raise ModelFileError("it holds no tensors", where=where)
    _check_names(tensors, where)
    faults = []
    for name, tensor in tensors.items():
        try:
            count = int((~torch.isfinite(tensor)).sum())
        except RuntimeError as error:  # four bits, two numbers to a byte
            raise ModelFileError(f"{name} is {tensor.dtype}, which is not read", where=where) from error
        if count:
            faults.append(f"{name} ({count} of {tensor.numel()} numbers)")
    if faults:
        what = f"{len(faults)} of {len(tensors)} tensors hold NaN or infinity: {shorten(faults)}"
        raise ModelFileError(what, where=where, remedy="use weights from before the training diverged")


def _check_names(names: Iterable[str], where: Path) -> None:
    if unprintable := [name for name in names if not name.isprintable()]:
        raise ModelFileError(f"a tensor's name cannot be printed: {unprintable[0]!a}", where=where)


# ------------------------------------------------------------------------------------------------- what it could be

_FOREIGN = (
    (b"version https://git-lfs", "a Git LFS pointer in place of the file", "fetch it with: git lfs pull"),
    (b"<", "a web page or XML", "download the file itself, not the page about it"),
    (b"\x89HDF", "HDF5", ""),
    (b"\x93NUMPY", "one array without a name", "store it by its name with numpy.savez"),
    (b"PK", "an empty or divided zip archive", ""),
    (b"7z\xbc\xaf", "a 7-Zip archive", "unpack it first"),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
)
_KNOWN = "name safetensors (one file or shards with an index), .npz, or a model folder of patchform"


def _file(path: Path) -> Source:
    start = files.read_bytes(path, files.LARGEST_TENSORS, start=512)
    if _is_safetensors(start):
        tensors, notes = files.read_safetensors(path)
        return Source(tensors, metadata=notes)
    if start.startswith(b"PK\x03\x04"):
        return Source(_arrays(path))
    if start.lstrip().startswith(b"{"):
        return _shards(path)
    raise _refused(path, start)


def _is_safetensors(start: bytes) -> bool:
    return start[7:9] == b"\0{"  # the last byte of the header's length, and the header; no text has the first


def _refused(path: Path, start: bytes) -> ModelFileError:
    """The error for a file that is not read, which says what it is where that can be seen."""
    if is_pickle(start):
        return pickled(path)
    for magic, what, remedy in _FOREIGN:
        if start.lstrip().startswith(magic):
            return ModelFileError(f"not weights but {what}", where=path, remedy=remedy or _KNOWN)
    return ModelFileError("not weights, or cut off" if start else "an empty file", where=path, remedy=_KNOWN)


def is_pickle(start: bytes) -> bool:
    """Whether a file that starts so is a bare pickle, as torch.save wrote before it wrote zip archives."""
    return start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")


def pickled(path: Path) -> ModelFileError:
    """The error for a pickle in a place where none is opened."""
    remedy = f"convert it first: patchform weights convert {system.quoted(str(path))}"
    return ModelFileError("a pickle, which can hold code, is not opened here", where=path, remedy=remedy)


def _folder(folder: Path) -> Source:
    if os.path.exists(folder / DESCRIPTION):
        description = read_description(folder)
        tensors, notes = files.read_safetensors(folder / WEIGHTS)
        classes, made_of = tuple(description["classes"]), description["architecture"]
        family = str(made_of.get("backbone", "")).partition("/")[0]
        return Source(tensors, classes, notes, own=True, head=made_of["head"], family=family)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror})", where=folder) from error
    shard = re.compile(r".*-\d+-of-\d+\.safetensors")
    candidates = [name for name in names if name.endswith((INDEX, ".safetensors")) and not shard.fullmatch(name)]
    if len(candidates) == 1:
        return _file(folder / candidates[0])
    if candidates:
        raise ModelFileError(f"several weights: {shorten(candidates)!a}", where=folder, remedy="name one of the files")
    if any(map(shard.fullmatch, names)):
        raise ModelFileError(f"shards without their index (*{INDEX})", where=folder, remedy="fetch the index too")
    if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
        raise pickled(folder / pickles[0])
    if os.path.isdir(folder / CHECKPOINTS) or os.path.isdir(folder / BEST):
        best = folder / BEST
        remedy = f"name its best model: {system.quoted(str(best))}" if best.is_dir() else "resume it to go on"
        raise ModelFileError("a run that has not ended", where=folder, remedy=remedy)
    raise ModelFileError(f"neither {DESCRIPTION} nor safetensors", where=folder, remedy=_KNOWN)


def read_description(folder: Path) -> dict[str, Any]:
    """What `model.json` says of the model in a folder, once each bit of the folder is what its manifest says.

    The format is one that is known, `classes` are 1..MOST_CLASSES names (or none, without labels) and `architecture`
    has a `head`; the rest is as it was found.

    Raises:
        ModelFileError: a file is missing or damaged, the format is newer, or one of these is not so.
    """
    if faults := files.verify(folder, (DESCRIPTION, WEIGHTS)):
        raise ModelFileError(f"not an intact model ({faults[0]})", where=folder)
    description = files.read_json(folder / DESCRIPTION)
    check_description(description, folder / DESCRIPTION)
    return description


def check_description(description: Mapping[str, Any], source: Path) -> None:
    """Raise ModelFileError for a description of a model, from a file, that is not as `read_description` says."""
    version, classes = description.get("format"), description.get("classes")
    if type(version) is not int or version != FORMAT:
        remedy = "use the patchform that wrote it" if version == 1 else "use a newer patchform"
        raise ModelFileError(f"format {version!a} is not {FORMAT}", where=source, remedy=remedy)
    made_of = description.get("architecture")
    if not isinstance(made_of, dict) or not isinstance(made_of.get("head"), str):
        raise ModelFileError("the architecture has no head", where=source)
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not isinstance(classes, list) or not named or len(classes) > MOST_CLASSES:
        raise ModelFileError(f"classes are not 1..{MOST_CLASSES} names", where=source)


# ----------------------------------------------------------------------------------------------------------- shards


def _shards(index: Path) -> Source:
    """Tensors of the files beside an index, which says for each in which file it is."""
    content = files.read_json(index)
    shard_of, notes = content.get("weight_map"), content.get("metadata") or {}
    if not isinstance(shard_of, dict) or not all(isinstance(name, str) for name in shard_of.values()):
        raise ModelFileError("no index of shards: weight_map is missing", where=index, remedy=_KNOWN)
    if not isinstance(notes, dict):
        raise ModelFileError("metadata of the index is not an object", where=index)
    _check_names(shard_of, index)
    names: dict[str, set[str]] = {}  # of tensors, by shard
    for name, shard in shard_of.items():
        names.setdefault(shard, set()).add(name)
    for shard in names:  # all of them before the first is read
        _check_shard(shard, index)
    tensors: dict[str, Tensor] = {}
    for shard, due in names.items():
        loaded = files.read_tensors(index.parent / shard)
        _check_names(loaded, index.parent / shard)
        if bad := sorted(due ^ set(loaded)):
            what = f"{len(bad)} tensors are in another shard than the index says, or in none: {shorten(bad)}"
            raise ModelFileError(what, where=index.parent / shard, remedy="fetch shards and index of one version")
        tensors |= loaded
    size = sum(tensor.nbytes for tensor in tensors.values())
    if notes.get("total_size", size) != size:
        raise ModelFileError(f"{size} bytes of tensors are not the {notes['total_size']!a} of total_size", where=index)
    texts = {name: note if isinstance(note, str) else json.dumps(note) for name, note in notes.items()}
    return Source({name: tensors[name] for name in shard_of}, metadata=texts)


def _check_shard(shard: str, index: Path) -> None:
    """A shard lies beside its index, in truth too, and is safetensors."""
    path = index.parent / shard
    if shard in ("", ".", "..") or not shard.isprintable() or {"/", "\\"} & set(shard):
        raise ModelFileError(f"the index names {shard!a}, which is not a file beside it", where=index)
    start = files.read_bytes(path, files.LARGEST_TENSORS, start=512)
    if path.resolve().parent != index.parent.resolve():
        what = f"the shard {shard} is a link that leads out of the folder"
        raise ModelFileError(what, where=index, remedy="copy the folder with what its links lead to (cp -rL)")
    if not _is_safetensors(start):
        raise _refused(path, start)


# --------------------------------------------------------------------------------------------------------- archives

_ZIP_FAULTS = (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, OverflowError)


def most_unpacked(size: int) -> int:
    """Bytes that a file of some size may unpack to. Weights hardly shrink; a few zeros may stand for gigabytes."""
    return 20 * size + (64 << 20)


@contextmanager
def archive(path: Path) -> Iterator[tuple[zipfile.ZipFile, list[zipfile.ZipInfo]]]:
    """Open a zip archive and its entries: each name once, none that leads elsewhere, of sizes that are not absurd.

    Raises:
        ModelFileError: it is not so, or it turns out to be damaged while it is read.
    """
    try:
        with zipfile.ZipFile(path) as opened, open(path, "rb") as file:
            entries = opened.infolist()
            file.seek(-22, os.SEEK_END)  # the end record, where no comment follows
            count = int.from_bytes(file.read(22)[10:12], "little")
            if opened.comment or count not in (len(entries), 0xFFFF):  # zipfile does not notice one that is lost
                raise ModelFileError(f"a damaged archive: {len(entries)} entries, and it says {count}", where=path)
            names = [entry.filename for entry in entries]
            if len(names) > MOST_ENTRIES:
                raise ModelFileError(f"{len(names)} entries are more than {MOST_ENTRIES}", where=path)
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                raise ModelFileError(f"an archive in which names occur twice: {shorten(twice)!a}", where=path)
            if bad := [name for name in names if name.startswith("/") or ".." in re.split(r"[/\\]", name)]:
                raise ModelFileError(f"an archive with names that lead elsewhere: {shorten(bad)!a}", where=path)
            if any(entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for entry in entries):
                raise ModelFileError("an archive with a compression that no writer of weights uses", where=path)
            size, most = sum(entry.file_size for entry in entries), most_unpacked(path.stat().st_size)
            if size > most:
                raise ModelFileError(f"it would unpack to {size} bytes; up to {most} are believed", where=path)
            yield opened, entries
    except _ZIP_FAULTS as error:
        raise ModelFileError(f"a damaged archive ({files.one_line(str(error))})", where=path) from error


def _arrays(path: Path) -> dict[str, Tensor]:
    """The arrays of an .npz archive by their names, which lose the ending ".npy" and keep "/"."""
    with archive(path) as (opened, entries):
        names = [entry.filename for entry in entries]
        if any(name.endswith(".pkl") for name in names):
            raise pickled(path)
        if bad := [name for name in names if not name.endswith(".npy")]:
            raise ModelFileError(f"an archive of other things than arrays: {shorten(bad)!a}", where=path, remedy=_KNOWN)
        tensors = {}
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            with opened.open(entry) as file:
                data = file.read(entry.file_size)  # with no size given, an entry that lies of it unpacks to 2 GiB
            try:
                tensors[name] = _tensor(data)
            except (ValueError, TypeError, OverflowError, EOFError) as error:
                what = f"{name!a} is no array of numbers ({files.one_line(str(error))})"
                raise ModelFileError(what, where=path) from error
        return tensors


def _tensor(data: bytes) -> Tensor:
    """The array in the bytes of an .npy file. Its size is checked before there is room for it."""
    file = io.BytesIO(data)
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"version {version} of the format is not known")
    shape, _, kind = readers[version](file)
    if kind.hasobject:
        raise ValueError("objects, which may hold code")
    if math.prod(shape) * kind.itemsize != len(data) - file.tell():
        raise ValueError(f"{len(data) - file.tell()} bytes do not hold {shape} numbers of {kind}")
    file.seek(0)
    array = npy.read_array(file, allow_pickle=False)
    array = array.astype(array.dtype.newbyteorder("="), order="C", copy=False)
    if kind.kind == "V" and kind.itemsize == 2 and kind.fields is None:  # how numpy stores the bfloat16 of JAX
        return torch.from_numpy(array.view(numpy.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
