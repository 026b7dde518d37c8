"""Folders and lists to training and validation sets, and items to samples."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from patchform import lookup
from patchform.data.annotations import missing_outlines
from patchform.data.clips import evaluation_clips, training_clips
from patchform.data.detection_transforms import Transform as ObjectTransform
from patchform.data.detection_transforms import evaluation_objects, instances, training_objects
from patchform.data.faults import Faults
from patchform.data.images import decode
from patchform.data.listing import TRAIN, VALIDATION, Item, Listing, is_hidden, quoted
from patchform.data.loader import derive
from patchform.data.mask_files import decode_mask
from patchform.data.multi_crop import MultiCrop
from patchform.data.samples import Samples
from patchform.data.segmentation_transforms import Scene, evaluation_scene, training_scene
from patchform.data.transforms import Transform, evaluation_transform, training_transform
from patchform.errors import DataError, UsageError
from patchform.records import Instances, Label, Preprocessing, Regions, Sample, Target
from patchform.settings import AugmentationSettings, DataSettings


class Splits(NamedTuple):
    """Both parts of a data set, with the same classes."""

    train: Listing
    validation: Listing
    notes: tuple[str, ...]
    """What the user should know, those of both parts included."""


def open_data(
    settings: DataSettings,
    *,
    seed: int,
    preprocessing: Preprocessing,
    task: str = "classification",
    faults: Faults | None = None,
) -> Splits:
    """List the training and validation pictures. Opens none of them.

    Args:
        settings: `path`, `validation`, `validation_share`, and how formats are read.
        seed: of the split, when there is one to make: a pure function of it and the relative file names.
        preprocessing: channels and bits, for formats that must know them.
        task: only layouts that serve it are looked for.
        faults: where to note what is wrong with annotated objects; None: fatal faults are raised.

    Raises:
        UsageError: no path, or a share that is none.
        DataError: nothing there that is known, a class in validation alone, or whatever the format refuses.
    """
    opened = open_training(settings, task=task, faults=faults)
    listing, validation = opened.listing, opened.validation
    notes = listing.notes
    if validation is None:
        if not 0 < settings.validation_share < 1:
            raise UsageError(f"data.validation_share {settings.validation_share} is not between 0 and 1")
        first, second = split_listing(listing, settings.validation_share, seed)
        single = [name for name, number in zip(listing.classes, listing.counts()) if number == 1]
        thing = listing.thing
        notes += (f"no validation set: {len(second)} of {len(listing)} {thing}s are held out",)
        notes += (f"classes of one {thing}, which is trained on: {quoted(single)}",) if single else ()
        return Splits(first, second, notes)
    held_out = open_evaluation(validation, settings, listing.classes, task, faults=faults)
    if settings.validation is None and validation.stem.lower() == "test":
        notes += ("no val/ beside train/: validated on test/",)
    counts = () if held_out.mask_codes else held_out.counts()
    absent = [name for name, number in zip(held_out.classes, counts) if number == 0]
    notes += (f"classes that are not in the validation set: {quoted(absent)}",) if absent else ()
    news = tuple(f"validation: {note}" for note in held_out.notes if note not in listing.notes)
    return Splits(listing, held_out, notes + news)


class Training(NamedTuple):
    """What is learnt from, and where the pictures to validate on lie."""

    listing: Listing
    validation: Path | None
    """None: there are none of their own."""


def open_training(settings: DataSettings, *, task: str = "classification", faults: Faults | None = None) -> Training:
    """List what is learnt from, before anything is held out. Arguments and errors as of `open_data`."""
    if settings.path is None:
        raise UsageError("no data given", remedy=f"set data.path to {_layouts(task)}")
    path = Path(settings.path).expanduser()
    _must_exist(path, task)
    train, beside = _parts(path, task)
    validation = Path(settings.validation).expanduser() if settings.validation else beside
    root = train if train and (validation or train.is_file() or _only(train)) else path
    return Training(_read(root, settings, None, task, faults), validation)


def serves(path: str | Path, task: str, *, sure: bool = False) -> bool:
    """Whether a folder, or a file, has a layout that serves a task; `sure`: and is meant for it, where layouts tell."""
    place = Path(path).expanduser()
    _must_exist(place, task)
    place = _parts(place, task)[0] or place
    return any(
        format_.recognises(place) and not (sure and hasattr(format_, "tells") and not format_.tells(place, task))
        for format_ in _formats(task)
    )


def open_evaluation(
    path: str | Path,
    settings: DataSettings,
    classes: Sequence[str],
    task: str = "classification",
    *,
    faults: Faults | None = None,
) -> Listing:
    """List the pictures of a folder or CSV list whose classes are known: they are matched by name, some may lack.

    A folder with train/ and val/ inside gives val/. Only layouts that serve the task are looked for.

    Raises:
        DataError: nothing there that is known, an unknown class, or whatever the format refuses.
    """
    path = Path(path).expanduser()
    _must_exist(path, task)
    return _read(_parts(path, task)[1] or path, settings, tuple(classes), task, faults)


def open_pictures(path: str | Path) -> Listing:
    """List all pictures of a folder or tar shard, without labels and whatever its folders mean. Raises DataError."""
    return _read(Path(path).expanduser(), DataSettings(), None, "pretraining", None)


def training_pictures(
    listing: Listing, preprocessing: Preprocessing, augmentation: AugmentationSettings, seed: int
) -> Samples[Any]:
    """The samples of a training set, changed at random; with masks or objects if the listing has them, or clips.

    Raises UsageError.
    """
    _refuse_frames(listing, preprocessing)
    if listing.videos:
        return training_clips(listing, preprocessing, augmentation, seed)
    if listing.objects and augmentation.copy_paste and not outlined(listing):
        raise UsageError("augmentation.copy_paste needs outlines, and the data have boxes alone", remedy="set it to 0")
    make: Any = training_objects if listing.objects else training_scene if listing.mask_codes else training_transform
    if augmentation.views > 1:
        if listing.objects or listing.mask_codes:
            raise UsageError("augmentation.views is not for masks and objects", remedy="set it to 1")
        make = MultiCrop
    return Pictures(listing, make(preprocessing, augmentation), preprocessing, seed)


def evaluation_pictures(
    listing: Listing, preprocessing: Preprocessing, seed: int = 0, *, views: tuple[int, int] = (1, 1)
) -> Samples[Any]:
    """The samples as the model is judged on them; with masks or objects if the listing has them, or clips.

    Args:
        listing: what there is.
        preprocessing: of the model.
        seed: changes nothing that is not drawn.
        views: of videos, the number of clips and of crops of each: see `clips.evaluation_clips`.

    Raises:
        UsageError: settings that are not for these data.
    """
    _refuse_frames(listing, preprocessing)
    if listing.videos:
        return evaluation_clips(listing, preprocessing, seed, views=views)
    make: Any = (
        evaluation_objects if listing.objects else evaluation_scene if listing.mask_codes else evaluation_transform
    )
    return Pictures(listing, make(preprocessing), preprocessing, seed)


def _refuse_frames(listing: Listing, preprocessing: Preprocessing) -> None:
    if listing.videos and not preprocessing.frames:
        raise UsageError("the data are videos, and data.frames is 0", remedy="set it to the frames of a clip")
    if preprocessing.frames and not listing.videos:
        raise UsageError(f"the data are pictures, and data.frames is {preprocessing.frames}", remedy="set it to 0")


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


def _read(
    path: Path, settings: DataSettings, classes: tuple[str, ...] | None, task: str, faults: Faults | None
) -> Listing:
    _must_exist(path, task)
    for format_ in _formats(task):
        if format_.recognises(path):
            noted = (faults,) if faults is not None and hasattr(format_, "parts") else ()
            listing: Listing = format_.read(path, settings, classes, *noted)
            if task == "instance_segmentation":
                found = Faults() if faults is None else faults
                missing_outlines(listing, found)
                if faults is None:
                    found.refuse(path)
            return listing
    raise DataError("no known layout of data", where=path, remedy=f"looked for {_layouts(task)}")


def has_validation(path: str | Path, task: str = "classification") -> bool:
    """Whether a folder has a part to learn from and a part to validate on."""
    return None not in _parts(Path(path), task)


def _parts(path: Path, task: str) -> tuple[Path | None, Path | None]:
    """What to learn from and what to validate on: as a format of annotated objects says, else by the names of folders.

    Without the first there is no second.
    """
    for format_ in _formats(task):
        found: tuple[Path, Path | None] | None = format_.parts(path) if hasattr(format_, "parts") else None
        if found:
            return found
    home = _home(path, task)
    train = _part(home, TRAIN)
    return train, _part(home, VALIDATION) if train else None


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


def _only(train: Path) -> bool:
    """Whether there is no other folder beside."""
    return not any(entry != train and entry.is_dir() and not is_hidden(entry.name) for entry in train.parent.iterdir())


class _Decoded(NamedTuple):
    """A picture and what is known of its parts."""

    pixels: Tensor
    """(C, H, W)."""
    truth: Regions | Instances | None
    """In the picture's own pixels, classes of regions as uint8; None where there is a label alone."""


def outlined(listing: Listing) -> bool:
    """Whether any object has an outline."""
    return any(item.objects is not None and item.objects.segmentations is not None for item in listing.items)


class Pictures(Samples[_Decoded]):
    """The pictures of a listing as samples.

    Args:
        listing: what there is.
        transform: from decoded pixels to the model's input; for a listing with masks, from pixels and `Regions` to both
            (see `data.segmentation_transforms`); for one with objects, from pixels and `Instances` (see
            `data.detection_transforms`).
        preprocessing: how files are decoded.
        seed: of the random transforms.
    """

    def __init__(
        self,
        listing: Listing,
        transform: Transform | Scene | ObjectTransform | MultiCrop,
        preprocessing: Preprocessing,
        seed: int = 0,
    ) -> None:
        super().__init__(listing, preprocessing, seed)
        self.transform, self.outlined = transform, outlined(listing)

    def _sample(self, index: int) -> Sample:
        pixels, truth = self._decoded(index)
        target: Target
        views = None
        if isinstance(truth, Instances):
            image, target = cast("ObjectTransform", self.transform)(pixels, truth, self._another)
        elif truth is not None:
            image, target = cast("Scene", self.transform)(pixels, truth)
        else:
            if isinstance(self.transform, MultiCrop):
                image, views = self.transform(pixels)
            else:
                image = cast("Transform", self.transform)(pixels)
            target = Label(torch.tensor(self.listing.items[index].classes, dtype=torch.int64))
        return Sample(
            image=image,
            target=target,
            name=self.listing.name(index),
            size=(pixels.shape[-2], pixels.shape[-1]),
            views=views,
        )

    def _another(self) -> tuple[Tensor, Instances]:
        """A picture drawn at random, for transforms that put several together, and its objects."""
        pixels, truth = self._decoded(int(torch.randint(len(self), ())))
        return pixels, cast("Instances", truth)

    def _decoded(self, index: int) -> _Decoded:
        """Decoded pixels, from memory when the set is small."""
        kept = self._kept(index)
        if kept is not None:
            return kept
        item = self.listing.items[index]
        pixels = decode(item.path, self.preprocessing)
        found = _Decoded(pixels, self._truth(item, (pixels.shape[-2], pixels.shape[-1])))
        if self._fits(pixels.nbytes + _bytes(found.truth)):
            self._keep(index, found)
        return found

    def _truth(self, item: Item, size: tuple[int, int]) -> Regions | Instances | None:
        if item.mask is not None and self.listing.mask_codes is not None:
            return Regions(decode_mask(item.mask, self.listing.mask_codes, size))
        if item.objects is None:
            return None
        if tuple(item.objects.size) != size:
            (tall, wide), (height, width) = item.objects.size, size
            what = f"objects of a picture of {wide} x {tall} pixels for one of {width} x {height}"
            turned = "; its orientation tag is followed: annotate what is seen" * ((wide, tall) == size)
            raise DataError(what, where=item.path, remedy="mend the annotation" + turned)
        return instances(item.objects, outlined=self.outlined)


def _bytes(value: Any) -> int:
    """Of the tensors in a record of records."""
    if isinstance(value, Tensor):
        return value.nbytes
    return sum(map(_bytes, value)) if isinstance(value, tuple) else 0
