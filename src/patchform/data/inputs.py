"""What is meant by the words of someone who wants predictions: files, folders, patterns, or pixels in memory."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from patchform.data import shards
from patchform.data.listed_names import nearest
from patchform.data.listing import SUFFIXES, VIDEO_SUFFIXES, natural, relative_name, shortened, videos_among, walk
from patchform.data.outputs import WRITTEN, listed
from patchform.errors import DataError

FILMS = tuple(suffix for suffix in VIDEO_SUFFIXES if suffix not in SUFFIXES)
"""What a model of pictures looks at frame by frame. Of a GIF it sees the first one."""
LARGEST_BYTES = 200_000_000
"""Of a picture that is given as bytes or comes from standard input."""
_NAMED = 8
"""Kinds of files that are named among those passed over."""


class Source(NamedTuple):
    """One picture, or one video, to look at."""

    name: str
    """The path as it was given or found, "-" for standard input, "image-3" for the fourth of those in memory."""
    content: Any
    """A path, bytes, PIL image, array or tensor."""
    place: str = ""
    """The path below the folder that was given, or that a pattern begins with, with forward slashes; of a file that was
    named its name alone."""


class Found(NamedTuple):
    """What is meant by words, and what is not."""

    sources: list[Source]
    folders: tuple[Path, ...]
    """Those that were given."""
    passed: Counter[str]
    """Files of folders, patterns and shards that are neither pictures nor films, by suffix."""
    written: int = 0
    """Files passed over because an earlier prediction wrote them."""
    deeper: int = 0
    """Folders that a pattern means, and nothing in them."""

    def notes(self) -> tuple[str, ...]:
        """What was passed over, a sentence each."""
        notes = [] if not self.passed else [_counted(self.passed)]
        if self.written:
            notes.append(f"{_files(self.written)} of an earlier prediction passed over")
        if self.deeper:
            folders = f"{self.deeper} folder{'s' * (self.deeper != 1)}"
            notes.append(f"{folders} passed over, as the pattern means nothing in them (** is any number of folders)")
        return tuple(notes)


def expand(sources: Any, *, videos: bool = False) -> list[Source]:
    """The pictures that are meant. Arguments and errors as of `find`."""
    return find(sources, videos=videos).sources


def find(sources: Any, *, videos: bool = False) -> Found:
    """The pictures that are meant: folders, patterns and tar shards become their files, in natural order (2 before 10).

    In folders and patterns only names that end like a picture's or a film's count, hidden files and what a prediction
    wrote do not, and links that lead back to a folder above are not followed. A file that is named stays, whatever it
    is. A part of a pattern that is there as it stands, such as a folder "shots [new]", is no pattern.

    Args:
        sources: a path, folder, pattern, "-" for standard input, something that holds pixels, or a list of such.
        videos: names of videos count instead, and folders of pictures, which are the frames of one.

    Raises:
        DataError: a folder, pattern or shard without a picture, or nothing that exists at all.
    """
    several = isinstance(sources, list | tuple | Iterator) and not isinstance(sources, Source)
    parts: list[Found] = []
    number = 0
    for source in list(sources) if several else [sources]:
        if isinstance(source, Source):
            part = _alone(source)
        elif isinstance(source, str | Path):
            part = _named(str(source), videos)
        else:
            name = f"{'video' if videos else 'image'}-{number}"
            part = _alone(Source(name, source, name))
        parts.append(part)
        number += len(part.sources)
    expanded = [source for part in parts for source in part.sources]
    if not expanded:
        raise DataError(f"no {'video' if videos else 'picture'} was given")
    if not any(not isinstance(source.content, Path) or shards.exists(source.content) for source in expanded):
        name = expanded[0].name
        raise DataError("no such file or folder", where=shortened(name), remedy=nearest(Path(name)))
    passed: Counter[str] = Counter()
    for part in parts:
        passed.update(part.passed)
    folders = tuple(dict.fromkeys(folder for part in parts for folder in part.folders))
    written, deeper = (sum(getattr(part, name) for part in parts) for name in ("written", "deeper"))
    return Found(expanded, folders, passed, written, deeper)


def is_film(source: Source) -> bool:
    """Whether it is a file of many pictures, by its name."""
    return isinstance(source.content, Path) and source.content.suffix.lower() in FILMS and not source.content.is_dir()


def _alone(source: Source) -> Found:
    return Found([source], (), Counter())


def _named(text: str, videos: bool) -> Found:
    if text == "-" and not videos:
        return _alone(Source("-", sys.stdin.buffer.read(LARGEST_BYTES + 1), "stdin"))
    text = os.path.expanduser(text)
    path, deeper, folders = Path(text), 0, tuple[Path, ...]()
    if os.path.isdir(text):
        base, files, folders = path, list(walk(path)), (path,)
    elif text.lower().endswith(shards.ENDING) and os.path.isfile(text) and not videos:
        table = shards.index(path)
        base, files = path, [path / name for name in table.names if not shards.hidden(name)]
    elif glob.has_magic(text) and not os.path.lexists(text):
        base, matches = _matches(text)
        files = [match for match in matches if not match.is_dir()]
        above = {folder for file in files for folder in file.parents}
        deeper = len({match for match in matches if match.is_dir()} - above)
    else:
        return _alone(Source(text, path, path.name or text))
    kept = list(_without_written(files, base))
    suffixes = VIDEO_SUFFIXES if videos else SUFFIXES if base.is_file() else (*SUFFIXES, *FILMS)
    chosen = [file for file in kept if file.suffix.lower() in suffixes]
    if videos:
        chosen = videos_among(path, kept) or [path] * (os.path.isdir(text) and _has_frames(path, kept))
    taken = set(chosen)
    passed = Counter(file.suffix.lower() or "without a suffix" for file in kept if not _is_taken(file, taken))
    sources = [Source(str(file), file, _place(file, base)) for file in sorted(chosen, key=natural)]
    found = Found(sources, folders, passed, len(files) - len(kept), deeper)
    if not chosen:
        notes = f" ({'; '.join(found.notes())})" if found.notes() else ""
        what = f"no {'video' if videos else 'picture'}{notes}"
        raise DataError(what, where=text, remedy=f"known file names end in {', '.join(suffixes)}")
    return found


def _place(file: Path, base: Path) -> str:
    return relative_name(file, base) if file != base else base.name or "video"


def _is_taken(file: Path, taken: set[Path]) -> bool:
    """Whether it is among the sources, or a frame of one."""
    return file in taken or (file.parent in taken and file.suffix.lower() in SUFFIXES)


def _matches(pattern: str) -> tuple[Path, list[Path]]:
    """The folder that a pattern begins with, and what it means, part by part: what is there as it stands is no pattern.

    `**` means any number of folders.
    """
    parts = Path(pattern).parts
    first = next(n for n, part in enumerate(parts) if _is_pattern(os.path.join(*parts[:n], part), part))
    base = os.path.join("", *parts[:first])
    places = [base]
    for number, part in enumerate(parts[first:], first + 1):
        last = number == len(parts)
        places = list(dict.fromkeys(match for place in places for match in _step(place, part, last)))
    return Path(base), [Path(place) for place in places]


def _is_pattern(path: str, part: str) -> bool:
    return glob.has_magic(part) and not os.path.lexists(path)


def _step(place: str, part: str, last: bool) -> Iterable[str]:
    """What one part of a pattern means in a folder."""
    whole = os.path.join(place, part)
    if not _is_pattern(whole, part):
        return [whole] if os.path.lexists(whole) else []
    ending = "" if last or part != "**" else os.sep
    for meant in (part, part.replace("[", "[[]")):  # where brackets as a choice find nothing, they stand for themselves
        if matches := glob.glob(os.path.join(glob.escape(place), meant) + ending, recursive=True):
            return matches
    return []


def _without_written(files: Iterable[Path], base: Path) -> Iterator[Path]:
    """Those that no prediction wrote: that are on no list in their folder, or in one above up to `base`.

    A folder with answers and no list was written before there were lists: then all that lies in it is left out.
    """
    lists: dict[Path, set[Path] | None] = {}
    for file in files:
        folder = file.parent
        while True:
            if folder not in lists:
                lists[folder] = listed(folder)
            names = lists[folder]
            if (file in names) if names is not None else folder == file.parent and (folder / WRITTEN).exists():
                break
            if folder in (base, folder.parent):
                yield file
                break
            folder = folder.parent


def _has_frames(folder: Path, files: Iterable[Path]) -> bool:
    return any(file.parent == folder and file.suffix.lower() in SUFFIXES for file in files)


def _counted(passed: Counter[str]) -> str:
    """In words: 2 files passed over: 1 .heic, 1 .jfif."""
    kinds = [f"{number} {kind}" for kind, number in passed.most_common(_NAMED)]
    more = sum(number for _, number in passed.most_common()[_NAMED:])
    return f"{_files(passed.total())} passed over: {', '.join(kinds)}" + (f", {more} others" if more else "")


def _files(number: int) -> str:
    return f"{number} file{'s' * (number != 1)}"
