import numpy as np
import pytest
import torch
from bad_pictures import gradient
from torchvision.transforms import v2

from patchform.data.transforms import Mixing, RandomCrop, evaluation_transform, training_transform
from patchform.errors import UsageError
from patchform.records import Batch, Label, Preprocessing, Regions
from patchform.settings import AugmentationSettings
from patchform.tasks.base import find_task

PLAIN = AugmentationSettings(crop_scale=(1.0, 1.0), flip=0.0)


def picture(height, width):
    return torch.from_numpy(gradient(height, width)).permute(2, 0, 1).contiguous()


@pytest.mark.parametrize("size", [(300, 500), (500, 300), (224, 224), (256, 256), (100, 90), (31, 301)])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_resize_and_centre_crop_equal_the_common_recipe(size, interpolation):
    mode = v2.InterpolationMode(interpolation)
    common = v2.Compose([v2.Resize(256, mode, antialias=interpolation != "nearest"), v2.CenterCrop(224)])
    image = picture(*size)
    found = evaluation_transform(Preprocessing(interpolation=interpolation))(image)
    assert found.equal(common(image))
    other = evaluation_transform(Preprocessing(interpolation=interpolation, crop_share=1.0))(image)
    assert not other.equal(found)  # control


@pytest.mark.parametrize("share", [0.875, 0.9, 0.95, 0.96])
@pytest.mark.parametrize("size", [(300, 500), (500, 300)])
def test_the_side_before_the_crop_is_rounded_down_as_timm_has_it(size, share):
    create = pytest.importorskip("timm.data").create_transform
    side = create(224, is_training=False, interpolation="bilinear", crop_pct=share).transforms[0].size
    image = picture(*size)
    found = evaluation_transform(Preprocessing(interpolation="bilinear", crop_share=share))(image)
    assert found.equal(v2.Compose([v2.Resize(side), v2.CenterCrop(224)])(image))
    assert not found.equal(v2.Compose([v2.Resize(side + 1), v2.CenterCrop(224)])(image))  # control


def test_both_sides_before_the_crop_are_rounded_down():
    image = picture(60, 60)
    found = evaluation_transform(Preprocessing(size=(10, 20), interpolation="bilinear", crop_share=0.7))(image)
    covering = v2.functional.resize(image, [28, 28])  # of 14.3 and 28.6
    assert found.equal(v2.functional.center_crop(covering, [10, 20]))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 3), (37, 64), (64, 48), (48, 64), (65, 49)])
@pytest.mark.parametrize("resize", ["crop", "squash"])
@pytest.mark.parametrize("share", [0.875, 1.0])
def test_the_size_is_exact(size, resize, share):
    preprocessing = Preprocessing(size=(48, 64), resize=resize, crop_share=share)
    for transform in (
        evaluation_transform(preprocessing),
        training_transform(preprocessing, AugmentationSettings()),
        training_transform(preprocessing, AugmentationSettings(crop_padding=4)),
    ):
        found = transform(picture(*size))
        assert found.shape == (3, 48, 64)
        assert found.dtype == torch.uint8


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ((300, 400), (60, 80)),
        ((400, 300), (80, 60)),
        ((30, 30), (60, 60)),
        ((10, 1000), (2, 240)),
        ((1, 5000), (1, 240)),
    ],
)
def test_keep_resizes_the_shorter_side_and_bounds_the_longer(given, wanted):
    image = picture(*given)
    found = evaluation_transform(Preprocessing(size=(60, 90), resize="keep"))(image)
    assert found.shape == (3, *wanted)
    native = evaluation_transform(Preprocessing(size=(60, 90), resize="native"))(image)
    assert native.data_ptr() == image.data_ptr()


def test_only_tasks_of_labels_mix():
    batch = Batch(torch.zeros(2, 3, 4, 4), (Regions(torch.zeros(4, 4)),) * 2, ("a", "b"), ((4, 4),) * 2)
    generator = torch.Generator()
    for name in ("semantic_segmentation", "detection", "instance_segmentation", "pretraining"):
        task = find_task(name)
        assert task.mixing(AugmentationSettings(), 3).mix(batch, generator) is batch
        assert task.mixing(AugmentationSettings(mixup=0.2, mix_probability=0.0), 3).mix(batch, generator) is batch
        for wrong in ({"mixup": 0.2}, {"cutmix": 1.0}):
            with pytest.raises(UsageError, match="whole images"):
                task.mixing(AugmentationSettings(**wrong), 3)
    for name in ("classification", "video_classification"):
        assert find_task(name).mixing(AugmentationSettings(mixup=0.2), 3).active


def test_what_would_do_nothing_is_skipped():
    image = picture(32, 32)
    for resize in ("crop", "squash"):
        found = evaluation_transform(Preprocessing(size=(32, 32), crop_share=1.0, resize=resize))(image)
        assert found.data_ptr() == image.data_ptr()
    assert training_transform(Preprocessing(size=(32, 32), crop_share=1.0), PLAIN)(image).data_ptr() == image.data_ptr()


def test_deep_pictures_stay_deep_and_in_range():
    image = (torch.rand(5, 40, 50) > 0.5).float()
    preprocessing = Preprocessing(size=(32, 32), channels=5, bits=16)
    settings = AugmentationSettings(erasing=1.0, vertical_flip=0.5)
    for transform in (evaluation_transform(preprocessing), training_transform(preprocessing, settings)):
        found = transform(image)
        assert found.dtype == torch.float32
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    ("preprocessing", "settings"),
    [
        (Preprocessing(channels=1), AugmentationSettings(policy="rand_augment")),
        (Preprocessing(bits=16), AugmentationSettings(policy="trivial_augment")),
        (Preprocessing(channels=4), AugmentationSettings(color_jitter=0.3)),
        (Preprocessing(), AugmentationSettings(crop_scale=(0.5, 0.2))),
        (Preprocessing(), AugmentationSettings(crop_scale=(0.5, 1.2))),
        (Preprocessing(), AugmentationSettings(crop_ratio=(0.0, 1.0))),
        (Preprocessing(), AugmentationSettings(mosaic=0.5)),
    ],
)
def test_settings_that_cannot_work_are_refused_at_once(preprocessing, settings):
    with pytest.raises(UsageError, match="augmentation"):
        training_transform(preprocessing, settings)


@pytest.mark.parametrize(
    "settings",
    [
        AugmentationSettings(policy="rand_augment"),
        AugmentationSettings(policy="trivial_augment", color_jitter=0.4),
        AugmentationSettings(crop_padding=4, erasing=1.0, vertical_flip=0.5),
    ],
)
def test_random_changes_follow_the_seed_and_leave_their_input(settings):
    transform = training_transform(Preprocessing(size=(32, 32)), settings)
    image = picture(32, 32)
    original = image.clone()

    def seeded(seed):
        torch.manual_seed(seed)
        return transform(image)

    assert seeded(1).equal(seeded(1))
    assert len({seeded(seed).numpy().tobytes() for seed in range(20)}) > 15
    assert image.equal(original)


def test_flips_and_padded_crops_are_what_they_say():
    image = picture(32, 32)
    tiny = Preprocessing(size=(32, 32), crop_share=1.0)
    torch.manual_seed(0)
    only_flip = training_transform(tiny, AugmentationSettings(crop_scale=(1, 1), flip=1.0))
    assert only_flip(image).equal(image.flip(-1))
    shift = training_transform(tiny, AugmentationSettings(crop_padding=2, flip=0.0))
    padded = torch.nn.functional.pad(image, (2,) * 4)
    places = [padded[:, y : y + 32, x : x + 32] for y in range(5) for x in range(5)]
    found = []
    for _ in range(300):
        moved = shift(image)
        found.append(next(index for index, place in enumerate(places) if place.equal(moved)))
    assert set(found) == set(range(25))


def test_random_crops_have_the_asked_area_and_aspect():
    torch.manual_seed(0)
    crop = RandomCrop(Preprocessing(), (0.2, 0.6), (0.5, 2.0))
    boxes = np.array([crop._box(300, 300) for _ in range(2000)])
    top, left, height, width = boxes.T
    area, aspect = height * width / 90_000, width / height
    assert 0.195 < area.min() < 0.21
    assert 0.59 < area.max() < 0.605
    assert 0.48 < aspect.min() < 0.55
    assert 1.8 < aspect.max() < 2.05
    assert abs(np.log(aspect).mean()) < 0.06
    assert (top + height).max() <= 300
    assert (left + width).max() <= 300
    assert (left + width).max() > 295
    assert crop._box(10, 5000)[2:] == (10, 20)  # nothing fits: the widest allowed box at the centre


def batch(count, classes=5, multi=False, size=(8, 10)):
    numbers = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, 3, *size), generator=numbers, dtype=torch.uint8)
    targets = tuple(Label(torch.tensor([i % classes, (i + 1) % classes][: 1 + multi])) for i in range(count))
    return Batch(images, targets, tuple(map(str, range(count))), ((8, 10),) * count)


def mixed(settings, given, seed=0):
    return Mixing(settings, 5).mix(given, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("settings", [{"mixup": 0.8}, {"cutmix": 1.0}, {"mixup": 0.8, "cutmix": 1.0}])
def test_mixing_equals_its_definition(count, settings):
    given = batch(count)
    unit = given.images.float() / 255
    for seed in range(20):
        result = mixed(AugmentationSettings(**settings), given, seed)
        scores = torch.stack([target.scores for target in result.targets])
        assert result.images.dtype == torch.float32
        torch.testing.assert_close(scores.sum(1), torch.ones(count))
        for index in range(count):
            own, other = unit[index], unit[index - 1]
            share = scores[index, index % 5].item() if count > 1 else 1.0
            lerp = share * own + (1 - share) * other
            from_own = (result.images[index] == own).all(0)
            from_other = (result.images[index] == other).all(0)
            if (from_own | from_other).all():  # a box: the share of the scores is the share of the pixels
                assert from_own.float().mean().item() == pytest.approx(share, abs=1e-6)
            else:
                assert "mixup" in settings
                torch.testing.assert_close(result.images[index], lerp, atol=1e-6, rtol=0)
            assert scores[index, (index - 1) % count % 5].item() == pytest.approx(
                1 - share if count > 1 else 1, abs=1e-6
            )
            assert result.targets[index].classes.equal(given.targets[index].classes)


def test_mixing_draws_from_the_given_generator_alone():
    settings, given = AugmentationSettings(mixup=0.8, cutmix=1.0), batch(4)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = mixed(settings, given), mixed(settings, given), mixed(settings, given, 1)
    assert first.images.equal(again.images)
    assert not first.images.equal(other.images)
    assert torch.get_rng_state().equal(before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    assert given.images.equal(batch(4).images)


def test_mixing_share_probability_and_off():
    given = batch(4)
    assert mixed(AugmentationSettings(), given) is given
    assert not Mixing(AugmentationSettings(mixup=1.0, mix_probability=0.0), 5).active
    settings = AugmentationSettings(mixup=1.0, mix_probability=0.3)
    unit = given.images.float() / 255
    plain = sum(mixed(settings, given, seed).images.equal(unit) for seed in range(300))
    assert 180 < plain < 240
    both = AugmentationSettings(mixup=1.0, cutmix=1.0)
    boxes = sum((mixed(both, given, seed).images[1] == unit[1]).all(0).any().item() for seed in range(300))
    assert 100 < boxes < 200


def test_mixing_several_labels_gives_their_shares():
    result = mixed(AugmentationSettings(mixup=1.0), batch(3, multi=True))
    scores = torch.stack([target.scores for target in result.targets])
    torch.testing.assert_close(scores.sum(1), torch.full((3,), 2.0))
    assert scores[1, 1].item() == pytest.approx(1.0)  # in both pictures
