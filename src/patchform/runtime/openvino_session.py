"""OpenVINO's files and ONNX files in OpenVINO."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchform.errors import ModelFileError, UsageError
from patchform.runtime.sessions import RuntimeOptions, refuse_to_open, refuse_to_run

STARTS = {".xml": (b"<?xml", b"<net")}
"""First bytes of files: of others OpenVINO asks one reader after the other, and they write on stderr."""


class OpenVinoSession:
    """A file, opened by OpenVINO. No extension is loaded.

    Arithmetic is in the numbers that the file holds: left to itself OpenVINO takes bfloat16 where a processor has it.

    Args:
        path: of an .xml file with its .bin beside it, or of an ONNX file.
        options: `provider` (a device of OpenVINO) and `threads`.

    Raises:
        UsageError: OpenVINO is missing, or has no such device.
        ModelFileError: it cannot be opened.
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        core = the_core()
        device = find_device(options.provider, core.available_devices)
        self.path = path
        self.name = f"OpenVINO ({options.provider.lower()})"
        self.threads = options.threads or torch.get_num_threads()
        settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = self.threads
        model = read_model(path)
        try:
            self._request = core.compile_model(model, device, settings).create_infer_request()
        except Exception as error:
            refuse_to_open(error, path, "OpenVINO")
        self.inputs = tuple(item.any_name for item in model.inputs)
        self.outputs = tuple(item.any_name for item in model.outputs)

    def run(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """See `Session.run`."""
        given = {"images": images, "sizes": sizes}
        feeds = {name: given[name].contiguous().numpy() for name in self.inputs}
        try:
            arrays = self._request.infer(feeds, share_inputs=True, share_outputs=False)
        except Exception as error:
            refuse_to_run(error, self.path, "OpenVINO", images)
        return {name: torch.from_numpy(arrays[name]) for name in self.outputs}


def openvino() -> Any:
    """The module, which then tells nobody of its use. Raises UsageError where it is not installed.

    It reports each import and conversion over the network if it finds the package that does so.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise UsageError("OpenVINO is not installed", remedy='pip install "patchform[openvino]"') from error
    return openvino


def the_core() -> Any:
    """OpenVINO's core, one for the process and as long as it lives. Raises UsageError where OpenVINO is missing.

    Each gives the thread that makes it a stack of its own for handlers of signals, as processors with AMX need it, and
    frees it when it goes: after two of them the next signal, a Ctrl-C for example, ended the process.
    """
    return _core_of(openvino())


@cache
def _core_of(module: Any) -> Any:
    return module.Core()


def read_model(path: Path) -> Any:
    """An `openvino.Model`, not compiled. Raises ModelFileError for a file that is none."""
    try:
        with path.open("rb") as stream:
            start = stream.read(64).lstrip()
    except OSError as error:
        raise ModelFileError(f"cannot be read ({error.strerror})", where=path) from error
    if not start.startswith(STARTS.get(path.suffix.lower(), b"")):
        raise ModelFileError("not a file of OpenVINO", where=path, remedy="export a run: patchform export")
    core = the_core()
    try:
        return core.read_model(path)
    except Exception as error:
        refuse_to_open(error, path, "OpenVINO")


def find_device(name: str, available: list[str]) -> str:
    """A device by its name, whichever its case. Raises UsageError when there is none of it here."""
    if name.upper() not in available:
        names = ", ".join(sorted(device.lower() for device in available))
        raise UsageError(f'OpenVINO has no device "{name}" here', remedy=f"it has {names}")
    return name.upper()
