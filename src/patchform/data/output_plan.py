"""What a prediction writes where: decided before the first picture is looked at."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from patchform.data.ids import choose_ids
from patchform.data.inputs import Found, Source
from patchform.data.listing import quoted
from patchform.data.outputs import OutputFolder, distinct
from patchform.data.results import Writer
from patchform.data.writing import check_target
from patchform.errors import UsageError, unheard


@dataclass(frozen=True)
class OutputOptions:
    """What `write` leaves in its folder, and how; it takes each field as a keyword."""

    overwrite: bool = False
    """Take away what an earlier prediction left there, and replace files of the same names."""
    format: str | None = None
    """In another tool's format too, one of `Task.writers`: "coco" (results.json), "yolo" (labels/)."""
    ids: str | Path | None = None
    """For "coco": an annotation file whose ids of pictures and classes the results have. None: the one that lies beside
    the pictures, or in annotations/ there; without one ids are made from names."""
    say: Callable[[str], None] = unheard
    """Called with what was passed over or chosen, a sentence each."""


class About(NamedTuple):
    """Of the model that predicts."""

    task: str
    writers: Mapping[str, type[Writer]]
    """`Task.writers`."""
    classes: Sequence[str]
    ids: Sequence[int | str] | None
    """`Model.ids`."""


class Plan(NamedTuple):
    """What goes where."""

    names: Sequence[str]
    """Of each source in the folder, with forward slashes, without endings."""
    folder: OutputFolder | None
    writer: Writer | None

    @contextmanager
    def begin(self, moving: Sequence[bool], say: Callable[[str], None]) -> Iterator[TextIO]:
        """The open file of answers; nothing is written over, or else what an earlier prediction left is taken away.

        What the writer has to finish is written at the end.

        Args:
            moving: of which sources a film is written.
            say: called with what stays.

        Raises:
            FolderError: a file to be written exists, or a folder where one is to be.
            UsageError: two pictures come to one file of another tool's format.
        """
        assert self.folder is not None
        files = [self.folder.file(name, ".png") for name in self.names]
        files += [self.folder.file(name, ".mp4") for name, film in zip(self.names, moving) if film]
        files += self.writer.files(self.names) if self.writer else []
        self.folder.refuse(files)
        for note in self.folder.clear(files):
            say(note)
        with self.folder, self.folder.answers() as answers:
            yield answers
            if self.writer is not None:
                self.writer.finish()


def plan_output(
    about: About, sources: Sequence[Source], folders: Sequence[Path], out: Path | None, settings: OutputOptions
) -> Plan:
    """Names for all that is written, and what writes it; nothing is written yet.

    Args:
        about: the model.
        sources: what is looked at.
        folders: those that were given.
        out: where to; None: nowhere.
        settings: how.

    Raises:
        DataError: a file of ids that is none, or has none of the pictures.
        UsageError: the sources lie in `out`; a format without `out`, or one that the task does not have.
        FolderError: `out` lies in a folder of folders of pictures.
    """
    paths = [source.content if isinstance(source.content, Path) else None for source in sources]
    names = distinct([source.place or source.name for source in sources], paths, (".png", ".mp4"))
    kind = None if settings.format is None else _kind(about, settings.format, out)
    if settings.ids is not None and (kind is None or not kind.takes_ids):
        raise UsageError("ids of an annotation file without results that have some", remedy="take the format coco")
    if out is None:
        return Plan(names, None, None)
    _refuse(out, folders, [path for path in paths if path is not None])
    folder = OutputFolder(out, overwrite=settings.overwrite)
    if kind is None:
        return Plan(names, folder, None)
    ids, known = about.ids, None
    if kind.takes_ids:
        places = dict.fromkeys([*folders, *(path.parent for path in paths if path is not None)])
        ids, known = _ids(about, list(places), names, paths, settings)
    return Plan(names, folder, kind(out, about.classes, ids, pictures=known, save=folder.save))


def each_once(found: Found, say: Callable[[str], None]) -> list[Source]:
    """The sources without files that are given a second time; says so, and what was passed over."""
    for note in found.notes():
        say(note)
    sources = found.sources
    once: dict[Any, Source] = {}
    for number, source in enumerate(sources):
        content = source.content
        once.setdefault(os.path.abspath(content) if isinstance(content, Path) else number, source)
    if twice := len(sources) - len(once):
        say(f"{twice} file{'s' * (twice > 1)} given more than once, looked at once")
    return list(once.values())


def _kind(about: About, format: str, out: Path | None) -> type[Writer]:
    """What writes predictions in a format of the task. Raises UsageError."""
    if format not in about.writers:
        remedy = f"it has {', '.join(about.writers)}" if about.writers else "leave it out"
        raise UsageError(f"nothing to write in the format {format} for {about.task}", remedy=remedy)
    if out is None:
        raise UsageError(f"nothing to write in the format {format}", remedy="it needs a folder")
    return about.writers[format]


def _refuse(out: Path, folders: Sequence[Path], paths: Sequence[Path]) -> None:
    """Raise for a folder that holds the sources, or would be taken for one of theirs by whoever reads them next."""
    real = os.path.realpath(out)
    if any(os.path.realpath(parent) == real for parent in {path.parent for path in paths}):
        raise UsageError("the folder for the answers holds the sources", where=out, remedy="name another one")
    for folder in folders:
        if any(path.parent != folder and path.is_relative_to(folder) for path in paths):
            check_target(out, folder)


def _ids(
    about: About,
    places: Sequence[Path],
    names: Sequence[str],
    paths: Sequence[Path | None],
    settings: OutputOptions,
) -> tuple[Sequence[int | str] | None, dict[str, int | str] | None]:
    """Ids of the classes, and of the pictures where a file has some."""
    ids, notes = choose_ids(None if settings.ids is None else Path(settings.ids), places, names, paths)
    for note in notes:
        settings.say(note)
    if ids is None:
        return about.ids, None
    pictures = ids.of_pictures(names, paths)
    classes, lacking = ids.of_classes(about.classes)
    settings.say(f"ids of pictures and classes are those of {ids.file}")
    if absent := [name for name in names if name not in pictures]:
        settings.say(f"{len(absent)} of {len(names)} pictures are not in it, so not in the results: {quoted(absent)}")
    if lacking:
        settings.say(f"classes that it does not have get new ids: {quoted(lacking)}")
    return classes, pictures
