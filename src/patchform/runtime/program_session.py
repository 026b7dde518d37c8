"""Programs of torch.export (.pt2) in torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor

from patchform.errors import ModelFileError, UsageError
from patchform.runtime.sessions import RuntimeOptions, refuse_to_open, refuse_to_run


class ProgramSession:
    """A .pt2 file, opened by `torch.export.load`: which opens pickles and evaluates text of the file, and so can run
    code of whoever wrote it. Nothing that is looked at beforehand would rule that out, so the user says that it is so.

    Args:
        path: of the file.
        options: `trust`, without which it is not opened, and `threads`, which are those of the whole process.

    Raises:
        ModelFileError: it is not trusted, or cannot be opened.
        UsageError: another provider than cpu.
    """

    def __init__(self, path: Path, options: RuntimeOptions) -> None:
        if not options.trust:
            remedy = "take the .onnx file; or trust it (--trust) if you know who wrote it"
            raise ModelFileError("a .pt2 file can run code of its author when it is opened", where=path, remedy=remedy)
        if options.provider.lower() != "cpu":
            raise UsageError(f'torch has no provider "{options.provider}" for .pt2 files', remedy="it has cpu")
        self.path, self.name = path, "torch (cpu)"
        if options.threads:
            torch.set_num_threads(options.threads)
        self.threads = torch.get_num_threads()
        try:
            import torchvision  # noqa: F401  # has the operators that suppress boxes and cut out regions

            with warnings.catch_warnings():  # torch 2.11's, of how it reads its own files
                warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
                program = torch.export.load(path)
            self._program = program.module()
        except Exception as error:
            refuse_to_open(error, path, "torch")
        self.inputs = tuple(map(str, program.graph_signature.user_inputs))
        self.outputs = tuple(program.call_spec.out_spec.context)  # the keys of a dict

    def run(self, images: Tensor, sizes: Tensor) -> dict[str, Tensor]:
        """See `Session.run`."""
        given = {"images": images, "sizes": sizes}
        try:
            with torch.no_grad():
                outputs: dict[str, Tensor] = self._program(*(given[name] for name in self.inputs))
        except Exception as error:
            refuse_to_run(error, self.path, "torch", images)
        return outputs
