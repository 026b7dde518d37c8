"""How far the last layers of a graph in other numbers are from those of float32, in decibels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from patchform.errors import ModelFileError
from patchform.export.quantizers import Feeds
from patchform.export.weighted import CONVOLUTION, Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

MOST_NUMBERS = 1 << 18
"""Of one layer for one picture: of larger maps, cells are left out evenly."""
SILENT = 4


class Fidelity:
    """What the last layers of a float32 graph say of some pictures, to compare other graphs with.

    The error is held against what a layer's channels vary by over pictures and cells, not against their size: a large
    bias that all pictures share says nothing.

    Args:
        model: float32.
        layers: whose outputs are compared; they have the same names in all graphs.
        pictures: inputs of the graph, of any sizes; with one alone, of which there is one row, nothing varies.

    Raises:
        ModelFileError: onnxruntime cannot run it.
    """

    def __init__(self, model: ModelProto, layers: Sequence[Layer], pictures: Sequence[Feeds]) -> None:
        self._layers, self._pictures = layers, pictures
        self._reference = self._rows(model)
        self._variation = []
        for rows in self._reference:
            everything = _joined(rows)
            self._variation.append(float(((everything - everything.mean(0)) ** 2).sum()))

    def noise(self, model: ModelProto) -> list[float]:
        """Of each layer the error's power as a share of the variation's. 0: equal; 0.01: 20 dB."""
        noise = []
        for reference, rows, variation in zip(self._reference, self._rows(model), self._variation):
            error = float(((_joined(rows) - _joined(reference)) ** 2).sum())
            noise.append(error / variation if variation > 0 else float(error > 0))
        return noise

    def _rows(self, model: ModelProto) -> list[list[NDArray[Any]]]:
        """Of each layer its numbers by picture, (cells, channels)."""
        import onnx

        augmented = onnx.ModelProto()
        augmented.CopyFrom(model)
        own = [item.name for item in augmented.graph.output]
        names = [layer.output for layer in self._layers]
        floats = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names]
        augmented.graph.output.extend(item for item in floats if item.name not in own)
        session = open_session(augmented)
        rows: list[list[NDArray[Any]]] = [[] for _ in names]
        for feeds in self._pictures:
            for layer, kept, array in zip(self._layers, rows, session.run(names, feeds)):
                kept.append(_cells(array, layer.kind))
        return rows


def open_session(model: ModelProto) -> Any:
    """A session of onnxruntime for a graph, on the processor, with as many threads as torch has.

    Raises:
        ModelFileError: it cannot be run.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = torch.get_num_threads(), 1
    settings.log_severity_level = SILENT
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no base of their own
        raise ModelFileError(f"onnxruntime cannot run the graph ({error})") from error


def _cells(array: NDArray[Any], kind: str) -> NDArray[Any]:
    """(cells, channels) of (B, C, H, W) of a convolution or (..., C) of a product."""
    import numpy

    last = numpy.moveaxis(array, 1, -1) if kind == CONVOLUTION else array
    cells = last.reshape(-1, last.shape[-1])
    step = max(1, -(-cells.size // MOST_NUMBERS))
    return cells[::step].astype("float64")


def _joined(rows: Sequence[NDArray[Any]]) -> NDArray[Any]:
    import numpy

    return numpy.concatenate(list(rows))
