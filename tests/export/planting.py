"""Faults that are planted into a written ONNX file, and a run whose pictures have the classes that its model says."""

import json

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from PIL import Image
from reference import randomise

from patchform.model import build_model, load, save
from patchform.prediction import Predictor
from patchform.records import Preprocessing
from patchform.runtime.description import KEY

SIDE = 32


def classifier(folder, *, pictures=40, scale=0.35, **options):
    """A run folder of a model with random parameters, and a folder of pictures that it is always right about."""
    torch.manual_seed(0)
    options = {"backbone": "vit/nano", "head": "linear", "classes": list("abcd"), "ids": [3, 7, 9, 11]} | options
    preprocessing = options.pop("preprocessing", Preprocessing(size=(SIDE, SIDE), resize="squash"))
    model = build_model("classification", preprocessing=preprocessing, **options)
    randomise(model.backbone, scale=scale)
    randomise(model.head, seed=1, scale=scale)
    model.eval()
    save(model, folder / "run")
    textures(folder / "all", pictures)
    for answer in Predictor(model, device="cpu").predict(str(folder / "all")):
        for index in answer.target.classes.tolist():
            path = folder / "val" / model.classes[index] / answer.name.rpartition("/")[2]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((folder / "all" / path.name).read_bytes())
    return load(folder / "run"), folder / "val"


def textures(folder, number, *, size=(57, 75)):
    """Waves of several directions, lengths and colours, with grain, as PNG."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    for index in range(number):
        angle, length = draw.uniform(0, np.pi), draw.uniform(2.5, 30)
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / length)
        pixels = draw.uniform(40, 210, 3) + 60 * wave[..., None] * draw.uniform(-1, 1, 3)
        pixels = pixels + draw.normal(0, 12, (*size, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index:03d}.png")


class Planted:
    """An ONNX file that is changed and written again."""

    def __init__(self, path):
        self.model = onnx.load(path)

    @property
    def graph(self):
        return self.model.graph

    def save(self, path):
        onnx.save(self.model, path)
        return path

    def note(self, change):
        """What the file says of itself, changed as text."""
        (note,) = (entry for entry in self.model.metadata_props if entry.key == KEY)
        changed = change(note.value)
        assert changed != note.value
        note.value = changed

    def constant(self, name, change):
        """An initializer whose name ends so."""
        (tensor,) = (tensor for tensor in self.graph.initializer if tensor.name.endswith(name))
        changed = np.asarray(change(numpy_helper.to_array(tensor).copy()))
        tensor.CopyFrom(numpy_helper.from_array(changed.astype(numpy_helper.to_array(tensor).dtype), tensor.name))

    def weights(self, change):
        """All matrices and kernels."""
        for tensor in list(self.graph.initializer):
            values = numpy_helper.to_array(tensor)
            if values.ndim >= 2 and values.size > 16 and values.dtype == np.float32:
                tensor.CopyFrom(numpy_helper.from_array(change(values).astype(np.float32), tensor.name))

    def operation(self, old, new):
        """Another kind of node for all of a kind."""
        nodes = [node for node in self.graph.node if node.op_type == old]
        assert nodes
        for node in nodes:
            node.op_type = new
            del node.attribute[:]

    def after_input(self, name, nodes, constants=()):
        """Nodes between an input and all that reads it: the first reads `name`, the last gives `planted`."""
        for node in self.graph.node:
            node.input[:] = ["planted" if given == name else given for given in node.input]
        self._insert(nodes, constants, 0)

    def before_output(self, name, nodes, constants=()):
        """Nodes between what gives an output and the output: the first reads `whole`, the last gives `name`."""
        for node in self.graph.node:
            for names in (node.input, node.output):
                names[:] = ["whole" if given == name else given for given in names]
        self._insert(nodes, constants, len(self.graph.node))

    def _insert(self, nodes, constants, place):
        for name, value in dict(constants).items():
            self.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
        for number, node in enumerate(nodes):
            self.graph.node.insert(place + number, node)


def node(kind, inputs, outputs, **attributes):
    return helper.make_node(kind, inputs, outputs, **attributes)


def gather(given, index, output, axis):
    return node("Gather", [given, index], [output], axis=axis)


def detector(folder, *, pictures=24, **options):
    """A run folder of a detector with random parameters, and pictures whose objects are the surest that it finds."""
    torch.manual_seed(0)
    small = {"channels_inside": 16, "norm": "layer", "finest": 4, "sizes": (16, 32, 64, 128, 256, 512)}
    small |= {"form": {"convolutions": 1}}
    model = build_model(
        "detection",
        preprocessing=Preprocessing(size=(48, 64), resize="fit"),
        **{"backbone": "resnet/nano", "head": "retinanet", "classes": list("abc"), "head_options": small, **options},
    )
    randomise(model.backbone, scale=0.3)
    randomise(model.head, seed=1, scale=0.15)
    with torch.no_grad():  # scores that are all 1 would be ties, and each of them a step of the metric
        model.head.classify.output.weight.mul_(0.1)
    save(model.eval(), folder / "run", thresholds=(0.5, 0.6, 0.55))
    model = load(folder / "run")
    textures(folder / "data" / "val", pictures)
    document = {"images": [], "annotations": [], "categories": [{"id": n, "name": c} for n, c in enumerate("abc")]}
    answers = Predictor(model, device="cpu", threshold=0.0).predict(str(folder / "data" / "val"))
    for number, answer in enumerate(answers):
        name = answer.name.rpartition("/")[2]
        document["images"].append({"id": number, "file_name": name, "height": 57, "width": 75})
        best = answer.target.scores.argsort(descending=True)[:6]
        for box, of in zip(answer.target.boxes[best].tolist(), answer.target.classes[best].tolist()):
            left, top, right, bottom = box
            sides = [left, top, max(right - left, 1), max(bottom - top, 1)]
            one = {"id": len(document["annotations"]) + 1, "image_id": number, "category_id": of, "iscrowd": 0}
            document["annotations"].append(one | {"bbox": sides, "area": sides[2] * sides[3]})
    (folder / "data" / "annotations").mkdir()
    (folder / "data" / "annotations" / "instances_val.json").write_text(json.dumps(document))
    return model, folder / "data"
