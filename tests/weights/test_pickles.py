"""The one place that opens pickles: tensors come out, and nothing runs, whatever is in the file."""

import argparse
import ast
import inspect
import io
import os
import pickle
import random
import struct
import tarfile
import warnings
import zipfile

import numpy
import pytest
import torch
from torch import nn

from patchform.errors import ModelFileError, UsageError
from patchform.weights import pickles, sources
from patchform.weights.pickles import choose, read_pickle

STATE = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3)}
ZIP, LEGACY = {}, {"_use_new_zipfile_serialization": False}


class Runs:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch {self.canary}",)


def equal(one, other):
    return list(one) == list(other) and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def put(path, content, **options):
    torch.save(content, path, **options)
    return path


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_tensors_come_out_by_parts(tmp_path, form):
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    content = {
        "model": STATE,
        "ema": {"module": layer.state_dict(), "decay": 0.9},
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "best": torch.tensor(0.5),
    }
    found = read_pickle(put(tmp_path / "x.pth", content, **form))
    assert list(found.parts) == ["", "model", "ema.module"]
    assert equal(found.parts[""], {"best": torch.tensor(0.5)})
    assert equal(found.parts["model"], STATE)
    assert equal(found.parts["ema.module"], layer.state_dict())
    assert not any(t.requires_grad for part in found.parts.values() for t in part.values())
    assert found.ignored == ("epoch", "ema.decay", "optimizer.state", "optimizer.param_groups")
    bare = read_pickle(put(tmp_path / "bare", {key: nn.Parameter(tensor) for key, tensor in STATE.items()}, **form))
    assert equal(choose(bare.parts), STATE)
    assert bare.ignored == ()


def test_a_tensor_takes_no_more_memory_than_it_has_numbers(tmp_path):
    large = torch.arange(1000.0)
    content = {"part": large[3:5], "turned": torch.ones(2, 3).t(), "wide": torch.ones(1).expand(4), "conj": None}
    content["conj"] = torch.complex(torch.ones(2), torch.ones(2)).conj()
    content |= {"one": torch.ones(7), "nothing": large[:0]}
    content["tied"] = content["one"]
    found = choose(read_pickle(put(tmp_path / "x", content)).parts)
    assert equal(found, content)
    for name in content:
        assert found[name].is_contiguous()
        assert found[name].untyped_storage().nbytes() == found[name].nbytes
    assert not found["conj"].is_conj()
    assert found["one"].data_ptr() == found["tied"].data_ptr()


def test_a_part_is_chosen_by_name_or_because_it_is_the_only_one():
    parts = {"model": STATE, "ema": {"w": torch.ones(1)}}
    assert choose({"x": STATE}) is STATE
    assert choose(parts, "ema") is parts["ema"]
    assert choose({"": STATE}, "") is STATE
    with pytest.raises(UsageError, match=r'2 parts: "model" \(2\), "ema" \(1\); name the part'):
        choose(parts)
    with pytest.raises(UsageError, match=r'no part "modle"; did you mean "model"'):
        choose(parts, "modle")


NUMPY = {
    "best_acc": numpy.float64(71.2),
    "step": numpy.int32(7),
    "done": numpy.bool_(True),
    "name": numpy.str_("run"),
    "when": numpy.datetime64("2024-01-01"),
    "frequencies": numpy.arange(6.0).reshape(2, 3),
    "empty": numpy.zeros((0, 3)),
    "words": numpy.array(["a", "bc"]),
    "mixed": numpy.array([1, None], dtype=object),
    "deep": [{"rng": ("MT19937", numpy.arange(4, dtype=numpy.uint32), 3, 0, 0.0)}],
}


@pytest.mark.parametrize("form", [ZIP, LEGACY])
@pytest.mark.parametrize("core", ["as it is", "of numpy 1"])
def test_what_numpy_puts_beside_weights_does_not_stop_them(tmp_path, form, core, monkeypatch):
    path = put(tmp_path / "x.pth", {"state_dict": STATE, **NUMPY}, **form)
    if core == "of numpy 1":
        data = path.read_bytes()
        if form is ZIP:
            with zipfile.ZipFile(path) as archive:
                entries = {name: archive.read(name) for name in archive.namelist()}
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in entries.items():
                    archive.writestr(name, content.replace(b"numpy._core.", b"numpy.core."))
        else:
            path.write_bytes(data.replace(b"numpy._core.", b"numpy.core."))
    found = read_pickle(path)
    assert list(found.parts) == ["state_dict"]
    assert equal(found.parts["state_dict"], STATE)
    assert {"best_acc", "frequencies", "deep"} <= set(found.ignored)


def test_arrays_are_weights_where_there_are_no_tensors(tmp_path):
    arrays = {
        "a": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        "columns": numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)),
        "other order": numpy.arange(3, dtype=">f4"),
        "half": numpy.ones(2, numpy.float16),
        "count": numpy.array(3),
    }
    found = choose(read_pickle(put(tmp_path / "x.pth", {"model": {**arrays, "epoch": 3}})).parts)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        wanted = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), order="C"))
        assert torch.equal(found[name], wanted)
        assert found[name].dtype == wanted.dtype
        assert found[name].is_contiguous()


def test_arrays_that_lie_are_refused(tmp_path):
    class Lies:
        def __init__(self, shape, code="f4", data=b"1234"):
            self.parts = shape, numpy.dtype(code), data

        def __reduce__(self):
            shape, kind, data = self.parts
            make, arguments, _ = numpy.zeros(1).__reduce__()
            return make, arguments, (1, shape, kind, False, data)

    for shape in ((1 << 40,), (-1,), ("a",), (2,)):
        path = put(tmp_path / "x.pth", {"a": Lies(shape)})
        with pytest.raises(ModelFileError, match="nothing of it was executed"):
            read_pickle(path)
    assert torch.equal(choose(read_pickle(put(tmp_path / "x.pth", {"a": Lies((1,))})).parts)["a"].view(torch.uint8),
                       torch.tensor(list(b"1234"), dtype=torch.uint8))  # fmt: skip


def test_the_refusal_says_how_a_file_is_made_that_is_read(tmp_path):
    path = put(tmp_path / "x.pth", nn.Linear(2, 2))
    with pytest.raises(ModelFileError, match=r'torch\.save\(model\.state_dict\(\), "weights\.pth"\)'):
        read_pickle(path)


# ------------------------------------------------------------------------------------------------- nothing is executed


def hidden(content):
    """The content in a state dict's clothes."""
    return {"model": {"a": torch.ones(2), "b": [{"c": content}]}}


@pytest.mark.parametrize("wrap", [lambda content: content, hidden])
@pytest.mark.parametrize("form", [ZIP, LEGACY, "plain", "protocol 4"])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, monkeypatch, form, wrap):
    canary, path = tmp_path / "canary", tmp_path / "x.pth"
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # flips the default, and must flip nothing here
    evil = wrap(Runs(canary))
    if isinstance(form, dict):
        torch.save(evil, path, **form)
    else:
        evil = Runs(canary) if form == "plain" else evil
        path.write_bytes(pickle.dumps(evil, protocol=2 if form == "plain" else 4))
    with pytest.raises(ModelFileError) as caught:
        read_pickle(path)
    assert "nothing of it was executed" in str(caught.value)
    assert form == "protocol 4" or "it names posix.system" in str(caught.value)
    assert caught.value.exit_code == 4
    assert str(caught.value).isprintable()
    for other in ("weights_only", "add_safe_globals", "trust"):  # no advice on how to run it
        assert other not in str(caught.value)
    with pytest.raises(ModelFileError, match="patchform weights convert"):
        sources.read(path)
    assert not canary.exists()

    if isinstance(form, dict):  # the control: it was armed
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert canary.exists()


def test_the_only_call_says_what_it_means():
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(pickles))) if isinstance(node, ast.Call)]
    (load,) = (call for call in calls if ast.unparse(call.func) == "torch.load")
    assert {word.arg: ast.unparse(word.value) for word in load.keywords}["weights_only"] == "True"


# ---------------------------------------------------------------------------------------------------- what is refused


def saved(content, **form):
    return lambda path: put(path, content, **form)


def cut(make):
    def made(path):
        data = make(path).read_bytes()
        path.write_bytes(data[: len(data) * 2 // 3])
        return path

    return made


def rewritten(change, compression=zipfile.ZIP_STORED, times=1):
    """A checkpoint whose entries went through `change(name, data)`."""

    def make(path):
        torch.save({"a": torch.arange(4.0)}, path)
        with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w", compression) as new:
            for name in old.namelist() * times:
                new.writestr(name, change(name, old.read(name)))
        return path

    return make


def claim(name, data):
    """The tensor and its storage claim 2^28 numbers and not 4."""
    if not name.endswith("data.pkl"):
        return data
    assert data.count(b"K\x04t") == data.count(b"K\x04\x85") == 1
    giant = b"J" + struct.pack("<i", 1 << 28)
    return data.replace(b"K\x04t", giant + b"t").replace(b"K\x04\x85", giant + b"\x85")


def swollen(name, data):
    return bytes(100_000_000) if name.endswith("data/0") else data


def script(path):
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(nn.Linear(2, 2)).save(path)
    return path


def tar(name):
    def make(path):
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
            for entry in (name, "storages", "tensors", "pickle"):
                archive.addfile(tarfile.TarInfo(entry), io.BytesIO())
        return path

    return make


def written(data):
    def make(path):
        path.write_bytes(data)
        return path

    return make


def arrays(path):
    with open(path, "wb") as file:
        numpy.savez(file, a=numpy.ones(3))
    return path


def pipe(path):
    os.mkfifo(path)
    return path


ITSELF = {"a": torch.ones(1)}
ITSELF["again"] = ITSELF
MANY = {"a": torch.ones(1)}
for _ in range(14):
    MANY = {"x": MANY, "y": MANY, "z": MANY}
SPOILED = {
    "settings as an object": (saved({"m": STATE, "args": io.BytesIO()}), "it names _io.BytesIO"),
    "a whole model": (saved(nn.Linear(2, 2)), r"it names torch.nn.modules.linear.Linear"),
    "TorchScript": (script, "TorchScript"),
    "cut": (cut(saved(STATE)), "a damaged archive"),
    "cut, legacy": (cut(saved({"a": torch.ones(99)}, **LEGACY)), "not opened: unexpected EOF"),
    "more claimed than there is": (rewritten(claim), "a pickle that is not opened"),
    "bomb of zeros": (rewritten(swollen, zipfile.ZIP_DEFLATED), "it would unpack to 1000"),
    "bomb of a view": (saved({"a": torch.ones(4).expand(10**9, 4)}), "its tensors are of 16000000000 bytes"),
    "bomb of many": (saved({str(i): torch.ones(1000).expand(1000, 1000) for i in range(20)}), "are of 80000000 bytes"),
    "entries twice": (rewritten(lambda name, data: data, times=2), "names occur twice"),
    "in itself": (saved(ITSELF), "more than 16 levels"),
    "many from few": (saved(MANY), "or 65536 entries"),
    "one path twice": (saved({"a.b": STATE, "a": {"b": STATE}}), 'two parts are called "a.b"'),
    "name with an escape": (saved({"a\x1b[2J": torch.ones(1)}), r"cannot be printed: 'a\\x1b"),
    "sparse": (saved({"a": torch.ones(2).to_sparse()}), "a is not a dense tensor"),
    "without numbers": (saved({"a": torch.ones(2, device="meta")}), "a is not a dense tensor"),
    "one tensor": (saved(torch.ones(2)), "no tensors with names"),
    "a list": (saved([torch.ones(2)]), "no tensors with names"),
    "numbers for names": (saved({0: torch.ones(2)}), "no tensors with names"),
    "nothing": (saved({}), "no tensors with names"),
    "tar": (tar("sys_info"), "not a checkpoint of torch.save"),
    "tar that begins as a pickle": (tar("\x80\x02"), "legacy .tar format"),
    "npz": (arrays, "not a checkpoint of torch.save"),
    "empty": (written(b""), "not a checkpoint of torch.save"),
    "text": (written(b"text"), "not a checkpoint of torch.save"),
    "two bytes": (written(b"\x80\x02"), "not opened"),
    "protocol 0": (written(b"cposix\nsystem\n(S'false'\ntR."), "not a checkpoint of torch.save"),
    "pipe": (pipe, "not a regular file"),
    "absent": (lambda path: path, "no such file"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", SPOILED)
def test_what_is_spoiled_is_refused_in_one_line(tmp_path, name):
    make, told = SPOILED[name]
    path = make(tmp_path / "x.pth")
    with pytest.raises(ModelFileError, match=told) as caught:
        read_pickle(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable()
    assert list(tmp_path.iterdir()) == ([path] if path.exists() else [])


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_only_one_kind_of_error_comes_out_of_flipped_bits(tmp_path, form):
    data = put(tmp_path / "x", {"model": STATE, "epoch": 3}, **form).read_bytes()
    dice, refused = random.Random(0), 0
    for _ in range(150):
        spoiled = bytearray(data)
        spoiled[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        (tmp_path / "x").write_bytes(spoiled)
        try:
            read_pickle(tmp_path / "x")
        except ModelFileError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize("form", [ZIP, LEGACY])
def test_the_options_of_a_training_script_are_passed_over(tmp_path, form):
    options = argparse.Namespace(lr=0.1, model="vit", nested=argparse.Namespace(depth=2))
    found = read_pickle(put(tmp_path / "x.pth", {"model": STATE, "args": options}, **form))
    assert list(found.parts) == ["model"]
    assert "args" in found.ignored
    canary = tmp_path / "canary"
    hidden = {"model": STATE, "args": argparse.Namespace(lr=Runs(canary))}
    with pytest.raises(ModelFileError, match="it names"):
        read_pickle(put(tmp_path / "y.pth", hidden, **form))
    assert not canary.exists()
