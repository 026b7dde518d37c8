from dataclasses import replace

import pytest
import torch
from PIL import Image

from patchform.data.collate import collate, split, to_device
from patchform.data.listing import Item, Listing
from patchform.data.loader import TrainingBatches, training_loader
from patchform.data.multi_crop import MultiCrop
from patchform.errors import UsageError
from patchform.records import Label, Preprocessing, Sample
from patchform.settings import AugmentationSettings
from patchform.tasks.pretraining import Pretraining

SIZE = Preprocessing(size=(32, 24))
FULL = AugmentationSettings(
    crop_scale=(0.4, 1.0),
    views=2,
    local_views=3,
    local_size=16,
    color_jitter=0.4,
    grey=0.2,
    blur=(1.0, 0.1, 0.5),
    solarise=(0.0, 0.2, 0.0),
)
PLAIN = AugmentationSettings(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0, views=2)


def picture(seed=0, deep=False):
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(3, 40, 40, generator=draw) if deep else torch.randint(256, (3, 40, 40), generator=draw).byte()


@pytest.mark.parametrize("deep", [False, True])
def test_crops_have_their_sizes_and_the_type_of_the_picture(deep):
    image = picture(deep=deep)
    before = image.clone()
    crops = MultiCrop(replace(SIZE, bits=16 if deep else 8), FULL)(image)
    assert crops.images.shape == (2, 3, 32, 24)
    assert crops.local.shape == (3, 3, 16, 16)
    assert crops.images.dtype == crops.local.dtype == image.dtype
    assert torch.equal(image, before)
    assert not torch.equal(crops.images[0], crops.images[1])
    assert MultiCrop(SIZE, replace(FULL, local_views=0, blur=(), solarise=()))(image).local is None


def test_changes_are_of_the_crops_that_they_are_meant_for():
    torch.manual_seed(0)  # a blur may be too small to show
    square, image = Preprocessing(size=(40, 40)), picture()
    same = MultiCrop(square, PLAIN)(image).images
    assert all(torch.equal(crop, image) for crop in same)
    solarised = MultiCrop(square, replace(PLAIN, solarise=(0.0, 1.0)))(image).images
    assert torch.equal(solarised[0], image)
    assert torch.equal(solarised[1], torch.where(image >= 128, 255 - image, image))
    blurred = MultiCrop(square, replace(PLAIN, blur=(1.0, 0.0)))(image).images
    assert blurred[0].float().std() < image.float().std()
    assert torch.equal(blurred[1], image)
    grey = MultiCrop(square, replace(PLAIN, grey=1.0))(image).images
    assert torch.equal(grey[0, 0], grey[0, 2])


@pytest.fixture
def listing(tmp_path):
    for index in range(6):
        Image.fromarray(picture(index).permute(1, 2, 0).numpy()).save(tmp_path / f"{index}.png")
    return Listing(classes=(), items=tuple(Item(tmp_path / f"{index}.png", ()) for index in range(6)), root=tmp_path)


def test_samples_are_a_function_of_seed_epoch_and_index(listing):
    one, two = (Pretraining().training_samples(listing, SIZE, FULL, 5) for _ in range(2))
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = [one[1, index] for index in range(6)]
    assert torch.equal(torch.get_rng_state(), state)
    second = [two[1, index] for index in reversed(range(6))][::-1]
    for a, b in zip(first, second):
        assert torch.equal(a.image, b.image)
        assert torch.equal(a.views, b.views)
    assert not torch.equal(one[0, 0].views, one[1, 0].views)
    assert not torch.equal(Pretraining().training_samples(listing, SIZE, FULL, 6)[1, 0].image, first[0].image)
    assert first[0].target.classes.shape == (0,)


def test_workers_change_nothing(listing):
    batches = [
        list(
            training_loader(
                Pretraining().training_samples(listing, SIZE, FULL, 5), TrainingBatches(6, 4, 0, 0, 2), workers
            )
        )
        for workers in (0, 1)
    ]
    for a, b in zip(*batches, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.views, b.views)
        assert [len(target.classes) for target in a.targets] == [0] * len(a.images)


def test_views_travel_with_their_batch(listing):
    pictures = Pretraining().training_samples(listing, SIZE, FULL, 5)
    batch = to_device(collate([pictures[0, index] for index in range(5)]), "cpu")
    assert batch.images.shape == (5, 2, 3, 32, 24)
    assert batch.views.shape == (5, 3, 3, 16, 16)
    parts = list(split(batch, 2))
    assert [len(part.views) for part in parts] == [2, 2, 1]
    assert torch.equal(torch.cat([part.views for part in parts]), batch.views)
    assert collate([Sample(picture(), Label(torch.empty(0).long()), "")]).views is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blur": (0.5,)}, "blur is"),
        ({"solarise": (0.5, 2.0, 0.0)}, "solarise is"),
        ({"local_scale": (0.5, 0.1)}, "local_scale"),
        ({"policy": "rand_augment"}, "policy is not for views"),
        ({"erasing": 0.5}, "erasing is not for views"),
    ],
)
def test_settings_that_are_none(change, words):
    with pytest.raises(UsageError, match=words):
        MultiCrop(SIZE, replace(FULL, **change))
    with pytest.raises(UsageError, match="3 channels"):
        MultiCrop(replace(SIZE, channels=1), FULL)
