"""Where the arithmetic happens, and how a trained model is run over data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from patchform.errors import UsageError, unheard

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a trained model is run over data; `evaluate`, `probe` and `features` take each field as a keyword."""

    batch_size: int = 32
    """Images that go through the model at once; changes no number."""
    workers: int = 0
    """Processes that decode."""
    device: torch.device | str = "auto"
    """"auto" takes the accelerator if there is one."""
    precision: Precision = "float32"
    """bfloat16 runs the model under autocast."""
    skip_bad: float = 0.0
    """Highest share of unreadable pictures that are left out, in [0, 1). With 0 the first one stops."""
    say: Callable[[str], None] = unheard
    """Called with each remark on the data, a sentence."""


def pick_device(name: str | torch.device) -> torch.device:
    """The device of a setting.

    Args:
        name: "auto" is the accelerator if there is one, else the CPU; otherwise "cpu", "cuda", "cuda:1", "mps", ...

    Raises:
        UsageError: there is no such device here.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return accelerator or torch.device("cpu")
    device = torch.device(name)
    if device.type not in ("cpu", "meta") and (accelerator is None or accelerator.type != device.type):
        raise UsageError(f"no {device.type} device here", remedy="use the device cpu or auto")
    return device
