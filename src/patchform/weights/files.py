"""Patchform's own files: safetensors and JSON with a manifest of SHA-256 sums. Nothing here can hold code.

A folder is complete or it is not there: it is written beside its place, flushed to the disk, given its manifest last
and only then moved. Neither safetensors nor PyTorch notices a flipped bit in the numbers; the manifest does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from patchform import signals
from patchform.errors import ModelFileError
from patchform.resources import refused, writing
from patchform.system import flush_folder

MANIFEST = "manifest.json"
TEMPORARY = ".tmp-"
"""Prefix of what is not finished: whoever owns the folder may delete it."""
LARGEST_TENSORS = 1 << 37
"""Bytes of a tensor file that is still opened: 128 GiB."""
LARGEST_JSON = 1 << 24
"""Bytes of a JSON file or of a tensor file's header that are still parsed: 16 MiB."""


# ---------------------------------------------------------------------------------------------------------- tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors of any device as safetensors and flush them to the disk.

    Tensors that share memory (tied weights) are written once for each name.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    seen: set[int] = set()
    ready = {}
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        where = plain.untyped_storage().data_ptr()
        ready[name] = plain.clone() if where in seen else plain  # the format refuses shared memory
        seen.add(where)
    notes = dict(metadata or {}) if ready or metadata else None  # of none at all it writes a broken header
    write_bytes(path, safetensors.torch.save(ready, notes))


def replace_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors that is there whole or not at all. Arguments and errors as of `write_tensors`."""
    with writing(path), replacing(path) as temporary:
        write_tensors(temporary, tensors, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named CPU tensors of a safetensors file.

    Raises:
        ModelFileError: missing, too large, not safetensors, or damaged in its structure.
    """
    return read_safetensors(path)[0]


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Named CPU tensors of a safetensors file, and the notes in its header.

    Raises:
        ModelFileError: missing, too large, not safetensors, or damaged in its structure.
    """
    data = read_bytes(path, LARGEST_TENSORS)
    header = _header(data, path)  # stricter than the library: a name may occur once
    try:
        return safetensors.torch.load(data), header.get("__metadata__") or {}
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError, TypeError, OverflowError) as error:
        raise ModelFileError(f"damaged safetensors ({one_line(str(error))})", where=path) from error


def count_tensors(path: Path) -> int:
    """How many tensors a safetensors file names; none is read. Raises ModelFileError as `read_safetensors`."""
    return len(_header(read_bytes(path, LARGEST_TENSORS, start=8 + LARGEST_JSON), path))


def _header(data: bytes, path: Path) -> dict[str, Any]:
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > LARGEST_JSON:
        raise ModelFileError("not a safetensors file", where=path, remedy="patchform reads no other format here")
    if length > len(data) - 8:
        raise ModelFileError(f"cut off: {len(data)} bytes do not hold a header of {length}", where=path)
    return _parse(data[8 : 8 + length], path)


# ------------------------------------------------------------------------------------------------------------- JSON


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON and flush them to the disk. NaN and infinity raise ValueError.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_bytes(path, text.encode(errors="backslashreplace"))  # of bytes that are no UTF-8: an escape of JSON's too


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ModelFileError: missing, too large, not an object, a key that occurs twice, NaN, or nested too deeply.
    """
    return _parse(read_bytes(path, LARGEST_JSON), path)


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(values := dict(pairs)) < len(pairs):
            raise ValueError("a key occurs twice")
        return values

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON number")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"not valid JSON ({error})", where=path) from error
    if not isinstance(value, dict):
        raise ModelFileError("not a JSON object", where=path)
    return value


# ------------------------------------------------------------------------------------------------------------ bytes


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file and flush it to the disk.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    with writing(path, len(data)), open(path, "wb") as file:
        file.write(data[: len(data) // 2])
        file.flush()
        failpoint("half-written")
        file.write(data[len(data) // 2 :])
        file.flush()
        failpoint("before-fsync")
        os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file beside its place, which it takes once it is whole."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Write a text file so that a reader, or a kill, meets the old text or the new one.

    Raises:
        ResourceError: the disk is full or the place is not writable.
    """
    data = text.encode(errors="backslashreplace")
    with writing(path, len(data)), replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())  # else a power cut may leave the new name and no text


def read_bytes(path: Path, largest: int, *, start: int | None = None) -> bytes:
    """The bytes of a regular file, or so many from its start.

    Raises:
        ModelFileError: missing, a folder, pipe or device (nothing waits for one), too large, or not readable.
    """
    try:
        about = path.stat()
        if not stat.S_ISREG(about.st_mode):
            raise ModelFileError("not a regular file", where=path)
        if about.st_size > largest:
            raise ModelFileError(f"{about.st_size} bytes are more than the {largest} that are read", where=path)
        with open(path, "rb") as file:
            return file.read(start)
    except FileNotFoundError as error:
        raise ModelFileError("no such file", where=path) from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"cannot be read ({getattr(error, 'strerror', error)})", where=path) from error


def one_line(message: str) -> str:
    """A library's message as one line that is safe to show: it may quote the file."""
    line = (message.strip() or "no reason given").splitlines()[0]
    return "".join(filter(str.isprintable, line))[:200].rstrip(" .")


# ---------------------------------------------------------------------------------------------------------- folders


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears complete, with a manifest, or not at all.

    Yields a temporary folder beside `path`, to be filled with files. At the end they are flushed, the manifest is
    written and the folder is moved to `path`. If `path` exists, the files are moved into it one by one, the manifest
    last: until then `verify` calls it damaged. What else lies there is left alone.

    Raises:
        ResourceError: the disk is full or the place is not writable; nothing is left behind.
    """
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{path.name}"
    try:
        temporary.mkdir()
        failpoint("temporary-made")
        yield temporary
        names = sorted(file.name for file in temporary.iterdir())
        write_json(temporary / MANIFEST, {"files": {name: _sum(temporary / name) for name in names}})
        flush_folder(temporary)
        failpoint("before-rename")
        if path.exists():
            for name in (*names, MANIFEST):
                os.replace(temporary / name, path / name)
            flush_folder(path)
            temporary.rmdir()
        else:
            os.rename(temporary, path)
        failpoint("after-rename")
        flush_folder(path.parent)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise refused(error, path) from error
        raise


def verify(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is wrong with a folder that `atomic_folder` wrote, "file: reason" each; empty when every bit is right.

    Args:
        folder: the folder.
        names: files to look at, default all; one that the manifest does not have is a fault.
    """
    try:
        files = read_json(folder / MANIFEST).get("files")
        if not isinstance(files, dict):
            return [f"{MANIFEST}: no list of files"]
        faults = []
        for name in files if names is None else names:
            if name not in files or Path(name).name != name:
                faults.append(f"{name}: not a file of the manifest")
            elif not (folder / name).is_file():
                faults.append(f"{name}: missing")
            elif not _is(folder / name, files[name]):
                size = (folder / name).stat().st_size
                faults.append(f"{name}: its {size} bytes do not have the manifest's size and SHA-256")
        return faults
    except (ModelFileError, OSError) as error:
        return [f"{MANIFEST}: {error}"]


def clear_temporaries(folder: Path) -> None:
    """Delete what a killed process left unfinished in a folder. Only its owner may call this."""
    for left in folder.glob(f"{TEMPORARY}*"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)


def _is(path: Path, told: Any) -> bool:
    """Whether a file is as a manifest says; of a file of another size nothing is read."""
    return isinstance(told, dict) and told.get("bytes") == path.stat().st_size and _sum(path) == told


def _sum(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ------------------------------------------------------------------------------------------------------ crash tests

_passes: Counter[str] = Counter()


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors, in hexadecimal: of their names in order, types, shapes and values, wherever they are kept."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def failpoint(name: str) -> None:
    """Die here as in a power cut, at the n-th pass, if the environment says PATCHFORM_FAILPOINT=name:n.

    The crash tests use it to kill a run inside a write; without the variable it does nothing.
    """
    armed, _, number = os.environ.get("PATCHFORM_FAILPOINT", "").partition(":")
    if armed == name:
        _passes[name] += 1
        if _passes[name] == int(number or 1):
            signals.kill_self()
