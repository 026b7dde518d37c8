"""What is meant by the words of someone who wants predictions: files, folders, patterns, or pixels in memory."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from patchform.data import shards
from patchform.data.listed_names import nearest
from patchform.data.listing import SUFFIXES, VIDEO_SUFFIXES, natural, shortened, videos_among, walk
from patchform.errors import DataError

WRITTEN = "predictions.jsonl"
"""A folder that holds this file was written by a prediction; what is in it are not sources of a later one."""
FILMS = tuple(suffix for suffix in VIDEO_SUFFIXES if suffix not in SUFFIXES)
"""What a model of pictures looks at frame by frame. Of a GIF it sees the first one."""
LARGEST_BYTES = 200_000_000
"""Of a picture that is given as bytes or comes from standard input."""


class Source(NamedTuple):
    """One picture, or one video, to look at."""

    name: str
    """The path as it was given or found, "-" for standard input, "image-3" for the fourth of those in memory."""
    content: Any
    """A path, bytes, PIL image, array or tensor."""


def expand(sources: Any, *, videos: bool = False) -> list[Source]:
    """The pictures that are meant: folders, patterns and tar shards become their files, in natural order (2 before 10).

    In folders and patterns only names that end like a picture's or a film's count, hidden files and what a prediction
    wrote do not, and links that lead back to a folder above are not followed. A file that is named stays, whatever it
    is.

    Args:
        sources: a path, folder, pattern, "-" for standard input, something that holds pixels, or a list of such.
        videos: names of videos count instead, and folders of pictures, which are the frames of one.

    Raises:
        DataError: a folder, pattern or shard without a picture, or nothing that exists at all.
    """
    several = isinstance(sources, list | tuple | Iterator) and not isinstance(sources, Source)
    expanded: list[Source] = []
    for source in list(sources) if several else [sources]:
        if isinstance(source, Source):
            expanded.append(source)
        elif isinstance(source, str | Path):
            expanded += _named(str(source), videos)
        else:
            expanded.append(Source(f"{'video' if videos else 'image'}-{len(expanded)}", source))
    noun = "video" if videos else "picture"
    if not expanded:
        raise DataError(f"no {noun} was given")
    if not any(not isinstance(content, Path) or shards.exists(content) for _, content in expanded):
        name = expanded[0].name
        raise DataError("no such file or folder", where=shortened(name), remedy=nearest(Path(name)))
    return expanded


def is_film(source: Source) -> bool:
    """Whether it is a file of many pictures, by its name."""
    return isinstance(source.content, Path) and source.content.suffix.lower() in FILMS and not source.content.is_dir()


def _named(text: str, videos: bool) -> list[Source]:
    if text == "-" and not videos:
        return [Source("-", sys.stdin.buffer.read(LARGEST_BYTES + 1))]
    text = os.path.expanduser(text)
    if os.path.isdir(text):
        files = list(walk(Path(text)))
    elif text.lower().endswith(shards.ENDING) and os.path.isfile(text) and not videos:
        files = [Path(text) / name for name in shards.pictures(shards.index(Path(text)))]
    elif glob.has_magic(text) and not os.path.lexists(text):
        files = [Path(match) for match in glob.glob(text, recursive=True) if not os.path.isdir(match)]
    else:
        return [Source(text, Path(text))]
    written = {folder for folder in {file.parent for file in files} if (folder / WRITTEN).exists()}
    files = [file for file in files if file.parent not in written]
    suffixes = VIDEO_SUFFIXES if videos else (*SUFFIXES, *FILMS)
    chosen = [file for file in files if file.suffix.lower() in suffixes]
    if videos:
        chosen = videos_among(Path(text), files) or [Path(text)] * (os.path.isdir(text) and _has_frames(text, files))
    if not chosen:
        what = "video" if videos else "picture"
        raise DataError(f"no {what}", where=text, remedy=f"known file names end in {', '.join(suffixes)}")
    return [Source(str(file), file) for file in sorted(chosen, key=natural)]


def _has_frames(folder: str, files: list[Path]) -> bool:
    return any(file.parent == Path(folder) and file.suffix.lower() in SUFFIXES for file in files)
