"""Checkpoints with something wrong, through the one door: refused with the reason, and the model stays as it was."""

import io
import json
import os
import pickle
import shutil

import numpy
import pytest
import torch
from reference import randomise
from safetensors.torch import save_file

import patchform as pf
from patchform.errors import ModelFileError
from patchform.loading import export_weights
from patchform.model import build_model, save


class Bomb:
    """Runs a command when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def built(seed=0, **options):
    return randomise(
        build_model(
            "classification", backbone="vit/nano", head="linear", classes=("a", "b", "c"), backbone_options=options
        ),
        seed=seed,
    )


class Spoiled:
    """Writes the checkpoint of a model, with one thing wrong."""

    def __init__(self, folder):
        self.folder, self.marker = folder, folder / "executed"
        self.tensors = export_weights(built(), "timm")

    def file(self, **changes):
        path = self.folder / "w.safetensors"
        tensors = {n: t for n, t in {**self.tensors, **changes}.items() if t is not None}
        save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
        return path

    def cut(self, share):
        path = self.file()
        data = path.read_bytes()
        path.write_bytes(data[: int(share * len(data))])
        return path

    def bytes_of(self, change):
        path = self.file()
        path.write_bytes(change(path.read_bytes()))
        return path

    def run_folder(self, change):
        save(built(), self.folder / "run")
        change(self.folder / "run")
        return self.folder / "run"

    def flipped(self, folder):
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-100] ^= 1
        (folder / "model.safetensors").write_bytes(data)

    def pickled(self, protocol=None):
        path = self.folder / "w.pth"
        if protocol is None:
            torch.save({"model": self.tensors, "extra": Bomb(self.marker)}, path)
        else:
            path.write_bytes(pickle.dumps(Bomb(self.marker), protocol))
        return path

    def arrays(self, **more):
        path = self.folder / "w.npz"
        numpy.savez(path, **more)
        return path

    def index(self, **wrong):
        path, name = self.file(), "model.safetensors.index.json"
        shard = dict.fromkeys(self.tensors, path.name) | wrong
        (self.folder / name).write_text(json.dumps({"metadata": {}, "weight_map": shard}))
        return self.folder / name


def with_header(header):
    return len(header).to_bytes(8, "little") + header


CASES = {
    "a tensor is missing": (lambda s: s.file(**{"norm.weight": None}), "norm.weight is not filled"),
    "a tensor too many": (lambda s: s.file(extra=torch.ones(2)), "extra has no place|no rule for extra"),
    "half a head": (lambda s: s.file(**{"head.bias": None}), "no head.bias"),
    "transposed": (
        lambda s: s.file(**{"head.weight": s.tensors["head.weight"].t()}),
        "suit",
    ),
    "transposed inside": (
        lambda s: s.file(**{"blocks.0.mlp.fc1.weight": s.tensors["blocks.0.mlp.fc1.weight"].t()}),
        r"blocks.0.mlp.fc1.weight \(48, 192\) does not suit",
    ),
    "a head of another size in one tensor": (lambda s: s.file(**{"head.bias": torch.ones(7)}), "one number of classes"),
    "other widths": (lambda s: s.file(**{"norm.weight": torch.ones(40)}), r"norm.weight \(40,\) does not suit"),
    "some names with a prefix": (
        lambda s: s.file(**{"norm.weight": None, "module.norm.weight": torch.ones(48)}),
        "of no known layout",
    ),
    "other patches": (
        lambda s: s.file(**{"patch_embed.proj.weight": torch.ones(48, 3, 4, 4)}),
        "patches of 4 pixels to 8: say",
    ),
    "other channels": (
        lambda s: s.file(**{"patch_embed.proj.weight": torch.ones(48, 4, 8, 8)}),
        "4 channels to 3",
    ),
    "positions of no square": (lambda s: s.file(pos_embed=torch.ones(1, 24, 48)), "name the grid"),
    "whole numbers": (lambda s: s.file(**{"norm.weight": torch.ones(48, dtype=torch.int64)}), "is torch.int64"),
    "not a number": (lambda s: s.file(**{"norm.weight": torch.full((48,), float("nan"))}), "NaN or infinity"),
    "another architecture": (lambda s: s.file(**{f"layers.0.{n}": torch.ones(1) for n in "ab"}), "of no known layout"),
    "cut in the numbers": (lambda s: s.cut(0.9), "damaged"),
    "cut in the header": (lambda s: s.cut(0.001), "not a|damaged|header"),
    "empty": (lambda s: s.bytes_of(lambda data: b""), "empty|no "),
    "a header longer than the file": (lambda s: s.bytes_of(lambda d: (2**40).to_bytes(8, "little") + d[8:]), "."),
    "a header that is no JSON": (lambda s: s.bytes_of(lambda d: with_header(b"{not json}")), "JSON"),
    "one name twice": (lambda s: s.bytes_of(lambda d: with_header(b'{"a":{},"a":{}}')), "twice"),
    "a flipped bit": (lambda s: s.run_folder(s.flipped), "SHA-256"),
    "no manifest": (lambda s: s.run_folder(lambda folder: (folder / "manifest.json").unlink()), "manifest"),
    "a pickle with code": (lambda s: s.pickled(), "weights convert"),
    "a bare pickle with code": (lambda s: s.pickled(4), "weights convert"),
    "arrays of objects": (lambda s: s.arrays(a=numpy.array([{}], dtype=object)), "object"),
    "an index without its shard": (lambda s: s.index(**{"norm.weight": "other.safetensors"}), "other.safetensors"),
    "an index that leads out": (lambda s: s.index(**{"norm.weight": "../w.safetensors"}), "."),
    "a folder of nothing": (lambda s: s.folder, "."),
}


@pytest.mark.parametrize("name", CASES)
def test_spoiled_weights_are_refused_and_change_nothing(name, tmp_path):
    make, said = CASES[name]
    spoiled = Spoiled(tmp_path)
    path = make(spoiled)
    model = built(seed=1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelFileError, match=said) as caught:
        pf.load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not spoiled.marker.exists()


def test_the_same_checkpoint_unspoiled_is_taken(tmp_path):
    spoiled = Spoiled(tmp_path)
    for path in (spoiled.file(), spoiled.index(), spoiled.run_folder(lambda folder: None)):
        model = built(seed=1)
        pf.load_weights(model, path)
        assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), built().state_dict().values()))


def test_the_pickle_was_armed(tmp_path):
    spoiled = Spoiled(tmp_path)
    with open(spoiled.pickled(4), "rb") as file:
        pickle.load(io.BytesIO(file.read()))
    assert spoiled.marker.exists()
    shutil.rmtree(tmp_path)
