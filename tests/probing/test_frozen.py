"""Features of a frozen backbone: right, computed once, found again, and never trusted when anything differs."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from reference import randomise

from patchform.data.collate import collate
from patchform.data.dataset import open_evaluation
from patchform.data.listing import Item
from patchform.data.pictures import LabelledPictures
from patchform.data.transforms import evaluation_transform
from patchform.device import RunOptions
from patchform.errors import DataError, DivergedError, ResourceError, UsageError
from patchform.metrics.accuracy import Accuracy
from patchform.model import Model, build_model
from patchform.probing import frozen
from patchform.probing.frozen import DESCRIPTION, FEATURES, Frozen, features, scored
from patchform.records import Label, Preprocessing
from patchform.settings import DataSettings

NAMES = ("dark", "light")
PREPROCESSING = Preprocessing(size=(32, 32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root, dice = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for name, level in zip(NAMES, (60, 190)):
        (root / name).mkdir()
        for index in range(7):
            pixels = np.clip(level + dice.normal(0, 40, (36, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def listing(folder):
    return open_evaluation(folder, DataSettings(), NAMES)


class Counted:
    """A model, and how many images its backbone has looked at."""

    def __init__(self, backbone="vit/nano", seed=0, preprocessing=PREPROCESSING, **options):
        self.model = randomise(
            build_model(
                "classification",
                backbone=backbone,
                head="linear",
                classes=NAMES,
                preprocessing=preprocessing,
                backbone_options=options,
            ),
            seed=seed,
        )
        self.images = 0
        self.model.backbone.register_forward_hook(self._count)

    def _count(self, module, given, found):
        assert not module.training
        assert torch.is_inference_mode_enabled()
        self.images += len(given[0])

    def __call__(self, listing, **options):
        own = {name: options.pop(name) for name in ("output", "cache", "progress") if name in options}
        return features(self.model, listing, options=RunOptions(device="cpu", **options), **own)


def test_they_are_what_the_backbone_gives_of_every_picture_in_order(listing):
    counted, seen = Counted(), []
    found = counted(listing, batch_size=4, progress=lambda *numbers: seen.append(numbers))
    assert counted.images == len(listing) == 14
    assert seen == [(4, 14), (8, 14), (12, 14), (14, 14)]
    assert found.names == tuple(listing.name(index) for index in range(14))
    assert found.labels.tolist() == [item.classes[0] for item in listing.items]
    assert (found.summaries.dtype, found.labels.dtype) == (torch.float32, torch.int64)
    pictures = LabelledPictures(listing, evaluation_transform(PREPROCESSING), PREPROCESSING)
    for output in ("summary", "tokens"):
        found = counted(listing, batch_size=4, output=output)
        for index in (0, 5, 13):
            with torch.inference_mode():
                truth = counted.model.features(collate([pictures[0, index]]))
            wanted = truth.summary if output == "summary" else truth.tokens.mean(1)
            torch.testing.assert_close(found.summaries[index], wanted[0], rtol=0, atol=1e-5)
            assert not torch.allclose(found.summaries[(index + 1) % 14], wanted[0], rtol=0, atol=1e-3)  # control


def test_tokens_may_be_narrower_than_the_summary(listing):
    counted = Counted("cross_vit/nano")
    assert counted(listing).summaries.shape[1] == counted.model.backbone.width
    assert counted(listing, output="tokens").summaries.shape[1] < counted.model.backbone.width


@pytest.mark.parametrize("part", [1 << 16, 50])  # 50 tokens: three pictures of 16
def test_sequences_are_kept_in_parts(part, listing, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "PART", part)
    counted = Counted()
    found = counted(listing, output="sequence", cache=tmp_path)
    assert found.summaries.shape == (14, 16, 48)
    torch.testing.assert_close(found.summaries.mean(1), counted(listing, output="tokens").summaries)
    looked = counted.images
    again = counted(listing, output="sequence", cache=tmp_path)
    assert counted.images == looked
    assert torch.equal(again.summaries, found.summaries)
    assert len(list(tmp_path.rglob("*.safetensors"))) == (1 if part > 50 else 5)


def test_pictures_of_several_sizes_have_no_sequences_of_one_length(tmp_path):
    for number, side in enumerate((32, 48)):
        (tmp_path / "dark").mkdir(exist_ok=True)
        Image.new("RGB", (side, 32)).save(tmp_path / "dark" / f"{number}.png")
    native = Preprocessing(size=(32, 32), resize="native")
    listing = open_evaluation(tmp_path, DataSettings(), NAMES)
    with pytest.raises(DataError, match="pictures of several sizes have sequences of several lengths"):
        Counted(preprocessing=native)(listing, output="sequence")
    assert Counted(preprocessing=native)(listing, output="tokens").summaries.shape == (2, 48)


def test_something_can_be_trained_on_them(listing):
    layer = torch.nn.Linear(48, 2)
    layer(Counted()(listing).summaries).sum().backward()
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("part", [1 << 16, 14, 5])
def test_a_second_call_reads(part, listing, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "PART", part)
    counted = Counted()
    first = counted(listing, cache=tmp_path / "a" / "b")
    assert counted.images == 14
    again = counted(listing, cache=tmp_path / "a" / "b", batch_size=3, progress=pytest.fail)
    assert counted.images == 14
    assert torch.equal(first.summaries, again.summaries)
    assert torch.equal(first.labels, again.labels)
    assert again[2:] == first[2:]
    Counted()(listing, cache=tmp_path / "a" / "b", progress=pytest.fail)  # an equal model
    (place,) = (tmp_path / "a" / "b").iterdir()
    assert len(list(place.glob("*.safetensors"))) == -(-14 // part)


def touched(listing):
    """The same names, with other pixels in one of them."""
    path = listing.items[3].path
    status = path.stat()
    Image.fromarray(np.zeros((36, 40, 3), np.uint8)).save(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    return listing


@pytest.mark.parametrize(
    "change",
    [
        lambda: ({"seed": 1}, {}, None),
        lambda: ({"preprocessing": replace(PREPROCESSING, size=(40, 40))}, {}, None),
        lambda: ({"preprocessing": replace(PREPROCESSING, mean=(0.5,))}, {}, None),
        lambda: ({"maps_from": (1,)}, {}, None),
        lambda: ({}, {"output": "tokens"}, None),
        lambda: ({}, {"precision": "bfloat16"}, None),
        lambda: ({}, {}, lambda listing: replace(listing, items=listing.items[1:])),
        lambda: ({}, {}, lambda listing: replace(listing, items=listing.items[::-1])),
        lambda: ({}, {}, lambda listing: replace(listing, items=listing.items[:-1] + listing.items[:1])),
        lambda: ({}, {}, touched),
    ],
    ids=["weights", "size", "statistics", "options", "output", "precision", "fewer", "order", "other", "pixels"],
)  # fmt: skip
def test_any_change_is_computed_anew(change, listing, tmp_path):
    Counted()(listing, cache=tmp_path)
    model, call, data = change()
    counted = Counted(**model)
    other = data(listing) if data else listing
    counted(other, cache=tmp_path, **call)
    assert counted.images == len(other)
    assert len(list(tmp_path.iterdir())) == 2


def test_one_weight_in_its_last_bit_is_a_change(listing, tmp_path):
    Counted()(listing, cache=tmp_path)
    counted = Counted()
    with torch.no_grad():
        bias = counted.model.backbone.norm.bias
        bias[0] = torch.nextafter(bias[0], torch.tensor(torch.inf))
    counted(listing, cache=tmp_path)
    assert counted.images == 14


def flip(path):
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))


def tell_lies(path):
    about = json.loads(path.read_text())
    path.write_text(json.dumps({**about, "pictures": 15}))


@pytest.mark.parametrize(
    "damage",
    [
        lambda place: flip(place / FEATURES.format(0)),
        lambda place: (place / FEATURES.format(0)).unlink(),
        lambda place: (place / FEATURES.format(0)).write_bytes(b""),
        lambda place: tell_lies(place / DESCRIPTION),
        lambda place: (place / "manifest.json").unlink(),
        lambda place: (place / "manifest.json").write_text("{"),
    ],
    ids=["bit", "missing", "empty", "other", "no manifest", "half a manifest"],
)
def test_damaged_features_are_computed_anew_and_mended(damage, listing, tmp_path):
    counted, said = Counted(), []
    wanted = counted(listing, cache=tmp_path)
    (place,) = tmp_path.iterdir()
    damage(place)
    found = counted(listing, cache=tmp_path, say=said.append)
    assert counted.images == 28
    assert len(said) == 1
    assert "damaged" in said[0]
    assert torch.equal(found.summaries, wanted.summaries)
    assert torch.equal(counted(listing, cache=tmp_path, say=pytest.fail).summaries, wanted.summaries)
    assert counted.images == 28


def test_features_of_others_under_this_name_are_not_taken(listing, tmp_path):
    Counted()(listing, cache=tmp_path / "one")
    Counted(seed=1)(listing, cache=tmp_path / "two")
    (mine,), (other,) = (tmp_path / "one").iterdir(), (tmp_path / "two").iterdir()
    for file in other.iterdir():
        (mine / file.name).write_bytes(file.read_bytes())
    counted = Counted()
    counted(listing, cache=tmp_path / "one", say=lambda sentence: None)
    assert counted.images == 14


def test_what_cannot_be_kept_is_still_given(listing, tmp_path, monkeypatch):
    def refuse(*_):
        raise ResourceError("the disk is full")

    monkeypatch.setattr("patchform.weights.files.write_tensors", refuse)
    said = []
    assert len(Counted()(listing, cache=tmp_path, say=said.append).labels) == 14
    assert said == ["the features are not kept: the disk is full"]
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused(listing, tmp_path):
    counted = Counted()
    with pytest.raises(DataError, match="no picture"):
        counted(replace(listing, items=()))
    with pytest.raises(DataError, match="exactly one class"):
        counted(replace(listing, items=(*listing.items, Item(listing.items[0].path, (0, 1)))))
    with pytest.raises(UsageError, match="clips"):
        Counted("timesformer/nano")(listing)
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot be made"):
        counted(listing, cache=tmp_path / "file")
    assert counted.images == 0
    by_hand = Model(counted.model.backbone, counted.model.head, classes=NAMES, preprocessing=PREPROCESSING)
    with pytest.raises(UsageError, match="by hand"):
        features(by_hand, listing, cache=tmp_path, options=RunOptions(device="cpu"))
    assert len(features(by_hand, listing, options=RunOptions(device="cpu")).labels) == 14
    with torch.no_grad():
        counted.model.backbone.norm.weight[0] = torch.nan
    with pytest.raises(DivergedError):
        counted(listing, cache=tmp_path / "nan")
    assert list((tmp_path / "nan").iterdir()) == []


def test_scores_are_those_of_the_metric():
    draw = torch.Generator().manual_seed(0)
    scores, labels = torch.rand(2500, 7, generator=draw), torch.randint(7, (2500,), generator=draw)
    test = Frozen(torch.arange(2500.0)[:, None], labels, ("",) * 2500)
    metric = Accuracy("abcdefg")
    metric.update([Label(row.argmax()[None], row) for row in scores], [Label(label[None]) for label in labels])
    found = scored(lambda rows: scores[rows[:, 0].long()], test, "abcdefg")
    assert found.tables == metric.compute().tables
    assert found.numbers == pytest.approx(metric.compute().numbers)
    assert found.numbers["top1"] == (scores.argmax(1) == labels).double().mean().item()
    assert found.numbers != scored(lambda rows: scores[rows[:, 0].long() - 1], test, "abcdefg").numbers  # control
