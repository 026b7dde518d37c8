"""Folders and lists to training and validation sets, and items to samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from patchform import lookup
from patchform.data.images import decode
from patchform.data.listing import TRAIN, VALIDATION, Item, Listing, is_hidden, quoted
from patchform.data.masks import decode_mask
from patchform.data.order import Key, derive
from patchform.data.scenes import Scene, evaluation_scene, training_scene
from patchform.data.transforms import Transform, evaluation_transform, training_transform
from patchform.errors import DataError, UsageError
from patchform.records import Label, Preprocessing, Regions, Sample, Target
from patchform.settings import AugmentationSettings, DataSettings

CACHE_BYTES = 1 << 30
"""Decoded pictures are kept in memory, all workers together, if the whole set fits."""


class Splits(NamedTuple):
    """Both parts of a data set, with the same classes."""

    train: Listing
    validation: Listing
    notes: tuple[str, ...]
    """What the user should know, those of both parts included."""


def open_data(
    settings: DataSettings, *, seed: int, preprocessing: Preprocessing, task: str = "classification"
) -> Splits:
    """List the training and validation pictures. Opens none of them.

    Args:
        settings: `path`, `validation`, `validation_share`, and how formats are read.
        seed: of the split, when there is one to make: a pure function of it and the relative file names.
        preprocessing: channels and bits, for formats that must know them.
        task: only layouts that serve it are looked for.

    Raises:
        UsageError: no path, or a share that is none.
        DataError: nothing there that is known, a class in validation alone, or whatever the format refuses.
    """
    if settings.path is None:
        raise UsageError("no data given", remedy=f"set data.path to {_layouts(task)}")
    path = Path(settings.path).expanduser()
    _must_exist(path, task)
    home = _home(path, task)
    train = _part(home, TRAIN)
    beside = _part(home, VALIDATION) if train else None
    explicit = Path(settings.validation).expanduser() if settings.validation else None
    validation = explicit or beside
    root = train if train and (validation or train.is_file() or _only(home, train)) else path
    listing = _read(root, settings, None, task)
    notes = listing.notes
    if validation is None:
        if not 0 < settings.validation_share < 1:
            raise UsageError(f"data.validation_share {settings.validation_share} is not between 0 and 1")
        first, second = split_listing(listing, settings.validation_share, seed)
        single = [name for name, number in zip(listing.classes, listing.counts()) if number == 1]
        notes += (f"no validation set: {len(second)} of {len(listing)} pictures are held out",)
        notes += (f"classes of one picture, which is trained on: {quoted(single)}",) if single else ()
        return Splits(first, second, notes)
    held_out = open_evaluation(validation, settings, listing.classes, task)
    if validation == beside and validation.stem.lower() == "test":
        notes += ("no val/ beside train/: validated on test/",)
    counts = () if held_out.coding else held_out.counts()
    absent = [name for name, number in zip(held_out.classes, counts) if number == 0]
    notes += (f"classes that are not in the validation set: {quoted(absent)}",) if absent else ()
    news = tuple(f"validation: {note}" for note in held_out.notes if note not in listing.notes)
    return Splits(listing, held_out, notes + news)


def open_evaluation(
    path: str | Path, settings: DataSettings, classes: Sequence[str], task: str = "classification"
) -> Listing:
    """List the pictures of a folder or CSV list whose classes are known: they are matched by name, some may lack.

    A folder with train/ and val/ inside gives val/. Only layouts that serve the task are looked for.

    Raises:
        DataError: nothing there that is known, an unknown class, or whatever the format refuses.
    """
    path = Path(path).expanduser()
    _must_exist(path, task)
    home = _home(path, task)
    inside = _part(home, VALIDATION) if _part(home, TRAIN) else None
    return _read(inside or path, settings, tuple(classes), task)


def training_pictures(
    listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
) -> Pictures:
    """The samples of a training set, changed at random; with masks if the listing has them. Raises UsageError."""
    make = training_scene if listing.coding else training_transform
    return Pictures(listing, make(preprocessing, augmentation), preprocessing, seed)


def evaluation_pictures(listing: Listing, preprocessing: Preprocessing, seed: int = 0) -> Pictures:
    """The samples as the model is judged on them; with masks if the listing has them. Raises UsageError."""
    make = evaluation_scene if listing.coding else evaluation_transform
    return Pictures(listing, make(preprocessing), preprocessing, seed)


def split_listing(listing: Listing, share: float, seed: int) -> tuple[Listing, Listing]:
    """Two parts, the second of about `share` of each class; depends on the seed and the relative names alone.

    A class of two or more pictures has at least one on either side. A picture of several classes is counted for its
    rarest.

    Raises:
        DataError: no class has two pictures.
    """
    counts = listing.counts()
    groups: dict[int, list[int]] = {}
    for index, item in enumerate(listing.items):
        rarest = min(item.classes, key=lambda class_: (counts[class_], class_), default=-1)
        groups.setdefault(rarest, []).append(index)
    chosen: set[int] = set()
    for members in groups.values():
        members.sort(key=lambda index: derive(seed, "split", listing.name(index)))
        number = min(max(1, round(share * len(members))), len(members) - 1)
        chosen.update(members[:number])
    if not chosen:
        raise DataError("too few pictures to hold some out", where=listing.root, remedy="set data.validation")

    def part(items: list[Item]) -> Listing:
        return replace(listing, items=tuple(items))

    return (
        part([item for index, item in enumerate(listing.items) if index not in chosen]),
        part([item for index, item in enumerate(listing.items) if index in chosen]),
    )


def _formats(task: str) -> list[Any]:
    """Modules of the layouts that serve a task."""
    modules = (lookup.module("data/formats", name) for name in lookup.names("data/formats"))
    return [module for module in modules if task in module.TASKS]


def _layouts(task: str) -> str:
    return ", ".join(format_.LAYOUT for format_ in reversed(_formats(task))) + "; or such parts below train/ and val/"


def _must_exist(path: Path, task: str) -> None:
    if not path.exists():
        raise DataError("no such file or folder", where=path, remedy=f"looked for {_layouts(task)}")
    if not os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0)):
        raise DataError("no permission to read", where=path)


def _read(path: Path, settings: DataSettings, classes: tuple[str, ...] | None, task: str) -> Listing:
    _must_exist(path, task)
    for format_ in _formats(task):
        if format_.recognises(path):
            listing: Listing = format_.read(path, settings, classes)
            return listing
    raise DataError("no known layout of data", where=path, remedy=f"looked for {_layouts(task)}")


def has_validation(path: str | Path, task: str = "classification") -> bool:
    """Whether a folder has a part to learn from and a part to validate on."""
    home = _home(Path(path), task)
    return _part(home, TRAIN) is not None and _part(home, VALIDATION) is not None


def _home(path: Path, task: str) -> Path:
    """Where train/ and val/ lie: in `path`, or in a folder inside it in which a layout keeps them."""
    inside = (path / name for format_ in _formats(task) for name in getattr(format_, "INSIDE", ()))
    return next((place for place in (path, *inside) if _part(place, TRAIN)), path)


def _part(path: Path, names: Sequence[str]) -> Path | None:
    """The folder or CSV list inside `path` that has the first of these names."""
    if not path.is_dir():
        return None
    entries = {entry.name.lower(): entry for entry in path.iterdir()}
    found = (entries.get(name + suffix) for name in names for suffix in ("", ".csv"))
    return next((entry for entry in found if entry is not None), None)


def _only(path: Path, train: Path) -> bool:
    return not any(entry != train and entry.is_dir() and not is_hidden(entry.name) for entry in path.iterdir())


class _Decoded(NamedTuple):
    """(C, H, W) pixels and (H, W) uint8 classes of a picture."""

    pixels: Tensor
    mask: Tensor | None


class Pictures(Dataset[Sample]):
    """The pictures of a listing as samples, asked for by (epoch, index).

    Random transforms see numbers that depend on (seed, epoch, index) alone, so results are equal for any order of
    access and any number of workers; the global random state is left as it was.

    Args:
        listing: what there is.
        transform: from decoded pixels to the model's input; for a listing with masks, from pixels and `Regions` to both
            (see `data.scenes`).
        preprocessing: how files are decoded.
        seed: of the random transforms.
    """

    def __init__(
        self, listing: Listing, transform: Transform | Scene, preprocessing: Preprocessing, seed: int = 0
    ) -> None:
        self.listing, self.transform, self.preprocessing, self.seed = listing, transform, preprocessing, seed
        self._cache: dict[int, _Decoded] | None = {}
        self._cached_bytes = 0

    def __len__(self) -> int:
        return len(self.listing)

    def __getitem__(self, key: Key) -> Sample:
        """The sample; its size is the (height, width) of the picture, upright, before the transform.

        Raises DataError when a file cannot be decoded.
        """
        epoch, index = key
        pixels, mask = self._decoded(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derive(self.seed, "transform", epoch, index))
            if mask is None:
                image = cast("Transform", self.transform)(pixels)
                target: Target = Label(torch.tensor(self.listing.items[index].classes, dtype=torch.int64))
            else:
                image, target = cast("Scene", self.transform)(pixels, Regions(mask))
        return Sample(
            image=image,
            target=target,
            name=self.listing.name(index),
            size=(pixels.shape[-2], pixels.shape[-1]),
        )

    def _decoded(self, index: int) -> _Decoded:
        """Decoded pixels, from memory when the set is small. The guess at its size gets better with each picture."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        item, coding = self.listing.items[index], self.listing.coding
        pixels = decode(item.path, self.preprocessing)
        mask = None
        if item.mask is not None and coding is not None:
            mask = decode_mask(item.mask, coding, (pixels.shape[-2], pixels.shape[-1]))
        found = _Decoded(pixels, mask)
        if self._cache is not None:
            self._cached_bytes += pixels.nbytes + (0 if mask is None else mask.nbytes)
            worker = get_worker_info()
            budget = CACHE_BYTES / (worker.num_workers if worker else 1)
            self._cache[index] = found
            if self._cached_bytes / len(self._cache) * len(self) > budget:
                self._cache = None
        return found
