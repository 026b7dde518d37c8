"""onnxruntime's quantisers, asked for some of a graph's layers at a time."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from patchform.errors import UsageError
from patchform.export.int8_options import Method
from patchform.export.weighted import CONVOLUTION, PRODUCTS, Layer

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from onnx import ModelProto

Feeds: TypeAlias = "dict[str, NDArray[Any]]"
"""Inputs of a graph by name."""
KINDS: dict[str, tuple[str, ...]] = {"dynamic": PRODUCTS, "static": (CONVOLUTION, *PRODUCTS)}
"""Operators that each method has numbers for. Convolutions of dynamic ranges are slower than those of float32, and have
one range for all channels."""
RECTIFIER = "Relu"


class Quantizer:
    """Makes int8 files of a float32 graph.

    Args:
        model: float32; it is not changed.
        method: where ranges of activations come from.
        bits: of weights, 7 or 8.
        ranges: of activations by name, from `ranges`; for static ones.

    Raises:
        UsageError: onnxruntime is missing.
    """

    def __init__(self, model: ModelProto, method: Method, bits: int, ranges: Any = None) -> None:
        check_installed()
        self.method, self._reduced, self._ranges = method, bits == 7, ranges
        self._model = _inferred(model)
        self._metadata = {entry.key: entry.value for entry in model.metadata_props}
        self._producer = model.producer_name, model.producer_version

    def apply(self, layers: Sequence[Layer]) -> ModelProto:
        """The graph with these layers in int8 and all others as they are; inputs, outputs and metadata as they were."""
        import onnx

        kinds = KINDS[self.method]
        nodes = [layer.node for layer in layers if layer.kind in kinds]
        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        if nodes:
            with _quiet():
                quantizer = self._static(model, nodes) if self.method == "static" else self._dynamic(model, nodes)
                quantizer.quantize_model()
                quantizer.model.topological_sort()
            model = quantizer.model.model
            if self.method == "dynamic":
                _check_products(model, len(nodes))
        del model.graph.value_info[:]  # of the graph as it was
        model.producer_name, model.producer_version = self._producer
        onnx.helper.set_model_props(model, self._metadata)
        return model

    def _static(self, model: ModelProto, nodes: list[str]) -> Any:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

        options = {"OpTypesToExcludeOutputQuantization": list(PRODUCTS), "MatMulConstBOnly": True}
        kinds = [*KINDS["static"], RECTIFIER]
        nodes = [*nodes, *_rectifiers(model, set(nodes))]
        return QDQQuantizer(
            model, True, self._reduced, QuantType.QInt8, QuantType.QUInt8, self._ranges, nodes, [], kinds, options
        )

    def _dynamic(self, model: ModelProto, nodes: list[str]) -> Any:
        from onnxruntime.quantization import QuantType
        from onnxruntime.quantization.onnx_quantizer import ONNXQuantizer, QuantizationMode

        options = {"MatMulConstBOnly": True}
        integer, kinds = QuantizationMode.IntegerOps, list(KINDS["dynamic"])
        nodes = [*nodes, *(f"{node}_MatMul" for node in nodes)]  # what it makes of a Gemm first
        return ONNXQuantizer(
            model,
            True,
            self._reduced,
            integer,
            False,
            QuantType.QInt8,
            QuantType.QUInt8,
            None,
            nodes,
            [],
            kinds,
            options,
        )


def ranges(model: ModelProto, pictures: Iterable[Feeds], folder: Path) -> Any:
    """Lowest and highest values of activations over pictures, as onnxruntime keeps them.

    Extremes, not percentiles: what transformers say with few large numbers would be cut off (measured on a ViT-S:
    22 dB with extremes, 7 dB with the 99.999th percentile).

    Args:
        model: float32.
        pictures: inputs of the graph, one picture each, of any sizes.
        folder: for files on the way; it is left as it was.
    """
    import onnx
    from onnxruntime.quantization.calibrate import create_calibrator

    path = folder / "float32.onnx"
    onnx.save(_inferred(model), path)
    try:
        with _quiet():
            kinds = [*KINDS["static"], RECTIFIER]
            calibrator: Any = create_calibrator(path, kinds, augmented_model_path=str(folder / "ranges.onnx"))
            for feeds in pictures:
                calibrator.collect_data(_One(feeds))
            return calibrator.compute_data()
    finally:
        path.unlink()
        (folder / "ranges.onnx").unlink(missing_ok=True)


def _check_products(model: ModelProto, number: int) -> None:
    """That so many are of integers: a layer that is asked for by a name that the quantiser changed stays as it is."""
    found = sum(node.op_type == "MatMulInteger" for node in model.graph.node)
    if found != number:
        raise RuntimeError(f"onnxruntime made {found} products of integers where {number} were asked for")


def _rectifiers(model: ModelProto, nodes: set[str]) -> list[str]:
    """ReLUs right behind convolutions of int8: they become the lower end of the range, which is then not wasted."""
    behind = {node.output[0] for node in model.graph.node if node.name in nodes and node.op_type == CONVOLUTION}
    return [node.name for node in model.graph.node if node.op_type == RECTIFIER and node.input[0] in behind]


class _One:
    """A reader of one picture, as onnxruntime asks for it."""

    def __init__(self, feeds: Feeds) -> None:
        self._rest = [feeds]

    def get_next(self) -> Feeds | None:
        return self._rest.pop() if self._rest else None


def check_installed() -> None:
    """Raise UsageError unless what quantises is there."""
    try:
        import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed", remedy='pip install "patchform[export]"') from None


def _inferred(model: ModelProto) -> ModelProto:
    """A copy that knows the types of its values. What the converter wrote down of shapes contradicts itself when
    quantisers look at it, so it is forgotten.
    """
    import onnx

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantisers advise on the root logger and print."""
    logger = logging.getLogger()
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)
