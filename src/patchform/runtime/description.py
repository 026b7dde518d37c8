"""What an exported file says of itself: all that using it takes, as one text of JSON inside the file.

    ONNX            metadata_props, under `KEY`
    .pt2            an extra file called `EXTRA`
    OpenVINO .xml   rt_info, under `KEY`

It is written by `patchform.export` and read here, with nothing but the standard library.
"""

from __future__ import annotations

import dataclasses
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from patchform import schema
from patchform.descriptions import Architecture, Preprocessing
from patchform.errors import ModelFileError
from patchform.schema import Factor, Length, Natural, Options, Side

FILE_FORMAT = 1
"""Version of `FileDescription`; a reader refuses all others."""
KEY = "patchform"
EXTRA = "patchform.json"
LARGEST = 1 << 24
"""Characters that are still parsed: 16 MiB."""
Dtype: TypeAlias = Literal["float32", "float16", "int8"]


@dataclass(frozen=True, kw_only=True)
class FileDescription:
    """What a file was made from, what it takes and what it gives."""

    format: int
    """Version of this record."""
    patchform: Annotated[str, Length(most=100)]
    """Version of patchform that wrote the file."""
    task: str
    task_options: Options
    """Arguments of the task's constructor, such as the kind of labels."""
    architecture: Architecture
    """Names of the model's parts; nothing is built from them."""
    classes: Annotated[tuple[str, ...], Length(most=100_000)]
    """Names in the order of scores."""
    ids: Annotated[tuple[int | str, ...], Length(most=100_000)] | None
    """Of the classes in the data that they were learnt from; null without."""
    thresholds: Annotated[tuple[Factor, ...], Length(most=100_000)] | None
    """Scores from which an object counts, one a class; null: 0.5. The output `confident` was decided by them."""
    preprocessing: Preprocessing
    """With its statistics, which are applied inside the file. How pictures become its input is said by `resizes`."""
    resizes: bool
    """Whether it takes pictures of any size and resizes them inside. If not, they are to be resized as
    `preprocessing` says (`resize`, `size`, `crop_share`, `interpolation`, antialiased) before they go in."""
    inputs: Annotated[tuple[str, ...], Length(least=1, most=2)]
    """Names: `images`, uint8 0..255 (of 16 bits float32 0..1), (batch, channels, height, width), of clips
    (batch, frames, channels, height, width); and where outputs are in pixels of the picture `sizes`, (batch, 2) int64,
    its height and width before it was resized."""
    record: Annotated[str, Length(most=100)]
    """Name of the record in `patchform.outputs` that the first outputs are the fields of, in their order."""
    outputs: Annotated[tuple[str, ...], Length(least=1, most=100)]
    """Names: the fields of the record, then what follows from them. A .pt2 program gives a dict of them."""
    batch: Natural
    """Pictures that go in at once; 0: any number."""
    sizes: Annotated[tuple[tuple[Side, Side], ...], Length(most=1000)]
    """(height, width) of input that it takes, pixels; empty: any with sides of at least `least`."""
    least: Side
    """Shortest side that it takes, pixels."""
    dtype: Dtype
    """Of weights and arithmetic. Outputs are float32 in any case."""
    left_out: Annotated[tuple[str, ...], Length(most=10_000)] = ()
    """Of int8: the stages and layers that stay float32, each with its reason."""
    weights: Annotated[str, Length(most=64)] = ""
    """SHA-256 of the model's tensors (`weights.files.digest`), by which the run is known that it was made from."""

    def as_text(self) -> str:
        """JSON, the same for equal records."""
        return json.dumps(dataclasses.asdict(self), ensure_ascii=True, allow_nan=False)


def parse(text: str, where: object) -> FileDescription:
    """The record that a file's text holds.

    Args:
        text: JSON.
        where: the file, for messages.

    Raises:
        ModelFileError: it is no such record, of a newer format, or contradicts itself.
    """
    if len(text) > LARGEST:
        raise ModelFileError(f"a description of {len(text)} characters", where=where)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"its description is not valid JSON ({error})", where=where) from None
    version = values.get("format") if isinstance(values, dict) else None
    if version != FILE_FORMAT:
        remedy = "update patchform" if isinstance(version, int) and version > FILE_FORMAT else "export it again"
        what = f"a description of format {version}; this patchform reads {FILE_FORMAT}"
        raise ModelFileError(what, where=where, remedy=remedy)
    try:
        description = schema.build(FileDescription, values)
    except schema.Misfit as misfit:
        raise ModelFileError(f"its description: {misfit.what}", where=where, remedy=misfit.remedy) from None
    for name, numbers in (("thresholds", description.thresholds), ("ids", description.ids)):
        if numbers is not None and len(numbers) != len(description.classes):
            raise ModelFileError(f"{len(numbers)} {name} for {len(description.classes)} classes", where=where)
    return description


def of_entries(entries: Any, where: object) -> FileDescription:
    """Of a file of ONNX: `session.get_modelmeta().custom_metadata_map`, or metadata_props as a mapping.

    Raises:
        ModelFileError: patchform did not write it; and as `parse`.
    """
    text = entries.get(KEY)
    if not isinstance(text, str):
        raise _foreign(where)
    return parse(text, where)


def of_program(path: Path) -> FileDescription:
    """Of a .pt2 file, whose weights are not read.

    Raises:
        ModelFileError: missing, no such archive, or not patchform's; and as `parse`.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(f"/extra/{EXTRA}")]
            if len(names) != 1:
                raise _foreign(path)
            if archive.getinfo(names[0]).file_size > LARGEST:
                raise ModelFileError("a description of more than 16 MiB", where=path)
            text = archive.read(names[0]).decode()
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"not a .pt2 file ({getattr(error, 'strerror', error)})", where=path) from None
    return parse(text, path)


def of_openvino(model: Any, where: object) -> FileDescription:
    """Of an `openvino.Model` that was read from an .xml file.

    Raises:
        ModelFileError: patchform did not write it; and as `parse`.
    """
    if not model.has_rt_info(KEY):
        raise _foreign(where)
    return parse(str(model.get_rt_info(KEY).astype(str)), where)


def _foreign(where: object) -> ModelFileError:
    return ModelFileError("not a file that patchform exported", where=where, remedy="export a run: patchform export")
