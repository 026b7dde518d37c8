"""Workers under every way of starting a process, for every kind of data: the same bits as without workers."""

import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import torch
from annotated import random_listing
from moving import frame_folder
from PIL import Image
from tarred import tar
from torch.utils.data import Dataset

from patchform import lookup
from patchform.data.collate import PackedTargets
from patchform.data.dataset import open_data, open_pictures
from patchform.data.formats.coco import Coco
from patchform.data.loader import evaluation_loader
from patchform.data.samples import Samples
from patchform.records import Label, Preprocessing, Sample
from patchform.settings import AugmentationSettings, DataSettings
from patchform.tasks.base import find_task
from patchform.training import run

coco = Coco()

METHODS = ("fork", "forkserver", pytest.param("spawn", marks=pytest.mark.slow))
KEPT = 4
"""Samples of each data set."""

PLUGIN = '''
class Invert:
    """A transform of a file that the user named."""

    def __call__(self, image):
        return 255 - image
'''


class Several(Dataset):
    """The first samples of several data sets one after the other, so that one start of workers serves them all."""

    def __init__(self, sets):
        self.sets = sets

    def __len__(self):
        return KEPT * len(self.sets)

    def __getitem__(self, key):
        epoch, index = key
        which, number = divmod(index, KEPT)
        return self.sets[which][epoch, number % len(self.sets[which])]


class Facts(Dataset):
    """What is true of the process that it is asked in."""

    def __len__(self):
        return KEPT

    def __getitem__(self, key):
        places = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        held = any(os.path.exists(place) and os.readlink(place).endswith(run.LOCK) for place in places)
        deaf = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        facts = torch.tensor([os.getpid(), torch.get_num_threads(), held, deaf]).view(4, 1, 1)
        return Sample(image=facts, target=Label(torch.tensor([0])), name="facts", size=(1, 1))


def picture(seed, size=(40, 48), channels=3, below=256):
    drawn = np.random.default_rng(seed).integers(0, below, (*size, channels)[: 2 + (channels > 1)], np.uint8)
    found = io.BytesIO()
    Image.fromarray(drawn).save(found, "PNG")
    return found.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def both(root, task, preprocessing, *, augmentation=None, **settings):
    """The training and the validation samples of a folder."""
    splits = open_data(DataSettings(path=str(root), **settings), seed=0, preprocessing=preprocessing, task=task)
    training = find_task(task).training_samples(splits.train, preprocessing, augmentation or AugmentationSettings(), 0)
    return [training, find_task(task).evaluation_samples(splits.validation, preprocessing)]


def labels(root):
    members = {}
    for part in ("train", "val"):
        for index in range(KEPT):
            write(root / "folders" / part / "ab"[index % 2] / f"{index}.png", picture(index))
            members |= {f"{index}.png": picture(index), f"{index}.cls": b"ab"[index % 2 :][:1]}
        tar(root / "shards" / part / "0.tar", members)
    rows = "".join(f"folders/train/{'ab'[i % 2]}/{i}.png,{'a|b' if i else ''}\n" for i in range(KEPT))
    write(root / "several.csv", f"image,labels\n{rows}".encode())
    small = Preprocessing(size=(32, 32))
    changed = AugmentationSettings(policy="rand_augment", color_jitter=0.3, erasing=0.5, vertical_flip=0.5)
    found = both(root / "folders", "classification", small, augmentation=changed)
    found += both(root / "shards", "classification", small, augmentation=AugmentationSettings(policy="trivial_augment"))
    found += both(root / "several.csv", "classification", small, labels="multi", validation=str(root / "several.csv"))
    crops = AugmentationSettings(
        views=2, local_views=2, local_size=16, blur=[1, 0.5, 0.5], solarise=[0, 0.5, 0], grey=0.5, color_jitter=0.4
    )
    return [*found, find_task("pretraining").training_samples(open_pictures(root / "folders"), small, crops, 0)]


def scenes(root):
    """Masks that are files, and masks that regions draw."""
    whole = Preprocessing(size=(32, 32), resize="keep")
    changed = AugmentationSettings(color_jitter=0.5, vertical_flip=0.5)
    for part in ("train", "val"):
        for index in range(KEPT):
            write(root / "masks/images" / part / f"{index}.png", picture(index))
            write(root / "masks/masks" / part / f"{index}.png", picture(index, channels=1, below=2))
            write(root / "stuff" / part / f"{index}.png", picture(index))
        images = [{"id": i, "file_name": f"{i}.png", "height": 40, "width": 48} for i in range(KEPT)]
        corners = [0, 0, 30, 0, 30, 20, 0, 20]
        regions = [{"id": i, "image_id": i, "category_id": 1 + i % 2, "segmentation": [corners]} for i in range(KEPT)]
        content = {
            "images": images,
            "annotations": regions,
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        write(root / f"stuff/annotations/stuff_{part}.json", json.dumps(content).encode())
    write(root / "masks/classes.txt", b"a\nb\n")
    found = both(root / "masks", "semantic_segmentation", whole, augmentation=changed)
    return found + both(root / "stuff", "semantic_segmentation", whole, augmentation=changed)


def objects(root):
    for number, part in enumerate(("train", "val")):
        listing = random_listing(root / f"{part}-pictures", number, keeps=coco.keeps, segmentations=True)
        coco.write(listing, root / "coco", part=part, pictures="copy")
    whole = Preprocessing(size=(32, 48), resize="fit")
    boxes = AugmentationSettings(sizes=[24, 32], color_jitter=0.5)
    outlines = AugmentationSettings(mosaic=0.8, copy_paste=0.8, scale=[0.5, 2.0], vertical_flip=0.5)
    found = both(root / "coco", "detection", whole, augmentation=boxes)
    return found + both(root / "coco", "instance_segmentation", whole, augmentation=outlines)


def videos(root):
    for part in ("train", "val"):
        for name in "ab":
            frame_folder(root / "clips" / part / name / "1", count=6, size=(40, 48))
    clips = Preprocessing(size=(32, 32), frames=4, sampling="uniform")
    return both(root / "clips", "video_classification", clips)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Data sets of all kinds, by what they are."""
    root = tmp_path_factory.mktemp("kinds")
    return [*labels(root), *scenes(root), *objects(root), *videos(root)]


def again(pictures):
    """The samples of the same pictures, not augmented."""
    return find_task("classification").training_samples(
        pictures.listing, pictures.preprocessing, AugmentationSettings(), 0
    )


def loaded(dataset, method=None, batch_size=2):
    """All batches: of two workers that are started so, or without workers."""
    loader = evaluation_loader(dataset, batch_size, workers=2 if method else 0)
    if method:
        loader.multiprocessing_context = method
    return list(loader)


def same(first, second):
    """Whether two records of tensors, or of such records, are equal to the bit."""
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and first.equal(second)
    if isinstance(first, tuple | list | PackedTargets):
        return type(first) is type(second) and len(first) == len(second) and all(map(same, first, second))
    return first == second


@pytest.mark.parametrize("method", METHODS)
def test_workers_give_the_bits_that_none_gives(sets, method, tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    write(folder / "tasks" / "inverted.py", PLUGIN.encode())
    monkeypatch.setattr(lookup, "_plugins", [])
    lookup._files.cache_clear()
    lookup.add_plugin(folder)
    inverted = again(sets[0])
    inverted.transform = lookup.module("tasks", "inverted").Invert()
    everything = Several([*sets, inverted, Facts()])
    try:
        here = loaded(everything)
        with run.lock(tmp_path):
            assert all(batch.images[:, 2].all() for batch in loaded(Facts()))  # controls: this process does hold it
            assert not any(batch.images[:, 3].any() for batch in loaded(Facts()))  # and hears Ctrl-C
            there = loaded(everything, method)
    finally:
        lookup._files.cache_clear()
        sys.modules.pop("patchform.tasks.inverted")
    *here, own, _ = here
    *there, first, second = there
    assert len(here) == len(there) == KEPT // 2 * (len(sets) + 1)
    assert [same(one, other) for one, other in zip(here, there)] == [True] * len(here)
    numbers, threads, held, deaf = torch.cat([first.images, second.images]).flatten(1).unbind(1)
    assert len(set(numbers.tolist())) == 2  # two workers
    assert os.getpid() not in numbers.tolist()
    assert threads.tolist() == [1] * KEPT
    assert not held.any()
    assert deaf.all()
    assert not same(own, first)  # control: what is true of a process differs


@pytest.mark.filterwarnings("ignore:Got pickle error")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_a_function_within_a_function_does_not_travel(sets, method):
    pictures = again(sets[0])
    pictures.transform = lambda image: image
    bad = Several([pictures])
    with pytest.raises((AttributeError, TypeError, RuntimeError), match="lambda"):
        loaded(bad, method)
    assert len(loaded(bad)) == KEPT // 2


def test_what_was_decoded_stays_where_it_is(sets):
    for one in sets:
        assert isinstance(one, Samples)
        first = one[0, 0]
        state = one.__getstate__()
        assert not state["_cache"]
        assert one._cache  # control: small sets are kept
        assert same(one[0, 0], first)
