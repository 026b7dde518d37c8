"""Runtimes that compute exported files, behind one door: pictures in, named tensors out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn, Protocol, TypeAlias

from torch import Tensor

from patchform import resources
from patchform.errors import ModelFileError, ResourceError

Runtime: TypeAlias = Literal["auto", "onnxruntime", "openvino", "torch"]


@dataclass(frozen=True, kw_only=True)
class RuntimeOptions:
    """What runs an exported file, and how."""

    runtime: Runtime = "auto"
    """auto: .onnx is run by onnxruntime, .xml by OpenVINO, .pt2 by torch. OpenVINO runs .onnx too."""
    provider: str = "cpu"
    """An execution provider of onnxruntime, or a device of OpenVINO, by its short name: "cpu", "cuda", "gpu"."""
    threads: int | None = None
    """Of one picture's arithmetic; None: as many as torch would take."""
    trust: bool = False
    """Open a .pt2 file, which torch does with means that can run code of its author."""


class Session(Protocol):
    """An opened file."""

    name: str
    """Of the runtime and what it runs on, such as "onnxruntime (cpu)"."""
    threads: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    """Names, in the order of the file."""

    def run(self, images: Tensor, sizes: Tensor) -> Mapping[str, Tensor]:
        """The outputs of a batch by name, on the CPU.

        Args:
            images: as the file takes them (`FileDescription.inputs`), on the CPU.
            sizes: (B, 2) int64, height and width of each picture before it was resized; not looked at by files that
                do not take it.

        Raises:
            ModelFileError: the runtime cannot compute it.
            ResourceError: there is no memory left.
        """
        ...


def refuse_to_open(error: Exception, path: Path, runtime: str) -> NoReturn:
    """Raise the line on a file that a runtime does not open: ModelFileError, or ResourceError for want of memory."""
    _no_memory(error, path)
    raise ModelFileError(f"{runtime} cannot open it ({_reason(error)})", where=path, remedy="export it again") from None


def refuse_to_run(error: Exception, path: Path, runtime: str, images: Tensor) -> NoReturn:
    """Raise the line on images that a runtime does not compute: likewise."""
    _no_memory(error, path)
    shape = " x ".join(map(str, images.shape))
    what = f"{runtime} cannot compute {shape} pixels ({_reason(error)})"
    raise ModelFileError(what, where=path, remedy="check the file: patchform export --check") from None


def _no_memory(error: Exception, path: Path) -> None:
    if resources.out_of_memory(RuntimeError(str(error))) or "allocate" in str(error).lower():
        raise ResourceError(
            "out of memory", where=path, remedy="take fewer pictures at once, or smaller ones"
        ) from None


def _reason(error: Exception) -> str:
    """What a runtime says, without its places in its own code: the last lines say the most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.startswith(("Exception from", "Check '", "FrontEnd API"))]
    text = " ".join(told or lines) or type(error).__name__
    text = text.rpartition("[ONNXRuntimeError] : ")[2]
    return text if len(text) <= 300 else f"{text[:300]}..."
