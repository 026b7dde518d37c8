"""Pictures in tar shards, read where they lie: nothing is ever unpacked.

A member is an ordinary path that leads into its shard: `photos/000.tar/a/1.jpg`. The operating system answers that a
part on the way is no folder, and only then is anything here asked: other files pay nothing. What a process knows of a
shard is where its members lie, kept until the shard changes; no file stays open, so workers need nothing but paths.

Shards are of the formats ustar, GNU and pax (POSIX.1-2008, pax, "ustar Interchange Format"), whose headers `tarfile`
reads. Refused are compressed ones, as they have no random access, and those that do not end with a block of zeros.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from patchform.data import python_sets
from patchform.data.listing import SUFFIXES, VIDEO_SUFFIXES, is_hidden, walk
from patchform.errors import DataError

ENDING = ".tar"
COMPRESSED = (".tgz", ".tbz2", ".txz", ".tzst", *(ENDING + kind for kind in (".gz", ".bz2", ".xz", ".zst", ".lz4")))
KEPT = 4096
"""Shards whose members are remembered: about 90 bytes a member, more where names are long."""
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
"""What gzip, bzip2, xz, zstd and lz4 begin with."""
_LONGEST_HEADER = 1 << 20
"""Bytes that are read for a member before its content: long names, and what pax adds."""
_AFTER_END = 1 << 16
"""Bytes after the end mark that must be zeros too."""


class Index(NamedTuple):
    """Where the regular files of a shard lie."""

    names: tuple[str, ...]
    """Relative, with single slashes; sorted by character."""
    offsets: Sequence[int]
    """Of each name, the first byte of its content."""
    sizes: Sequence[int]
    links: tuple[str, ...]
    """Names of hard and symbolic links, which are not followed."""

    def extent(self, name: str) -> tuple[int, int] | None:
        """Offset and size of a member, if there is one of this name."""
        row = bisect_left(self.names, name)
        there = row < len(self.names) and self.names[row] == name
        return (self.offsets[row], self.sizes[row]) if there else None


class Status(NamedTuple):
    """What tells a file from what it was before; of a member, its own size and offset and the rest of its shard."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    mode: int
    offset: int = 0


def is_shard(name: str) -> bool:
    """Whether a file is a tar archive by its name, compressed ones included."""
    return name.lower().endswith((ENDING, *COMPRESSED))


def hold_data(path: Path) -> bool:
    """Whether `path` is a shard, or a folder with shards anywhere below and neither pictures nor videos beside them."""
    if not path.is_dir():
        return path.is_file() and is_shard(path.name)
    any_shard = False
    for file in walk(path):
        if file.suffix.lower() in (*SUFFIXES, *VIDEO_SUFFIXES):
            return False
        any_shard = any_shard or is_shard(file.name)
    return any_shard


def index(shard: Path) -> Index:
    """Where everything in a shard lies.

    Raises:
        DataError: no file, not a tar archive, compressed, damaged, cut short, or more behind its end; a member that is
            sparse, occurs twice or has a name that leads out of the shard.
    """
    with _open(shard) as file:
        return _index(os.fspath(shard), _state(file))


def pictures(table: Index) -> list[str]:
    """Names that are taken for pictures, in the order in which `listing.walk` would find the files."""
    names = (name for name in table.names if name.lower().endswith(SUFFIXES))
    return sorted((name for name in names if not hidden(name)), key=lambda name: name.split("/"))


def hidden(name: str) -> bool:
    """Whether a member, or a folder that it is in, belongs to a system or to a tool."""
    return any(map(is_hidden, name.split("/")))


def contents(shard: Path, names: Sequence[str], most: int) -> list[bytes]:
    """The bytes of members. Raises DataError, also for one that is not there or has more than `most` bytes."""
    with _open(shard) as file:
        table, data = _index(os.fspath(shard), _state(file)), []
        for name in names:
            offset, size = _extent(table, shard, name)
            if size > most:
                raise DataError(f"{size} bytes, more than the {most} that are read", where=shard / name)
            file.seek(offset)
            data.append(file.read(size))
            if len(data[-1]) < size:
                raise DataError("the shard was cut while it was read", where=shard)
        return data


def read(path: Path, most: int) -> bytes:
    """The bytes of one member, by its path. Raises as `contents`, and DataError for a path that leads into no shard."""
    shard, name = _member(path)
    return contents(shard, [name], most)[0]


def exists(path: Path) -> bool:
    """Whether there is such a file or folder, or a shard that the path leads into, which is not opened."""
    try:
        path.lstat()
    except NotADirectoryError:
        return _split(path) is not None
    except OSError:
        return python_sets.is_held(path)
    return True


def status(path: Path) -> Status:
    """Of a file, or of a member. Raises OSError, and of what leads into a file DataError."""
    if python_sets.is_held(path):
        size, content = python_sets.identity(path)
        return Status(size, content, 0, 0, 0)
    try:
        info = path.stat()
        offset, size = 0, info.st_size
    except NotADirectoryError:
        shard, name = _member(path)
        info = shard.stat()
        offset, size = _extent(index(shard), shard, name)
    return Status(size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino, info.st_mode, offset)


def open_file(path: Path, most: int) -> BinaryIO:
    """A file, or a member, to read bytes from. Raises OSError, and of what leads into a file as `read`."""
    if python_sets.is_held(path):
        return io.BytesIO(python_sets.read(path))
    try:
        return path.open("rb")
    except NotADirectoryError:
        return io.BytesIO(read(path, most))


# ----------------------------------------------------------------------------------------------------------- the path


def _member(path: Path) -> tuple[Path, str]:
    """The shard that a path leads into, and the name in it. Raises DataError."""
    parts = _split(path)
    if parts is None:
        raise DataError("cannot be read: a part of the path is a file, and no tar shard", where=path)
    return parts


def _split(path: Path) -> tuple[Path, str] | None:
    text = os.fspath(path)  # pathlib would take longer than the reading
    end = len(text)
    while (end := text.rfind(os.sep, 0, end)) > 0:
        if is_shard(text[:end]) and os.path.isfile(text[:end]):
            return Path(text[:end]), text[end + 1 :].replace(os.sep, "/")
    return None


def _extent(table: Index, shard: Path, name: str) -> tuple[int, int]:
    """Offset and size. Raises DataError."""
    extent = table.extent(name)
    if extent is None:
        what = "a link, and links in shards are not followed" if name in table.links else "no such member"
        raise DataError(what, where=shard / name)
    return extent


@contextmanager
def _open(shard: Path) -> Iterator[BinaryIO]:
    """A shard that nobody has to wait for. Raises DataError instead of OSError."""
    try:
        if not stat.S_ISREG(os.stat(shard).st_mode):
            raise DataError("not a regular file", where=shard)
        with shard.open("rb") as file:
            yield file
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=shard) from None


def _state(file: BinaryIO) -> tuple[int, ...]:
    """What changes when a file does: its size, its times and which one it is."""
    info = os.fstat(file.fileno())
    return info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino


# ----------------------------------------------------------------------------------------------------------- headers


@lru_cache(KEPT)
def _index(path: str, state: tuple[int, ...]) -> Index:
    shard, size, extents, links = Path(path), state[0], dict[str, tuple[int, int]](), []
    with _open(shard) as file:
        if _state(file) != state:
            raise DataError("the shard changes while it is read", where=shard)
        for name, member in _members(file, size, shard):
            if member.islnk() or member.issym():
                links.append(name)
                continue
            if member.issparse():
                raise DataError(f'a sparse member "{name}"', where=shard, remedy="write the shard without --sparse")
            inside = _inside(name, shard)
            if inside in extents:
                raise DataError(f'two members named "{inside}"', where=shard, remedy="write the shard anew")
            extents[inside] = (member.offset_data, member.size)
    names = tuple(sorted(extents))
    offsets, sizes = (array("q", (extents[name][part] for name in names)) for part in (0, 1))
    return Index(names, offsets, sizes, tuple(links))


def _inside(name: str, shard: Path) -> str:
    """A member's name as a path below the shard spells it. Raises DataError for one that is none."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if not parts or name.startswith("/") or ".." in parts or "\0" in name:
        what = f"a member named {name[:200]!r}, which is no path inside the shard"
        raise DataError(what, where=shard, remedy="write the shard with relative names")
    return "/".join(parts)


def _members(file: BinaryIO, size: int, shard: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Regular files and links in their order. Raises DataError, also when the shard does not end as it must."""
    if file.read(6).startswith(_MAGIC):
        remedy = "unpack the compression and keep the .tar"
        raise DataError("a compressed tar has no random access", where=shard, remedy=remedy)
    headers, end = _Headers(file, size), -1
    headers.seek(0)
    try:
        archive = _Archive(fileobj=cast("BinaryIO", headers), encoding="utf-8", errors="surrogateescape")
        while (member := archive.next()) is not None:
            archive.members.clear()  # all that were seen
            headers.left = _LONGEST_HEADER
            if archive.offset <= end:
                raise ValueError("it leads back")
            end = archive.offset
            if member.isreg() and not member.issparse() and not 0 <= member.size <= end - member.offset_data:
                raise ValueError(f"a size of {member.size}")
            if member.isreg() or member.islnk() or member.issym():
                yield member.name, member
        _check_end(file, archive.offset, size)
    except (DataError, OSError):
        raise
    except Exception as error:  # tarfile raises a dozen kinds on hostile bytes; all mean the same to the user
        at_end = isinstance(error, tarfile.TarError) and end >= 0 and file.tell() >= size
        if at_end or isinstance(error, EOFError):
            what = f"the shard is cut short: it ends at byte {size}"
        else:
            position = (
                "not a tar archive, or damaged from its start" if end < 0 else f"the shard is damaged at byte {end}"
            )
            what = f"{position} ({str(error)[:120] or type(error).__name__})"
        raise DataError(what, where=shard, remedy="write or fetch the shard anew") from None


def _check_end(file: BinaryIO, end: int, size: int) -> None:
    """Whether a shard ends where `tarfile` says, which is content with anything. Raises ValueError and EOFError."""
    file.seek(end)
    mark, rest = file.read(tarfile.BLOCKSIZE), file.read(_AFTER_END)
    if len(mark) < tarfile.BLOCKSIZE:
        raise EOFError
    if any(mark):
        if _is_left_alone(mark, size - end):
            raise EOFError
        raise ValueError("no header")
    if any(rest):
        raise ValueError("more follows its end: were tars joined?")


def _is_left_alone(header: bytes, left: int) -> bool:
    """Whether a header is whole and what belongs to it is not there, which some versions of `tarfile` pass over."""
    try:
        content = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").size
    except tarfile.HeaderError:
        return False
    return left < tarfile.BLOCKSIZE * (2 + -(-content // tarfile.BLOCKSIZE))


class _Archive(tarfile.TarFile):
    members: list[tarfile.TarInfo]
    """What was read so far."""


class _Headers:
    """The file of a shard as `tarfile` sees it: no position outside, and no more of it at once than headers may need.

    Without this a hostile header could have gigabytes read, or allocated, or the same ones read for ever.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.left = file, size, _LONGEST_HEADER

    def tell(self) -> int:
        return self.file.tell()

    def seek(self, position: int) -> int:
        if position < 0:
            raise ValueError("it leads out of the shard")
        if position > self.size:
            raise EOFError
        return self.file.seek(position)

    def read(self, count: int) -> bytes:
        self.left -= count
        if count < 0 or self.left < 0:
            raise ValueError("its header is too long")
        return self.file.read(count)
