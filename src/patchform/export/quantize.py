"""A float32 ONNX file as one of int8, in which what hurts stays float32: found by measurement, told in a report."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from patchform.errors import ModelFileError, UsageError
from patchform.export.fidelity import Fidelity, open_session
from patchform.export.int8_options import Int8Options, Int8Report, LeftOut, Method
from patchform.export.leaving_out import decibels, hold
from patchform.export.onnx_file import WEIGHTS
from patchform.export.quantizers import KINDS, Feeds, Quantizer, ranges
from patchform.export.weighted import Group, Layer, groups_of, layers_of
from patchform.weights import files

if TYPE_CHECKING:
    from onnx import ModelProto

LARGEST = 2_000_000_000
"""Bytes of a float32 file whose graph fits into memory as protobuf has it."""
COMPARED = 16
"""Pictures on which graphs are compared with float32."""
DYNAMIC_GAIN = 2.0
"""Dynamic ranges are taken if the noise of static ones is so many times as much (3 dB): with dynamic ones a picture's
answer depends a little on the others of its batch, and OpenVINO is slow."""
Progress = Callable[[str, int, int], None]
"""What is done, how much, of how much at most."""


def quantize(
    source: Path,
    target: Path,
    pictures: Sequence[Feeds],
    options: Int8Options | None = None,
    *,
    progress: Progress | None = None,
) -> Int8Report:
    """Write a float32 ONNX file as one whose inner layers compute in int8. Inputs, outputs and metadata stay.

    The first and the last layers, what sees selected regions, and products of two activations (attention) stay
    float32. So does what else has to, group by group, until the last layers differ little enough from those of the
    float32 file on the pictures (`Int8Options.least_snr`). At most 2 + 2 * `weighted.MOST_GROUPS` graphs are compared.

    Args:
        source: a file that holds its weights.
        target: where to; replaced if it is there.
        pictures: inputs of the graph, one picture each, of any sizes, prepared as the file will see them. A third of
            them, 16 at most, is what graphs are compared on, the others give ranges. Without any, ranges are dynamic
            and nothing is measured.
        options: default: those of `Int8Options`.
        progress: called with what is going on.

    Raises:
        UsageError: onnxruntime is missing, static ranges without pictures, or no layer can be of int8.
        ModelFileError: the file is too large, or no graph is near enough to float32.
        ResourceError: the disk is full or the place is not writable.
    """
    import onnx

    wanted = options or Int8Options()
    if wanted.method == "static" and not pictures:
        raise UsageError("ranges of activations without pictures", remedy="name some, or take the method dynamic")
    beside = source.with_name(source.name + WEIGHTS)
    if sum(part.stat().st_size for part in (source, beside) if part.exists()) > LARGEST:
        raise ModelFileError("its int8 would take more than 2 GB of float32", where=source, remedy="take float16")
    model = onnx.load(source)
    made = _Search(model, pictures, wanted, progress or _unseen)
    if not made.layers.inner:
        raise UsageError("it has no layer that could be of int8", where=source, remedy="take float32 or float16")
    quantised, report = made.unmeasured() if not pictures else made.best()
    open_session(quantised)
    files.write_bytes(target, quantised.SerializeToString(deterministic=True))
    return report


def _unseen(what: str, done: int, count: int) -> None:
    """Show nothing."""


class _Search:
    """Makes graphs of a float32 one, compares them and takes one."""

    def __init__(self, model: ModelProto, pictures: Sequence[Feeds], options: Int8Options, progress: Progress) -> None:
        self.layers = layers_of(model)
        self._model, self._options, self._progress = model, options, progress
        self._pictures = pictures
        self._evaluations = 0

    def unmeasured(self) -> tuple[ModelProto, Int8Report]:
        """All inner products with dynamic ranges."""
        groups = self._groups("dynamic")
        quantised = Quantizer(self._model, "dynamic", self._options.bits).apply(_layers(groups))
        return quantised, self._report("dynamic", groups, (), None)

    def best(self) -> tuple[ModelProto, Int8Report]:
        """The graph with the fewest weights in float32 whose error is within the bound.

        Raises:
            ModelFileError: there is none.
        """
        compared, ranged = _split(len(self._pictures))
        fidelity = Fidelity(self._model, self.layers.last, [self._pictures[index] for index in compared])
        bound = 10 ** (-self._options.least_snr / 10)
        method, quantizer, everything = self._method(fidelity, ranged, bound)
        groups = self._groups(method)
        most = self._evaluations + 2 * len(groups)

        def noise(some: Sequence[Group]) -> list[float]:
            self._evaluations += 1
            self._progress(f"int8, {method}: what each part of the model loses", self._evaluations, most)
            return fidelity.noise(quantizer.apply(_layers(some)))

        kept = hold(groups, everything, bound, noise)
        if not kept.groups:
            least, full = self._options.least_snr, decibels(max(everything))
            what = f"no part of it is within {least:g} dB of float32 in int8 (all of it: {full:.1f} dB)"
            raise ModelFileError(what, remedy="take float16 or float32, or ask for less (least_snr)")
        report = self._report(method, kept.groups, kept.left_out, decibels(kept.noise))
        return quantizer.apply(_layers(kept.groups)), report

    def _method(
        self, fidelity: Fidelity, pictures: Sequence[int], bound: float
    ) -> tuple[Method, Quantizer, list[float]]:
        """The way to ranges, and the error with all in int8: static if that is within the bound; else, where most
        weights are in products, dynamic if it is far better.
        """
        tried: list[tuple[Method, Quantizer, list[float]]] = []
        for method in self._methods():
            found = None
            if method == "static":
                with tempfile.TemporaryDirectory(prefix="patchform-") as folder:
                    found = ranges(self._model, self._counted(pictures), Path(folder))
            quantizer = Quantizer(self._model, method, self._options.bits, found)
            self._evaluations += 1
            tried.append((method, quantizer, fidelity.noise(quantizer.apply(_layers(self._groups(method))))))
            if max(tried[-1][2]) <= bound:
                break
        chosen = tried[0]
        for other in tried[1:]:
            if DYNAMIC_GAIN * max(other[2]) < max(chosen[2]):
                chosen = other
        return chosen

    def _methods(self) -> Iterator[Method]:
        products = sum(layer.parameters for layer in self.layers.inner if layer.kind in KINDS["dynamic"])
        mostly = 2 * products > sum(layer.parameters for layer in self.layers.inner)
        if self._options.method != "dynamic":
            yield "static"
        if self._options.method == "dynamic" or (self._options.method == "auto" and mostly):
            yield "dynamic"

    def _counted(self, pictures: Sequence[int]) -> Iterator[Feeds]:
        for number, index in enumerate(pictures):
            yield self._pictures[index]
            self._progress("int8: ranges of activations", number + 1, len(pictures))

    def _groups(self, method: Method) -> list[Group]:
        groups = groups_of([layer for layer in self.layers.inner if layer.kind in KINDS[method]])
        if not groups:
            remedy = "name pictures for static ranges" if self.layers.inner else "take float32"
            raise UsageError("it has no layers but convolutions, which dynamic ranges are not for", remedy=remedy)
        return groups

    def _report(self, method: Method, kept: Sequence[Group], left: Sequence[Group], snr: float | None) -> Int8Report:
        other = [layer for layer in self.layers.inner if layer.kind not in KINDS[method]]
        rows = [
            *_left("first layer", self.layers.first),
            *_left("last layer", self.layers.last),
            *_left("after regions are selected", self.layers.selected),
            *_left("convolution: dynamic ranges are for products", other),
            *(LeftOut(group.name, "loses too much", len(group.layers), group.parameters) for group in left),
        ]
        layers = _layers(kept)
        seen, _ = _split(len(self._pictures))
        return Int8Report(
            method=method,
            bits=self._options.bits,
            quantised=len(layers),
            parameters=sum(layer.parameters for layer in layers),
            left_out=tuple(rows),
            snr=snr,
            pictures=len(seen),
            evaluations=self._evaluations,
        )


def _layers(groups: Sequence[Group]) -> list[Layer]:
    return [layer for group in groups for layer in group.layers]


def _left(reason: str, layers: Sequence[Layer]) -> list[LeftOut]:
    """A row for each stage."""
    return [LeftOut(group.name, reason, len(group.layers), group.parameters) for group in groups_of(layers)]


def _split(count: int) -> tuple[list[int], list[int]]:
    """Indices of pictures to compare on and of those for ranges, both over the whole; apart, if there are three."""
    if count < 3:
        return list(range(count)), list(range(count))
    number = min(COMPARED, count // 3)
    chosen = {index * count // number for index in range(number)}
    return sorted(chosen), [index for index in range(count) if index not in chosen]
