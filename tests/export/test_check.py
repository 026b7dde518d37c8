"""A file that is not what its model is, is always found: faults are planted into one that is proved."""

import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from onnx import TensorProto, numpy_helper
from planting import SIDE, Planted, classifier, detector, gather, node

from patchform import cli
from patchform.errors import ModelFileError
from patchform.export import numbers, writing
from patchform.export.check import CheckOptions, _Check
from patchform.export.options import ExportOptions
from patchform.export.pictures import of_run
from patchform.export.proving import prove, refuse, report_path
from patchform.export.writing import export_model
from patchform.model import Model
from patchform.outputs import LabelOutputs
from patchform.runtime.opening import open_model
from patchform.tasks.base import task_of
from patchform.tasks.classification import Classification


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A model, its pictures, and an ONNX file of it."""
    folder = tmp_path_factory.mktemp("exported")
    model, data = classifier(folder)
    file = folder / "run" / "model.onnx"
    export_model(model, file, ExportOptions())
    return model, of_run(model, task_of(model.architecture, model.head), None, data), file


def proved(exported, path, **options):
    model, listing, _ = exported
    return prove(path, model, listing, CheckOptions(**options))


@pytest.fixture
def planted(exported, tmp_path):
    """The file, to plant a fault into; called with what to plant it gives the faults that are found."""

    def plant(change, **options):
        file = Planted(exported[2])
        change(file)
        report = proved(exported, file.save(tmp_path / "model.onnx"), **options)
        assert not report.proof.proved
        with pytest.raises(ModelFileError):
            refuse(report)
        return "\n".join(report.proof.faults)

    return plant


def test_the_intact_file_is_proved(exported):
    report = proved(exported, exported[2])
    proof = report.proof
    assert proof.proved
    assert not proof.faults
    assert not proof.warnings
    assert len(proof.trials) == 20
    assert max(trial.agreement.worst for trial in proof.trials) < 1e-5
    assert all(trial.agreement.different == 0 for trial in (*proof.trials, proof.path, proof.images))
    assert (proof.metric, proof.before["top1"], proof.after["top1"], proof.pictures) == ("top1", 1, 1, 40)
    assert proof.control.worst > 1e-3  # so a much smaller fault would have been seen
    refuse(report)
    told = json.loads(report_path(exported[2]).read_text())
    assert told["proved"]
    assert told["runtime"].startswith("onnxruntime (cpu) 1.")
    assert "proved in" in "\n".join(report.lines())


def blue_first(file):
    file.after_input("images", [gather("images", "order", "planted", 1)], {"order": np.array([2, 1, 0])})


def top_left(file):
    """Right at the size of the model alone: more is cut off."""
    ends = {"starts": [0, 0], "ends": [SIDE, SIDE], "axes": [2, 3]}
    constants = {name: np.array(values) for name, values in ends.items()}
    file.after_input("images", [node("Slice", ["images", *ends], ["planted"])], constants)


def of_three(file):
    """Right for three pictures alone."""
    file.before_output("scores", [node("Reshape", ["whole", "three"], ["scores"])], {"three": np.array([3, 4])})


def first_alone(file):
    """All pictures are taken for the first."""
    constants = {"zero": np.array([0]), "one": np.array(1.0, np.float32)}
    nodes = [
        gather("whole", "zero", "first", 0),
        node("Mul", ["whole", "nothing"], ["none"]),
        node("Add", ["none", "first"], ["scores"]),
    ]
    file.before_output("scores", nodes, constants | {"nothing": np.array(0.0, np.float32)})


def other_classes(file):
    file.before_output("scores", [gather("whole", "order", "scores", 1)], {"order": np.array([1, 0, 2, 3])})


def another_chosen(file):
    """The scores are right, the decision is shifted."""
    file.before_output("chosen", [gather("whole", "order", "chosen", 1)], {"order": np.array([1, 2, 3, 0])})


def second_best(file):
    file.before_output("top_classes", [gather("whole", "order", "top_classes", 1)], {"order": np.array([1, 0, 2, 3])})


def too_few(file):
    file.before_output("top_scores", [gather("whole", "order", "top_scores", 1)], {"order": np.array([0, 1])})


INSIDE = {
    "another mean": (lambda file: file.constant("model.mean", lambda mean: mean[::-1]), "scores differ by"),
    "a mean a little off": (lambda file: file.constant("model.mean", lambda mean: mean + 0.004), "scores differ by"),
    "another deviation": (lambda file: file.constant("model.std", lambda std: std * 1.01), "scores differ by"),
    "blue first": (blue_first, "scores differ by"),
    "a graph for one size": (top_left, "at 3 x 43x25"),
    "a graph for three pictures": (of_three, "at 1 x 32x32"),
    "a graph for one picture": (first_alone, "at 3 x 32x32"),
    "other classes": (other_classes, "scores differ by"),
    "another decision": (another_chosen, "images are decided otherwise at 3 x 32x32"),
    "sigmoid": (lambda file: file.operation("Softmax", "Sigmoid"), "scores differ by"),
    "a weight": (lambda file: file.constant("head.classifier.weight", lambda w: w * 1.01), "scores differ by"),
    "a bias": (lambda file: file.constant("blocks.1.norm2.weight", lambda w: w * 1.01), "scores differ by"),
    "another order": (second_best, "the output top_classes"),
    "too few places": (too_few, "the output top_scores is missing, or of another shape at 3 x 32x32"),
}


@pytest.mark.parametrize("name", INSIDE)
def test_a_fault_in_the_graph_is_found(planted, name):
    change, told = INSIDE[name]
    assert told in planted(change)


def said(**changes):
    """What a file says of itself, changed."""

    def change(text):
        values = json.loads(text)
        for name, value in changes.items():
            section, _, key = name.rpartition("__")
            (values[section] if section else values)[key] = value
        return json.dumps(values)

    return change


WORDS = {
    "classes": (said(classes=["a", "c", "b", "d"]), "its classes are ('a', 'c', 'b', 'd'), the model's are"),
    "ids": (said(ids=[3, 7, 9, 12]), "its ids are (3, 7, 9, 12)"),
    "thresholds": (
        said(thresholds=[0.4, 0.5, 0.5, 0.5]),
        "its thresholds are (0.4, 0.5, 0.5, 0.5), the model's are None",
    ),
    "labels": (said(task_options__labels="multi"), "its task_options"),
    "size": (said(preprocessing__size=[36, 36]), "its preprocessing.size are (36, 36), the model's are (32, 32)"),
    "interpolation": (said(preprocessing__interpolation="bilinear"), "its preprocessing.interpolation"),
    "resize": (said(preprocessing__resize="crop"), "its preprocessing.resize"),
    "mean": (said(preprocessing__mean=[0.5, 0.5, 0.5]), "its preprocessing.mean"),
}


@pytest.mark.parametrize("name", WORDS)
def test_a_fault_in_what_it_says_is_found(planted, name):
    change, told = WORDS[name]
    assert told in planted(lambda file: file.note(change))


def resizing(**attributes):
    """Pictures are resized inside, by the runtime's own operator."""

    def change(file):
        constants = {
            "side": np.array([SIDE, SIDE]),
            "black": np.array(0.0, np.float32),
            "white": np.array(255.0, np.float32),
        }
        usual = {"mode": "cubic", "cubic_coeff_a": -0.5, "exclude_outside": 1, "antialias": 1, "axes": [2, 3]}
        nodes = [
            node("Cast", ["images"], ["floating"], to=TensorProto.FLOAT),
            node("Resize", ["floating", "", "", "side"], ["resized"], **{**usual, **attributes}),
            node("Clip", ["resized", "black", "white"], ["clipped"]),
            node("Round", ["clipped"], ["rounded"]),
            node("Cast", ["rounded"], ["planted"], to=TensorProto.UINT8),
        ]
        file.after_input("images", nodes, constants)
        file.note(said(resizes=True))

    return change


INSIDE_RULES = {
    "rounded at the end alone": {},
    "not antialiased": {"antialias": 0},
    "another kernel": {"mode": "linear"},
    "another cubic": {"cubic_coeff_a": -0.75},
    "half a pixel off": {"coordinate_transformation_mode": "asymmetric"},
}


@pytest.mark.parametrize("name", INSIDE_RULES)
def test_a_fault_in_resizing_inside_is_found(planted, name):
    assert "differ" in planted(resizing(**INSIDE_RULES[name]))


@pytest.mark.slow
@pytest.mark.parametrize("other", [{}, {"interpolation": "bilinear"}, {"resize": "crop", "crop_share": 0.9}], ids=str)
def test_a_file_that_resizes_inside_is_proved_unless_it_does_so_by_another_rule(exported, tmp_path, other):
    model, _, _ = exported
    twin = Model(
        model.backbone,
        model.head,
        preprocessing=dataclasses.replace(model.preprocessing, **other),
        **{name: getattr(model, name) for name in ("classes", "architecture", "ids", "thresholds")},
    )
    path = tmp_path / "inside.onnx"
    export_model(twin, path, ExportOptions(resize_inside=True))
    if other:
        file = Planted(path)
        file.note(said(**{f"preprocessing__{name}": getattr(model.preprocessing, name) for name in other}))
        file.save(path)
    proof = proved(exported, path).proof
    assert proof.proved == (not other), proof.faults
    assert bool(proof.faults) == bool(other)


RULES = {
    "not antialiased": {"interpolation": "nearest"},
    "sizes rounded otherwise": {"size": (SIDE - 1, SIDE)},
    "another interpolation": {"interpolation": "bilinear"},
}


@pytest.mark.parametrize("name", RULES)
def test_a_fault_in_how_pictures_are_prepared_is_found(exported, monkeypatch, name):
    """The graph is right and says what is right, and what runs it does something else."""
    model, listing, path = exported
    from patchform.export import proving

    def opened(*arguments):
        file = open_model(*arguments)
        file.preprocessing = dataclasses.replace(file.preprocessing, **RULES[name])
        return file

    monkeypatch.setattr(proving, "open_model", opened)
    report = prove(path, model, listing, CheckOptions())
    assert "through predict" in report.proof.faults[0]
    assert "scores differ by" in report.proof.faults[0]


def test_weights_of_few_bits_lose_too_much(planted):
    def coarse(values):
        step = np.abs(values).max() / 1.5
        return np.round(values / step) * step

    def change(file):
        file.weights(coarse)
        file.note(said(dtype="int8"))

    told = planted(change)
    assert "top1 goes from 100.00 to" in told or "differ by" in told


def test_one_picture_of_forty_is_too_much_for_int8_and_may_be_allowed(exported, planted, tmp_path):
    """The metric counts where numbers may differ: what is allowed is said, and what one picture is worth."""

    def change(file):
        file.constant("head.classifier.bias", lambda bias: bias + np.array([0.4, 0, 0, 0], np.float32))
        file.note(said(dtype="int8"))

    told = planted(change)
    assert "top1 goes from 100.00 to" in told
    assert "0.5 allowed; one of 40 pictures is 2.5 points: give more" in told
    file = Planted(exported[2])
    change(file)
    assert proved(exported, file.save(tmp_path / "allowed.onnx"), allow=100).proof.proved


def test_weights_of_another_run_are_told(exported, tmp_path):
    other, _ = classifier(tmp_path, pictures=4, scale=0.3)
    with pytest.raises(ModelFileError, match="other weights than those of this run") as error:
        prove(exported[2], other, exported[1], CheckOptions())
    assert error.value.exit_code == 4


def test_without_pictures_nothing_is_proved(exported):
    report = prove(exported[2], exported[0], None, CheckOptions())
    assert not report.proof.faults
    assert not report.proof.proved
    assert "there were no pictures" in report.proof.warnings[-1]
    assert len(report.proof.trials) == 20
    refuse(report)


def test_a_model_that_does_not_look_is_told(exported, tmp_path):
    """A check that cannot fail says so."""
    model, data = classifier(tmp_path, scale=0.0)
    listing = of_run(model, task_of(model.architecture, model.head), None, data)
    checking = _Check(open_model(exported[2]), model, listing, CheckOptions())
    checking.control()
    assert "the model hardly looks at these pictures" in checking.proof.warnings[0]


def test_a_file_is_proved_again_by_the_command(exported, planted, tmp_path, capsys):
    _, listing, file = exported
    assert cli.main(["export", "--check", str(file), "--data", str(listing.root)]) == 0
    out = capsys.readouterr().out
    assert "top1      100.00 -> 100.00" in out
    assert "0 of 40 images decided otherwise" in out
    assert cli.main(["export", "--check", str(file), "--data", str(listing.root), "--json", "--images", "8"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["proved"], told["pictures"], told["left_out"]) == (True, 8, 32)
    assert "8 images were compared: too few to prove much" in told["warnings"]
    planted(lambda changed: changed.constant("model.std", lambda std: std * 1.01))
    wrong = ["export", "--check", str(tmp_path / "model.onnx"), "--data", str(listing.root)]
    assert cli.main(wrong) == 2  # it does not lie in a run folder
    assert "name the one: --run RUN" in capsys.readouterr().err
    assert cli.main([*wrong, "--run", str(file.parent)]) == 4
    assert "fault     scores differ by" in capsys.readouterr().out
    assert (tmp_path / "model.onnx").exists()  # it is judged, not removed


def test_without_pictures_the_command_says_so_before_it_begins(exported, tmp_path, capsys):
    run = exported[2].parent
    assert cli.main(["export", str(run), "--out", str(tmp_path / "x.onnx")]) == 2
    err = capsys.readouterr().err
    assert "the run does not say which pictures it was validated on" in err
    assert "--unproved" in err
    assert "making the graph" not in err


@pytest.mark.parametrize(
    ("fault", "code"), [(lambda mean: mean, 0), (lambda mean: mean[::-1], 4)], ids=["none", "mean"]
)
def test_a_file_that_differs_is_not_kept(exported, monkeypatch, tmp_path, capsys, fault, code):
    _, listing, file = exported
    changed = Planted(file)
    changed.constant("model.mean", fault)
    changed.save(tmp_path / "planted")
    monkeypatch.setattr(writing, "_traced", lambda *_: None)

    def written(_, description, __, path, *___):
        shutil.copy(tmp_path / "planted", path)
        return description

    monkeypatch.setattr(writing, "_write", written)
    out = tmp_path / "out" / "model.onnx"
    out.parent.mkdir()
    assert cli.main(["export", str(file.parent), "--data", str(listing.root), "--out", str(out)]) == code
    said = capsys.readouterr()
    if code:
        assert list(out.parent.iterdir()) == []
        assert "E-model: scores differ by" in said.err
        assert "in model.onnx" in said.err
    else:
        assert {path.name for path in out.parent.iterdir()} == {"model.onnx", "model.onnx.check.json"}
        assert "proved on 40 pictures" in said.out


# ------------------------------------------------------------------------------------------------------------ objects


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A detector, its pictures, and an ONNX file of it."""
    folder = tmp_path_factory.mktemp("found")
    model, data = detector(folder)
    file = folder / "run" / "model.onnx"
    export_model(model, file, ExportOptions())
    return model, of_run(model, task_of(model.architecture, model.head), None, data), file


def test_a_detector_is_proved(found):
    proof = proved(found, found[2]).proof
    assert proof.proved, proof.faults
    assert proof.images.agreement.decisions["objects"].all > 500
    for trial in (*proof.trials, proof.path, proof.images):
        assert trial.tied >= trial.agreement.different


def turned(file):
    file.after_input("sizes", [gather("sizes", "order", "planted", 1)], {"order": np.array([1, 0])})


def of_the_input(file):
    """Sizes are those of the input in place of those of the picture."""
    constants = {"two": np.array([2, 3]), "nought": np.array(0)}
    nodes = [
        node("Shape", ["images"], ["whole_shape"]),
        gather("whole_shape", "two", "sides", 0),
        node("Mul", ["sizes", "nought"], ["rows"]),
        node("Add", ["rows", "sides"], ["planted"]),
    ]
    file.after_input("sizes", nodes, constants)


def one_less(file):
    """The last place is never filled."""
    nodes = [node("Where", ["last", "minus", "whole"], ["classes"])]
    last = np.zeros((1, 100), bool)
    last[0, 60:] = True
    file.before_output("classes", nodes, {"last": last, "minus": np.array(-1)})


def other_thresholds(file):
    """The surest are confident, whatever the model's thresholds."""
    nodes = [node("Greater", ["scores", "surely"], ["confident"])]
    for one in file.graph.node:
        one.output[:] = ["unused" if name == "confident" else name for name in one.output]
    file.graph.initializer.append(numpy_helper.from_array(np.array(0.52, np.float32), "surely"))
    file.graph.node.append(nodes[0])


OF_OBJECTS = {
    "height for width": (turned, "objects are decided otherwise"),
    "pixels of the input": (of_the_input, "objects are decided otherwise"),
    "fewer places": (one_less, "the output confident do not follow"),
    "other thresholds": (other_thresholds, "the output confident do not follow"),
    "thresholds": (lambda file: file.note(said(thresholds=[0.5, 0.6, 0.56])), "its thresholds are (0.5, 0.6, 0.56)"),
}


@pytest.mark.parametrize("name", OF_OBJECTS)
def test_a_fault_in_objects_is_found(found, tmp_path, name):
    change, told = OF_OBJECTS[name]
    file = Planted(found[2])
    change(file)
    proof = proved(found, file.save(tmp_path / "model.onnx")).proof
    assert told in "\n".join(proof.faults)


def test_classes_of_equal_scores_have_no_order():
    task, model = Classification(), SimpleNamespace(thresholds=(), classes=tuple("abcdefg"))
    answer = LabelOutputs.of_best(torch.tensor([[1.0, 0.2, 1.0, 0.3, 0.1, 0.05, 0.0]]))
    best = torch.tensor([[1.0, 1.0, 0.3, 0.2, 0.1]])
    for classes, follow in (
        ([0, 2, 3, 1, 4], True),
        ([2, 0, 3, 1, 4], True),
        ([2, 2, 3, 1, 4], False),
        ([0, 2, 1, 3, 4], False),
        ([0, 2, 3, 1, 9], False),
    ):
        named = {"top_scores": best, "top_classes": torch.tensor([classes])}
        assert bool(numbers._underived(task, model, answer, named)) is not follow
