"""ONNX files in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchform.errors import UsageError
from patchform.runtime.sessions import RuntimeOptions, refuse_to_open, refuse_to_run

SUFFIX = "ExecutionProvider"
SILENT = 4
"""Fatal errors alone are logged: the others are raised too, and warnings are not for those who run a file."""
CHANGES = 16
"""Of size, after which memory is given back: taking it anew costs half as much as a small model."""
ELSEWHERE = ("Azure",)
"""Providers that send pictures to other machines."""


class OnnxSession:
    """An ONNX file, opened by onnxruntime. No library of operators is loaded: it knows those of ONNX and its own.

    Args:
        path: of the file; its external data lies beside it.
        options: `provider` and `threads`.

    Raises:
        UsageError: onnxruntime is missing, or has no such provider.
        ModelFileError: it cannot be opened.
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        runtime = onnxruntime()
        provider = find_provider(options.provider, runtime.get_available_providers())
        self.path = path
        self.name = f"onnxruntime ({options.provider.lower()})"
        self.threads = options.threads or torch.get_num_threads()
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = self.threads, 1
        settings.use_deterministic_compute = True
        settings.log_severity_level = SILENT
        try:
            self._session = runtime.InferenceSession(path, settings, providers=list({provider: None, _CPU: None}))
        except Exception as error:  # its errors have no base of their own
            refuse_to_open(error, path, "onnxruntime")
        if self._session.get_providers()[0] != provider:
            remedy = "see that its libraries are installed, or take the provider cpu"
            raise UsageError(f"onnxruntime cannot start its provider {options.provider}", remedy=remedy)
        self.inputs = tuple(item.name for item in self._session.get_inputs())
        self.outputs = tuple(item.name for item in self._session.get_outputs())
        self._shape, self._changes = torch.Size(), 0
        self._plain, self._shrinking = runtime.RunOptions(), runtime.RunOptions()
        for run_options in (self._plain, self._shrinking):
            run_options.log_severity_level = SILENT
        self._shrinking.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")

    def run(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """See `Session.run`. Every few changes of size what the runtime holds and does not use is given back."""
        given = {"images": images, "sizes": sizes}
        feeds = {name: given[name].contiguous().numpy() for name in self.inputs}
        self._changes += images.shape != self._shape
        options = self._shrinking if images.shape != self._shape and self._changes % CHANGES == 0 else self._plain
        self._shape = images.shape
        try:
            arrays: list[Any] = self._session.run(self.outputs, feeds, options)
        except Exception as error:
            refuse_to_run(error, self.path, "onnxruntime", images)
        return {name: torch.from_numpy(array) for name, array in zip(self.outputs, arrays)}


_CPU = f"CPU{SUFFIX}"


def onnxruntime() -> Any:
    """The module. Raises UsageError where it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UsageError("onnxruntime is not installed", remedy='pip install "patchform[export]"') from error
    onnxruntime.set_default_logger_severity(SILENT)
    onnxruntime.disable_telemetry_events()
    return onnxruntime


def find_provider(name: str, available: list[str]) -> str:
    """The full name of a provider: "CPUExecutionProvider" of "cpu". Raises UsageError when there is none of it here."""
    usable = [provider for provider in available if not provider.startswith(ELSEWHERE)]
    short = {provider.removesuffix(SUFFIX).lower(): provider for provider in usable}
    provider = short.get(name.lower().removesuffix(SUFFIX.lower()))
    if provider is None:
        raise UsageError(f'onnxruntime has no provider "{name}" here', remedy=f"it has {', '.join(sorted(short))}")
    return provider
