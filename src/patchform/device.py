"""Where the arithmetic happens."""

from __future__ import annotations

import torch

from patchform.errors import UsageError


def pick_device(name: str | torch.device) -> torch.device:
    """The device of a setting.

    Args:
        name: "auto" is the accelerator if there is one, else the CPU; otherwise "cpu", "cuda", "cuda:1", "mps", ...

    Raises:
        UsageError: there is no such device here.
    """
    here = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return here or torch.device("cpu")
    device = torch.device(name)
    if device.type not in ("cpu", "meta") and (here is None or here.type != device.type):
        raise UsageError(f"no {device.type} device here", remedy="use the device cpu or auto")
    return device
