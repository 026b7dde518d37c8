"""Weights from files of others: what is whole is read bit for bit, and everything else is refused in one line."""

import contextlib
import io
import json
import os
import struct
import tracemalloc
import zipfile

import numpy
import pytest
import torch
from safetensors.torch import save_file

from patchform.errors import ModelFileError
from patchform.model import build_model, save
from patchform.records import Preprocessing
from patchform.weights import files, sources
from patchform.weights.sources import DESCRIPTION, INDEX, WEIGHTS, read

TENSORS = {"a.weight": torch.randn(3, 2), "a.bias": torch.randn(3).bfloat16(), "steps": torch.tensor(7)}


def equal(one, other):
    return list(one) == list(other) and all(
        t.dtype == other[name].dtype and torch.equal(t, other[name]) for name, t in one.items()
    )


def sharded(folder, places=None, size=None, name="model" + INDEX):
    """Two shards and their index."""
    folder.mkdir(exist_ok=True)
    one, two = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"
    save_file({"a.weight": TENSORS["a.weight"]}, folder / one)
    save_file({key: TENSORS[key] for key in ("a.bias", "steps")}, folder / two)
    places = {"a.weight": one, "a.bias": two, "steps": two} | (places or {})
    places = {key: place for key, place in places.items() if place is not None}
    text = json.dumps({"metadata": {"total_size": size or 24 + 6 + 8}, "weight_map": places})
    (folder / name).write_text(text)
    return folder


def run_folder(folder):
    model = build_model(
        "classification",
        backbone="vit/nano",
        head="linear",
        classes=("b", "a", "é"),
        preprocessing=Preprocessing(size=(32, 32)),
    )
    save(model, folder)
    return model


def npy(array, **options):
    file = io.BytesIO()
    numpy.lib.format.write_array(file, array, **options)
    return file.getvalue()


def packed(path, entries, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


# ------------------------------------------------------------------------------------------------------- what is read


def test_safetensors_are_read_whatever_they_are_called(tmp_path):
    for name in ("x.safetensors", "x.bin", "x"):
        save_file(TENSORS, tmp_path / name, {"format": "pt"})
        found = read(tmp_path / name)
        assert equal(found.tensors, {key: TENSORS[key] for key in found.tensors})
        assert len(found.tensors) == 3
        assert (found.classes, found.metadata, found.own, found.head) == ((), {"format": "pt"}, False, "")


@pytest.mark.parametrize("start", [b"{", b"\x80\x02", b"\x80\x04", b" ", b"<"])
def test_a_header_length_that_looks_like_another_format_is_still_safetensors(tmp_path, start):
    length = int.from_bytes(start, "little")
    body = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    while length < len(body):
        length += 1 << 8 * len(start)
    data = struct.pack("<Q", length) + body.ljust(length) + struct.pack("<f", 2.5)
    assert data.startswith(start)
    (tmp_path / "x").write_bytes(data)
    assert read(tmp_path / "x").tensors["a"].item() == 2.5


def test_a_folder_is_read_by_what_it_holds(tmp_path):
    sharded(tmp_path / "many")
    for path in (tmp_path / "many", tmp_path / "many" / ("model" + INDEX)):
        found = read(path)
        assert equal(found.tensors, TENSORS)
        assert found.metadata == {"total_size": "38"}
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    (tmp_path / "one" / "pytorch_model.bin").write_bytes(b"\x80\x02")
    save_file(TENSORS, tmp_path / "one" / "model.safetensors")
    assert len(read(tmp_path / "one").tensors) == 3


def test_shards_as_their_hub_writes_them(tmp_path):
    hub = pytest.importorskip("huggingface_hub")
    state = {f"layers.{i}.weight": torch.randn(4, 5) for i in range(5)}
    hub.save_torch_state_dict(state, tmp_path, max_shard_size=200)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    found = read(tmp_path).tensors
    assert equal({name: found[name] for name in state}, state)
    assert len(found) == len(state)


def test_a_model_folder_gives_its_classes_and_head(tmp_path):
    model = run_folder(tmp_path / "run")
    found = read(tmp_path / "run")
    assert equal(dict(sorted(found.tensors.items())), dict(sorted(model.state_dict().items())))
    assert (found.classes, found.own, found.head) == (("b", "a", "é"), True, "linear")


@pytest.mark.parametrize("write", [numpy.savez, numpy.savez_compressed])
def test_arrays_are_read_as_they_are(tmp_path, write):
    bits = torch.randn(4, 2).bfloat16()
    arrays = {
        "Transformer/block_0/kernel": numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)),
        "big": numpy.arange(3, dtype=">f4"),
        "half": numpy.arange(3, dtype="<f2"),
        "scalar": numpy.array(5),
        "empty": numpy.zeros((0, 3), "f4"),
        "bfloat16": bits.view(torch.uint16).numpy().view("V2"),
        "flag": numpy.array([True, False]),
    }
    write(tmp_path / "x.npz", **arrays)
    found = read(tmp_path / "x.npz").tensors
    assert list(found) == list(arrays)
    assert torch.equal(found["bfloat16"], bits)
    for name, array in arrays.items():
        assert tuple(found[name].shape) == array.shape
        assert found[name].is_contiguous()
        assert name == "bfloat16" or found[name].tolist() == array.tolist()
    assert found["big"].dtype == torch.float32


# ---------------------------------------------------------------------------------------------------- what is refused


def written(name, data):
    def make(folder):
        (folder / name).write_bytes(data)
        return folder / name

    return make


def cut(make, keep):
    """A file without its end."""

    def made(folder):
        path = make(folder)
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * keep)])
        return path

    return made


def whole(folder):
    save_file(TENSORS, folder / "x.safetensors")
    return folder / "x.safetensors"


def header(fields, body=bytes(8), length=None):
    text = fields if isinstance(fields, bytes) else json.dumps(fields).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def entry(start, end, shape=(1,)):
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}


def archive(entries, compression=zipfile.ZIP_STORED):
    return lambda folder: packed(folder / "x.npz", entries, compression)


GOOD = ("a.npy", npy(numpy.ones(3)))


def bomb(folder):
    """160 MB of zeros in 160 kB, written without having them in memory."""
    start = npy(numpy.zeros(1)).replace(b"(1,), }       ", b"(20000000,), }")
    with zipfile.ZipFile(folder / "x.npz", "w", zipfile.ZIP_DEFLATED) as packer, packer.open("a.npy", "w") as file:
        file.write(start[:-8])
        for _ in range(160):
            file.write(bytes(1_000_000))
    return folder / "x.npz"


def lying(folder):
    """The same, and it says that it is small."""
    data = bomb(folder).read_bytes()
    assert data.count(struct.pack("<I", 160_000_128)) == 2
    (folder / "x.npz").write_bytes(data.replace(struct.pack("<I", 160_000_128), struct.pack("<I", 136)))
    return folder / "x.npz"


def damaged_run(folder):
    run_folder(folder / "run")
    data = bytearray((folder / "run" / WEIGHTS).read_bytes())
    data[-5] ^= 4
    (folder / "run" / WEIGHTS).write_bytes(data)
    return folder / "run"


def described(**changes):
    """A model folder that says something else, under a manifest that is right."""

    def make(folder):
        run_folder(folder / "run")
        description = files.read_json(folder / "run" / DESCRIPTION) | changes
        tensors = files.read_tensors(folder / "run" / WEIGHTS)
        with files.atomic_folder(folder / "run") as place:
            files.write_tensors(place / WEIGHTS, tensors)
            files.write_json(place / DESCRIPTION, description)
        return folder / "run"

    return make


def shards(spoil=None, **options):
    def make(folder):
        sharded(folder / "many", **options)
        if spoil:
            spoil(folder / "many")
        return folder / "many"

    return make


def leave(name):
    """The second shard is moved out of the folder, and a link stays."""

    def spoil(folder):
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return spoil


def fifo(folder):
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def with_number(value):
    def make(folder):
        save_file({"fine": torch.ones(2), "bad": torch.tensor([0.0, value, value])}, folder / "x.safetensors")
        return folder / "x.safetensors"

    return make


def folder_with(*names):
    def make(folder):
        (folder / "all").mkdir()
        for name in names:
            save_file({"a": torch.ones(1)}, folder / "all" / name)
        return folder / "all"

    return make


SECOND = "model-00002-of-00002.safetensors"
PICKLE = b"\x80\x02cposix\nsystem\nX\x05\x00\x00\x00false\x85R."
SPOILED = {
    # safetensors
    "safetensors cut in its numbers": (cut(whole, 0.95), "damaged safetensors"),
    "safetensors cut in its header": (cut(whole, 0.5), "cut off"),
    "safetensors cut to a few bytes": (cut(whole, 0.01), "not weights, or cut off"),
    "header longer than the file": (written("x", header({}, length=5000)), "cut off: 18 bytes do not hold .* 5000"),
    "header of 2^63": (written("x", header({}, length=2**63)), "not weights, or cut off"),
    "header above the limit": (written("x", header({}, length=files.LARGEST_JSON + 1)), "not a safetensors file"),
    "header that is not JSON": (written("x", header(b"{" * 50)), "not valid JSON"),
    "duplicate key": (written("x", header(b'{"a":1,"a":1}'.replace(b"1", json.dumps(entry(0, 8)).encode()))), "twice"),
    "overlap": (written("x", header({"a": entry(0, 8, [2]), "b": entry(4, 8)})), "damaged safetensors"),
    "hole": (written("x", header({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12))), "damaged safetensors"),
    "overflow": (written("x", header({"a": entry(0, 8, [2**62, 2**62])})), "damaged safetensors"),
    "overflow beside a zero": (written("x", header({"a": entry(0, 0, [0, 2**63])}, b"")), "damaged safetensors"),
    "metadata not of text": (written("x", header({"__metadata__": {"a": 1}}, b"")), "damaged safetensors"),
    "no tensors": (written("x", header({}, b"")), "no tensors"),
    "name with an escape": (written("x", header({"a\x1b[2J\n": entry(0, 8, [2])})), r"cannot be printed: 'a\\x1b"),
    "NaN": (with_number(float("nan")), r"1 of 2 tensors hold NaN or infinity: bad \(2 of 3 numbers\)"),
    "infinity": (with_number(-float("inf")), r"1 of 2 tensors hold NaN or infinity: bad \(2 of 3 numbers\)"),
    # model folders
    "flipped bit": (damaged_run, r"not an intact model \(model.safetensors: .*SHA-256"),
    "newer format": (described(format=3), "format 3 is not 2 in .*; use a newer patchform"),
    "older format": (described(format=1), "format 1 is not 2 in .*; use the patchform that wrote it"),
    "format of another kind": (described(format=True), "format True"),
    "classes of numbers": (described(classes=[1, 2, 3]), "classes are not 1.."),
    "architecture of another kind": (described(architecture="vit"), "the architecture has no head"),
    "format with an escape": (described(format="\x1b[2J"), r"format '.x1b"),
    # shards
    "missing shard": (shards(lambda folder: (folder / SECOND).unlink()), f"no such file in .*{SECOND}"),
    "tensor in another shard": (
        shards(places={"steps": "model-00001-of-00002.safetensors"}),
        "1 tensors are in an.*steps",
    ),
    "tensor that the index does not name": (shards(places={"steps": None}), "1 tensors are in an.*or in none: steps"),
    "tensor of a name with an escape": (shards(places={"\x1b": SECOND}), "a tensor's name cannot be printed"),
    "tensor that no shard holds": (shards(places={"ghost": SECOND}), "1 tensors are in an.*or in none: ghost"),
    "index above its folder": (shards(places={"steps": "../x.safetensors"}), "which is not a file beside it"),
    "index with an absolute path": (shards(places={"steps": "/etc/passwd"}), "which is not a file beside it"),
    "index of the folder": (shards(places={"steps": ".."}), "which is not a file beside it"),
    "index with no name": (shards(places={"steps": ""}), "which is not a file beside it"),
    "index with an escape": (shards(places={"steps": "a\x1b"}), "which is not a file beside it"),
    "index of itself": (shards(places={"steps": "model" + INDEX}), "no.* weights"),
    "index of a number": (shards(places={"steps": 1}), "weight_map is missing"),
    "shard that leads out": (shards(leave(SECOND)), "a link that leads out of the folder"),
    "shard that is a pickle": (shards(lambda folder: (folder / SECOND).write_bytes(PICKLE)), "a pickle.*convert"),
    "shard that is cut": (shards(lambda folder: cut(lambda f: f / SECOND, 0.95)(folder)), "damaged safetensors"),
    "other total size": (shards(size=39), "38 bytes of tensors are not the 39"),
    "shards without an index": (shards(lambda folder: (folder / ("model" + INDEX)).unlink()), "without their index"),
    "two indices": (shards(lambda folder: sharded(folder, name="other" + INDEX)), "several weights: .model"),
    "JSON of another kind": (written("x", b'\n{"a": 1}'), "weight_map is missing"),
    "JSON cut": (written("x.safetensors.index.json", b'{"weight_map": {'), "not valid JSON"),
    # archives
    "npz of objects": (archive([("a.npy", npy(numpy.array([{}]), allow_pickle=True))]), "'a' is no array .*objects"),
    "npz of text": (archive([("a.npy", npy(numpy.array(["x"])))]), "'a' is no array"),
    "npz of records": (archive([("a.npy", npy(numpy.zeros(2, "i4,f4")))]), "'a' is no array"),
    "npz of NaN": (archive([("a.npy", npy(numpy.array([1, numpy.nan])))]), "NaN or infinity: a"),
    "npz cut": (cut(archive([GOOD]), 0.7), "damaged archive"),
    "npz with an array cut": (archive([("a.npy", GOOD[1][:-1])]), "23 bytes do not hold"),
    "npz with an array too long": (archive([("a.npy", GOOD[1] + b"\0")]), "25 bytes do not hold"),
    "npz with a giant shape": (
        archive([("a.npy", GOOD[1].replace(b"(3,), }        ", b"(3000000000,),}"))]),
        "do not hold",
    ),
    "npz with shapes below zero": (
        archive([("a.npy", GOOD[1].replace(b"(3,), }   ", b"(-3,-1), }"))]),
        "'a' is no array",
    ),
    "npz of nothing": (archive([("a.npy", b"")]), "'a' is no array"),
    "npz bomb": (bomb, "unpack to 160000128 bytes"),
    "npz bomb that lies": (lying, "damaged archive"),
    "npz with a name twice": (archive([GOOD, GOOD]), "names occur twice: 'a.npy'"),
    "npz that leads out": (archive([("../a.npy", GOOD[1])]), "lead elsewhere"),
    "npz with an absolute name": (archive([("/a.npy", GOOD[1])]), "lead elsewhere"),
    "npz with other files": (archive([GOOD, ("readme.txt", b"")]), "other things than arrays: 'readme.txt'"),
    "npz of too many": (archive([(f"{i}", b"") for i in range(sources.MOST_ENTRIES + 1)]), "more than 65536"),
    "npz packed in another way": (archive([GOOD], zipfile.ZIP_LZMA), "compression"),
    "npz without arrays": (archive([]), "an empty or divided zip"),
    # what is something else
    "pickle, legacy": (written("x.safetensors", PICKLE), "a pickle, which can hold code.*patchform weights convert"),
    "pickle, zip": (archive([("x/data.pkl", PICKLE), ("x/data/0", b"")]), "a pickle.*patchform weights convert"),
    "pickle among arrays": (archive([GOOD, ("data.pkl", PICKLE)]), "a pickle.*patchform weights convert"),
    "pickle, protocol 0": (written("x", b"cposix\nsystem\n(S'false'\ntR."), "not weights"),
    "empty": (written("x", b""), "an empty file"),
    "text": (written("x.safetensors", b"weights are at example.org\n"), "not weights, or cut off; name|not weights"),
    "page": (written("x.safetensors", b"\n<!DOCTYPE html><html>404"), "a web page"),
    "pointer": (written("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid"), "Git LFS"),
    "7-Zip": (written("x.safetensors", b"7z\xbc\xaf\x27\x1c\x00\x04"), "a 7-Zip archive.*unpack"),
    "one array": (written("x.npz", GOOD[1]), "one array without a name"),
    "tar": (written("x", b"storages".ljust(257, b"\0") + b"ustar\0"), "not weights"),
    "pipe": (fifo, "not a regular file"),
    "device": (lambda folder: type(folder)("/dev/zero"), "not a regular file"),
    "absent": (lambda folder: folder / "absent", "no such file"),
    "address": (lambda folder: type(folder)("https://example.org/x.safetensors"), "no such file"),
    "name too long": (lambda folder: folder / ("x" * 5000), "cannot be read"),
    "name with a zero": (lambda folder: folder / "x\0", "cannot be read"),
    "empty folder": (folder_with(), "neither model.json nor safetensors"),
    "folder of two": (folder_with("a.safetensors", "b.safetensors"), "several weights: .a.safetensors, b.safetensors"),
    "folder of pickles": (folder_with("pytorch_model.bin"), "a pickle.*pytorch_model.bin"),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", SPOILED)
def test_what_is_spoiled_is_refused_in_one_line(tmp_path, name):
    make, told = SPOILED[name]
    path = make(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    with pytest.raises(ModelFileError, match=told) as caught:
        read(path)
    assert caught.value.exit_code == 4
    assert str(path) in str(caught.value)
    assert str(caught.value).isprintable() or "\0" in str(path)
    assert sorted(tmp_path.rglob("*")) == there


@pytest.mark.parametrize("make", [bomb, lying])
def test_a_bomb_takes_no_memory(tmp_path, make):
    path = make(tmp_path)

    def peak(act):
        tracemalloc.start()
        with contextlib.suppress(ModelFileError, zipfile.BadZipFile):
            act()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak(lambda: read(path)) < 4e6
    assert peak(lambda: zipfile.ZipFile(path).read("a.npy")) > 1.5e8  # the control: so it goes otherwise


def test_a_loop_of_links_is_refused(tmp_path):
    (tmp_path / "x").symlink_to(tmp_path / "x")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read(tmp_path / "x")


def test_every_flipped_bit_of_a_header_is_refused_or_seen(tmp_path):
    """Nothing but a ModelFileError comes out, and no two headers mean the same."""
    save_file({"a.1": torch.ones(2), "b": torch.ones(1, dtype=torch.int32)}, tmp_path / "x", {"k": "v"})
    data = (tmp_path / "x").read_bytes()
    length = 8 + struct.unpack("<Q", data[:8])[0]

    def seen():
        found = read(tmp_path / "x")
        return {name: (t.dtype, t.shape, t.tolist()) for name, t in found.tensors.items()}, dict(found.metadata)

    right, refused, different = seen(), 0, 0
    for bit in range(8 * length):
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x").write_bytes(spoiled)
        try:
            different += seen() != right
        except ModelFileError:
            refused += 1
    assert refused + different == 8 * length
    assert refused > different > 0


@pytest.mark.parametrize("write", [numpy.savez, numpy.savez_compressed])
def test_a_flipped_bit_of_an_archive_is_refused_or_without_effect(tmp_path, write):
    write(tmp_path / "x.npz", a=numpy.arange(5.0), b=numpy.ones((2, 2), "f4"))
    data = (tmp_path / "x.npz").read_bytes()
    right = read(tmp_path / "x.npz").tensors
    refused = 0
    bits = range(0, 8 * len(data), 7)
    for bit in bits:
        spoiled = bytearray(data)
        spoiled[bit // 8] ^= 1 << bit % 8
        (tmp_path / "x.npz").write_bytes(spoiled)
        try:
            assert equal(read(tmp_path / "x.npz").tensors, right), bit
        except ModelFileError:
            refused += 1
    assert refused > len(bits) / 2


@pytest.mark.parametrize("name", ["x.safetensors", "x.npz"])
def test_every_cut_is_refused(tmp_path, name):
    if name == "x.npz":
        numpy.savez(tmp_path / name, a=numpy.arange(3.0))
    else:
        save_file(TENSORS, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    for length in range(len(data)):
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(ModelFileError):
            read(tmp_path / name)
