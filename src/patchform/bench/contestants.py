"""What is timed: a model in torch, and exported files in their runtimes. Tensors in, outputs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from patchform.errors import PatchformError, UsageError
from patchform.model import Model
from patchform.outputs import Outputs
from patchform.records import Batch
from patchform.runtime.opening import KINDS, describe, open_session
from patchform.runtime.sessions import Runtime, RuntimeOptions
from patchform.weights.files import one_line


class Skipped(Exception):
    """A contestant that cannot take part, and why."""


class Contestant(Protocol):
    """What is timed."""

    name: str
    bytes: int | None
    """Of its file; None where there is none."""

    def prepare(self, images: Tensor, sizes: Tensor) -> Callable[[], object]:
        """What makes the outputs of a batch when it is called.

        Args:
            images: as files take them (`FileDescription.inputs`).
            sizes: (B, 2) int64, height and width of the pictures before they were resized.

        Raises:
            Skipped: it does not take this batch, or cannot run here.
        """
        ...


class _Outputs(nn.Module):
    """A model with its decisions, without making lists of them."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        return self.model.head.to_outputs(self.model.head(self.model.features(Batch(images, (), (), ()))), sizes)


class Eager:
    """A model in torch, as `predict` and `evaluate` run it.

    Args:
        model: in evaluation mode.
        name: in the table.
    """

    bytes: int | None = None

    def __init__(self, model: Model, name: str = "eager") -> None:
        self.name, self.module = name, _Outputs(model).requires_grad_(False)

    def prepare(self, images: Tensor, sizes: Tensor) -> Callable[[], object]:
        """Never skipped."""
        return lambda: self.run(self.module, images, sizes)

    @staticmethod
    def run(module: Callable[..., Outputs], images: Tensor, sizes: Tensor) -> Outputs:
        """One call."""
        with torch.inference_mode():
            return module(images, sizes)


class Compiled(Eager):
    """The same through torch.compile, which takes a C++ compiler, and about a minute before its first call."""

    def __init__(self, model: Model, name: str = "compiled") -> None:
        super().__init__(model, name)
        self.compiled = torch.compile(self.module)

    def prepare(self, images: Tensor, sizes: Tensor) -> Callable[[], object]:
        """Compiled for this size. Raises Skipped where it cannot be."""
        heard = logging.root.manager.disable
        logging.disable(max(heard, logging.WARNING))  # lines of the compiler on its own affairs
        try:
            self.run(self.compiled, images, sizes)
        except Exception as error:  # of any kind: compilers have many
            raise Skipped(_first_line(error)) from error
        finally:
            logging.disable(heard)
        return lambda: self.run(self.compiled, images, sizes)


class File:
    """An exported file in a runtime.

    Args:
        path: of the file.
        options: what runs it.
        name: in the table.

    Raises:
        ModelFileError: it is damaged, or not one of patchform's.
    """

    def __init__(self, path: Path, options: RuntimeOptions, name: str) -> None:
        self.name, self.path, self._options = name, path, options
        self.description = describe(path)
        beside = {".onnx": path.with_name(f"{path.name}.data"), ".xml": path.with_suffix(".bin")}
        belongs = [path, *(part for suffix, part in beside.items() if suffix == path.suffix.lower() and part.exists())]
        self.bytes: int | None = sum(part.stat().st_size for part in belongs)

    def prepare(self, images: Tensor, sizes: Tensor) -> Callable[[], object]:
        """Opened anew. Raises Skipped for a size or number that it does not take, or a runtime that is not here."""
        told, size = self.description, tuple(images.shape[-2:])
        if told.sizes and size not in told.sizes:
            taken = ", ".join(f"{height}x{width}" for height, width in told.sizes)
            raise Skipped(f"it takes {taken} alone")
        if told.batch and len(images) != told.batch:
            raise Skipped(f"it takes {told.batch} at once alone")
        try:
            session = open_session(self.path, self._options)
            session.run(images, sizes)
        except PatchformError as error:
            raise Skipped(one_line(str(error))) from error
        return lambda: session.run(images, sizes)


def of_file(path: Path, *, threads: int | None, trust: bool, prefix: str = "") -> Iterator[File]:
    """A file in each of its runtimes."""
    if path.suffix.lower() not in KINDS:
        raise UsageError(f"{path} is no exported file", remedy=f"they end in {', '.join(KINDS)}")
    for runtime in KINDS[path.suffix.lower()].sessions:
        options = RuntimeOptions(runtime=_runtime(runtime), threads=threads, trust=trust)
        yield File(path, options, f"{prefix}{path.name} {runtime}")


def _runtime(name: str) -> Runtime:
    known: dict[str, Runtime] = {"onnxruntime": "onnxruntime", "openvino": "openvino", "torch": "torch"}
    return known[name]


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return one_line(lines[0] if lines else type(error).__name__)
