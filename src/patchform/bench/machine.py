"""The machine that numbers were measured on."""

from __future__ import annotations

import platform
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from patchform import __version__
from patchform.system import cores

INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512_f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bfloat16",
    "dotprod": "dot product",
    "i8mm": "int8 matrices",
    "sve": "SVE",
}
"""By torch's name: what speed and int8 depend on."""
PACKAGES = ("torch", "onnxruntime", "openvino")


class Machine(NamedTuple):
    """What numbers depend on."""

    processor: str
    """Name, as the system has it."""
    instructions: tuple[str, ...]
    """Of `INSTRUCTIONS`; what a user takes from libraries by their environment variables is not taken off."""
    cores: int
    """That this process may use."""
    threads: int
    """That are used."""
    system: str
    versions: dict[str, str]
    """Of what has been loaded."""

    @property
    def fast_int8(self) -> bool:
        """Whether there are instructions that add up products of 8 bits."""
        return any("VNNI" in name or "int8" in name or name == "dot product" for name in self.instructions)

    def lines(self) -> list[str]:
        """Two lines for people."""
        has = ", ".join(self.instructions) or "no instructions that torch names"
        int8 = "" if self.fast_int8 else "; none for int8, whose files are smaller then but not faster"
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [
            f"{self.processor}: {has}{int8}; {self.cores} cores, {self.threads} thread{'s' * (self.threads > 1)}",
            f"{self.system}; {versions}",
        ]


def machine(threads: int) -> Machine:
    """This one."""
    versions = {"patchform": __version__, "Python": platform.python_version()}
    for package in PACKAGES:
        if package in sys.modules:
            versions[package] = str(vars(sys.modules[package]).get("__version__", ""))
    capabilities = torch.cpu.get_capabilities()
    return Machine(
        processor=processor(),
        instructions=tuple(name for key, name in INSTRUCTIONS.items() if capabilities.get(key)),
        cores=cores(),
        threads=threads,
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        versions=versions,
    )


def processor(listed: Path = Path("/proc/cpuinfo")) -> str:
    """The name of the processor; its kind where the system does not tell.

    Args:
        listed: where Linux tells.
    """
    if sys.platform == "linux":
        try:
            for line in listed.read_text(encoding="utf-8", errors="replace").splitlines():
                key, _, value = line.partition(":")
                if key.strip() == "model name" and value.strip():
                    return value.strip()
        except OSError:
            pass
    return platform.processor() or platform.machine() or "unknown processor"
