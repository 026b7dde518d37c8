"""The one door to a trained model: a run folder, or a file that was exported from one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from patchform import model as models
from patchform.errors import ModelFileError, UsageError, warned
from patchform.model import Model
from patchform.runtime import description as descriptions
from patchform.runtime.description import FileDescription
from patchform.runtime.file_model import FileModel
from patchform.runtime.onnx_notes import read_notes
from patchform.runtime.onnx_session import OnnxSession
from patchform.runtime.openvino_session import OpenVinoSession, read_model
from patchform.runtime.program_session import ProgramSession
from patchform.runtime.sessions import RuntimeOptions, Session
from patchform.tasks.base import find_task
from patchform.weights.stopped import find_model


class Kind(NamedTuple):
    """A kind of exported file."""

    describe: Callable[[Path], FileDescription]
    """What a file says of itself; it is not opened for that."""
    sessions: dict[str, Callable[[Path, RuntimeOptions], Session]]
    """By runtime, the usual one first."""


def _describe_onnx(path: Path) -> FileDescription:
    return descriptions.of_entries(read_notes(path), path)


def _describe_openvino(path: Path) -> FileDescription:
    return descriptions.of_openvino(read_model(path), path)


KINDS = {
    ".onnx": Kind(_describe_onnx, {"onnxruntime": OnnxSession, "openvino": OpenVinoSession}),
    ".xml": Kind(_describe_openvino, {"openvino": OpenVinoSession}),
    ".pt2": Kind(descriptions.of_program, {"torch": ProgramSession}),
}
"""By the end of a file's name."""
DEFAULT = RuntimeOptions()


def open_model(path: str | Path, options: RuntimeOptions = DEFAULT, *, say: Callable[[str], None] = warned) -> Model:
    """The model of a run folder or of an exported file, in evaluation mode on the CPU.

    Opening runs no code of an author, but of .pt2 files, which are refused unless `options.trust`.

    Args:
        path: a run folder, or an .onnx, .xml or .pt2 file that `patchform export` wrote.
        options: how a file is run; of a run folder nothing but the defaults.
        say: as of `patchform.model.load`.

    Raises:
        ModelFileError: missing, damaged, not patchform's, of a newer format; it contradicts itself.
        UsageError: a runtime that is not installed or does not run such files; options of files for a run folder.
    """
    path = Path(path)
    if not is_exported(path):
        if options != DEFAULT:
            remedy = "leave out runtime, provider and threads, or give an .onnx, .xml or .pt2 file"
            raise UsageError("a run folder is run by torch", where=path, remedy=remedy)
        return models.load(path, say=say)
    description, session = describe(path), open_session(path, options)
    for said, has in ((description.inputs, session.inputs), (description.outputs, session.outputs)):
        if sorted(said) != sorted(has):
            what = f"it has {', '.join(has)} where it says {', '.join(said)}"
            raise ModelFileError(what, where=path, remedy="export it again")
    return FileModel(session, description, path).eval()


def is_exported(path: str | Path) -> bool:
    """Whether a path is that of an exported file, by its name; it need not be there.

    Raises:
        ModelFileError: another file.
    """
    path = Path(path)
    if path.suffix.lower() in KINDS and not path.is_dir():
        return True
    if path.is_file():
        remedy = f"exported files end in {', '.join(KINDS)}"
        raise ModelFileError("neither a run folder nor an exported file", where=path, remedy=remedy)
    return False


def describe(path: str | Path) -> FileDescription:
    """What an exported file says of itself. Nothing is computed, and nothing of it run.

    Raises:
        ModelFileError: missing, damaged, not patchform's, of a newer format, or of a task that is not known.
        UsageError: of .xml files, OpenVINO is missing.
    """
    path = Path(path)
    if not path.exists():
        raise ModelFileError("no such file", where=path)
    description = KINDS[path.suffix.lower()].describe(path)
    try:
        find_task(description.task)
    except UsageError as error:
        raise ModelFileError(f"its task is not known: {error.what}", where=path, remedy=error.remedy) from None
    return description


def open_session(path: str | Path, options: RuntimeOptions = DEFAULT) -> Session:
    """A file in its runtime, whose inputs and outputs are those that it says.

    Raises:
        ModelFileError: as `open_model`.
        UsageError: likewise.
    """
    path = Path(path)
    sessions = KINDS[path.suffix.lower()].sessions
    runtime = next(iter(sessions)) if options.runtime == "auto" else options.runtime
    if runtime not in sessions:
        raise UsageError(f"{options.runtime} does not run {path.suffix} files", remedy=f"take {' or '.join(sessions)}")
    return sessions[runtime](path, options)


def task_name(path: str | Path) -> str:
    """The name of the task of a run folder or an exported file, without building anything.

    Raises:
        ModelFileError: no intact model.
    """
    if is_exported(path):
        return describe(path).task
    return str(find_model(Path(path)).description["architecture"].get("task"))
