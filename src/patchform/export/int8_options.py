"""How a file is brought to int8, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple, TypeAlias

from patchform.schema import Range

Method: TypeAlias = Literal["dynamic", "static"]


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How a file is brought to int8."""

    method: Literal["auto", "dynamic", "static"] = "auto"
    """static: ranges of activations are those that pictures had; convolutions and matrix products. dynamic: ranges are
    those of each batch; matrix products alone. auto: the one that is nearer to float32; dynamic without pictures."""
    bits: Annotated[int, Range(least=7, most=8)] = 7
    """Of weights, which take a byte either way. Sums of 7 bits cannot overflow on any processor; those of 8 do where
    there is no VNNI, without a word."""
    least_snr: Annotated[float, Range(least=0, most=120)] = 20.0
    """Decibels by which what the last layers give must exceed what int8 adds to it; layers stay in float32 until it
    does. 20: the error is a tenth of what they vary by."""


class LeftOut(NamedTuple):
    """Layers that stay in float32."""

    name: str
    """Stage, block or layer of the model."""
    reason: str
    layers: int
    parameters: int


class Int8Report(NamedTuple):
    """What became of a file."""

    method: Method
    bits: int
    quantised: int
    """Layers that compute in int8."""
    parameters: int
    """Numbers in their weights."""
    left_out: tuple[LeftOut, ...]
    snr: float | None
    """Decibels of the last layer that is furthest from float32; None where there were no pictures to see it on."""
    pictures: int
    evaluations: int
    """Files that were made and compared on the way."""

    def kept_float32(self) -> tuple[str, ...]:
        """What stays float32 and why, as the file says it."""
        return tuple(f"{row.name}: {row.reason}" for row in self.left_out)

    def lines(self) -> list[str]:
        """What people are told, sentences."""
        how = {"static": "ranges of activations from pictures", "dynamic": "ranges of activations from each batch"}
        seen = (
            "no picture was looked at"
            if self.snr is None
            else (f"{self.snr:.1f} dB above the error on {self.pictures} pictures; {self.evaluations} files compared")
        )
        first = (
            f"int8, {self.method} ({how[self.method]}): {self.quantised} layers, {self.parameters / 1e6:.3g} M weights "
            f"of {self.bits} bits for each channel; {seen}"
        )
        rest = [
            f"float32: {row.name} ({row.layers} layers, {row.parameters / 1e6:.3g} M): {row.reason}"
            for row in self.left_out
        ]
        return [first, *rest]
