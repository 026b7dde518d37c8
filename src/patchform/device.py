"""Where the arithmetic happens, and how a trained model is run over data."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch

from patchform.errors import UsageError, unheard

Precision = Literal["float32", "bfloat16", "float16"]
AUTOCAST: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float16": torch.float16}
"""What layers compute in, by precision; in float32 nothing is cast."""
TENSOR_CORES = (7, 0)
"""Compute capability of the first GPUs that are faster in float16 (Volta)."""


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a trained model is run over data; `evaluate`, `probe` and `features` take each field as a keyword."""

    batch_size: int = 32
    """Images that are read together. Those of one size go through the model at once, so that this changes no answer but
    by rounding."""
    workers: int = 0
    """Processes that decode."""
    device: torch.device | str = "auto"
    """"auto" takes the accelerator if there is one."""
    precision: Precision = "float32"
    """bfloat16 and float16 run the model under autocast."""
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


def autocast(device: str | torch.device, precision: str) -> torch.autocast:
    """The context in which layers compute in a precision; parameters stay float32.

    Raises:
        UsageError: there is no such precision.
    """
    if precision not in get_args(Precision):
        raise UsageError(f'no precision "{precision}"', remedy=f"there are {', '.join(get_args(Precision))}")
    kind = torch.device(device).type
    return torch.autocast(kind, AUTOCAST.get(precision, torch.bfloat16), enabled=precision in AUTOCAST)


class FastPrecision(NamedTuple):
    """What a machine computes fastest in, and why."""

    precision: Precision
    reason: str


def fast_precision(device: torch.device) -> FastPrecision:
    """What a device has units for: bfloat16, else float16 on GPUs, else float32.

    Of a processor torch says what it has; `ATEN_CPU_CAPABILITY` and `ONEDNN_MAX_CPU_ISA`, by which a user takes some of
    that away, are respected.
    """
    if device.type == "cpu":
        if _has_bfloat16_units():
            return FastPrecision("bfloat16", "this processor has units for it")
        return FastPrecision("float32", "this processor has no units for bfloat16")
    if device.type != "cuda":
        return FastPrecision("float32", f"nothing else is known to be faster on {device.type}")
    if torch.cuda.is_bf16_supported(including_emulation=False):
        return FastPrecision("bfloat16", "this GPU has units for it")
    if torch.cuda.get_device_capability(device) >= TENSOR_CORES:
        return FastPrecision("float16", "this GPU has units for it, and none for bfloat16")
    return FastPrecision("float32", "this GPU has units for nothing shorter")


def slow_precision(device: torch.device, precision: str) -> str | None:
    """Why a device is slow in a precision that was asked for, None where it is not."""
    fast = fast_precision(device)
    if precision in ("float32", fast.precision) or (device.type == "cuda" and fast.precision == "bfloat16"):
        return None
    if device.type == "cpu" and precision == "float16":
        return f"float16 is slow on a processor: {fast.precision} is what it is fast in"
    return f"{precision} is slow here: {fast.reason}" if fast.precision == "float32" else f"{precision} is slow here"


def _has_bfloat16_units() -> bool:
    """Whether products of bfloat16 are made by the processor (AVX512_BF16, AMX, Arm's BF16) and may be."""
    capabilities = torch.cpu.get_capabilities()
    if platform.machine().lower() not in ("x86_64", "amd64", "i386"):
        return bool(capabilities.get("bf16"))
    most = os.environ.get("ONEDNN_MAX_CPU_ISA") or os.environ.get("DNNL_MAX_CPU_ISA") or "ALL"
    allowed = re.fullmatch(r"ALL|DEFAULT|.*(BF16|FP16|AMX|AVX10).*", most.upper()) is not None
    wide = torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")
    return wide and allowed and any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))
