"""Small ONNX graphs by hand, named as exported ones are."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

PREFIX = "inner.model."
FREE = ["batch", "a", "b", "c"]


class Builder:
    """Collects nodes and weights; every node has the name of its output."""

    def __init__(self, seed=0):
        self.random = np.random.default_rng(seed)
        self.nodes, self.weights = [], []

    def constant(self, name, array):
        self.weights.append(numpy_helper.from_array(array, name))
        return name

    def node(self, kind, inputs, output, **attributes):
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"node_{output}", **attributes))
        return output

    def conv(self, x, module, into, out, size=3, scale=None):
        weight = self.random.normal(size=(out, into, size, size)).astype("float32") * (into * size * size) ** -0.5
        if scale is not None:
            weight *= scale.reshape(-1, 1, 1, 1).astype("float32")
        names = [
            self.constant(f"{PREFIX}{module}.weight", weight),
            self.constant(f"{PREFIX}{module}.bias", self.random.normal(size=out).astype("float32") * 0.1),
        ]
        return self.node("Conv", [x, *names], f"{module}_out", pads=[size // 2] * 4)

    def linear(self, x, module, into, out):
        """As exporters have it: the weight transposed and without its name, the bias added."""
        weight = self.random.normal(size=(into, out)).astype("float32") * into**-0.5
        product = self.node("MatMul", [x, self.constant(f"val_{len(self.weights)}", weight)], f"{module}_product")
        bias = self.constant(f"{PREFIX}{module}.bias", self.random.normal(size=out).astype("float32") * 0.1)
        return self.node("Add", [product, bias], f"{module}_out")

    def gemm(self, x, module, into, out):
        """As this library writes it: (rows, into), the weight as it is."""
        weight = self.random.normal(size=(out, into)).astype("float32") * into**-0.5
        names = [
            self.constant(f"{PREFIX}{module}.weight", weight),
            self.constant(f"{PREFIX}{module}.bias", self.random.normal(size=out).astype("float32") * 0.1),
        ]
        return self.node("Gemm", [x, *names], f"{module}_out", transB=1)

    def model(self, output, shape, kind=TensorProto.FLOAT):
        images = helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", 3, "height", "width"])
        result = helper.make_tensor_value_info(output, kind, shape)
        graph = helper.make_graph(self.nodes, "test", [images], [result], self.weights)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="patchform")
        model.ir_version = 10
        helper.set_model_props(model, {"patchform": "told"})
        onnx.checker.check_model(model, full_check=True)
        return model

    def pixels(self):
        pixels = self.node("Cast", ["images"], "pixels", to=TensorProto.FLOAT)
        return self.node("Div", [pixels, self.constant("most", np.float32(255.0))], "scaled")


def convolutional(*, spoiled=False):
    """Four convolutions, two products. Spoiled: one channel of stage 1 is a thousand times the others', and gives
    nothing on to stage 2 but noise.
    """
    build = Builder()
    x = build.node("Relu", [build.conv(build.pixels(), "backbone.stem", 3, 8)], "a")
    x = build.node("Relu", [build.conv(x, "backbone.stages.0.conv", 8, 8)], "b")
    loud = np.ones(8)
    loud[0] = 1000 if spoiled else 1
    x = build.node("Relu", [build.conv(x, "backbone.stages.1.conv", 8, 8, scale=loud)], "c")
    if spoiled:
        quiet = np.ones((1, 8, 1, 1), np.float32)
        quiet[0, 0] = 1e-3
        x = build.node("Mul", [x, build.constant("quiet", quiet)], "calm")
    x = build.node("Relu", [build.conv(x, "backbone.stages.2.conv", 8, 16)], "d")
    x = build.node("Flatten", [build.node("GlobalAveragePool", [x], "pooled")], "flat")
    x = build.node("Relu", [build.linear(x, "head.hidden", 16, 16)], "e")
    build.node("Softmax", [build.linear(x, "head.classifier", 16, 5)], "scores")
    return build.model("scores", ["batch", 5])


def pictures(number, size=(24, 20), seed=1):
    """Coloured fields, of another colour in each."""
    random = np.random.default_rng(seed)
    colours = random.uniform(40, 215, (number, 3, 1, 1))
    fields = random.uniform(-40, 40, (number, 3, 4, 4)).repeat(-(-size[0] // 4), 2).repeat(-(-size[1] // 4), 3)
    pixels = colours + fields[:, :, : size[0], : size[1]]
    return [{"images": picture[None].round().astype("uint8")} for picture in pixels]


def run(model, feeds):
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1
    source = model if isinstance(model, str) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, settings, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)
