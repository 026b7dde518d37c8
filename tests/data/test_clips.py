import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise

import moving
import pytest
import torch
from moving import number_of

from patchform.data import samples
from patchform.data.checks.copies import copies, overlap
from patchform.data.checks.examination import check, examine
from patchform.data.clips import (
    Clips,
    Crops,
    evaluation_clips,
    evaluation_frames,
    span,
    training_clips,
    training_frames,
)
from patchform.data.collate import collate, split, to_device
from patchform.data.dataset import open_data, open_evaluation
from patchform.data.loader import TrainingBatches, evaluation_loader, generator, training_loader
from patchform.data.transforms import Mixing, evaluation_transform, training_transform
from patchform.errors import DataError, UsageError
from patchform.records import Batch, Label, Preprocessing, Sample
from patchform.settings import AugmentationSettings, DataSettings, Recipe
from patchform.tasks.classification import Classification
from patchform.tasks.video_classification import VideoClassification
from patchform.training.preparation import refuse_nonsense

TASK = "video_classification"
STILL = AugmentationSettings(crop_scale=(1, 1), flip=0)
NATIVE = Preprocessing(resize="native", frames=4)


def clip(**options):
    return Preprocessing(size=(16, 24), crop_share=1.0, **options)


# --------------------------------------------------------------------------------------------------- which frames


def test_uniform_clips_take_the_middle_of_each_part():
    p = clip(frames=4)
    assert evaluation_frames(p, 1, 40) == [5, 15, 25, 35]
    assert evaluation_frames(p, 1, 4) == [0, 1, 2, 3]
    assert evaluation_frames(p, 1, 10) == [1, 3, 6, 8]
    assert evaluation_frames(p, 2, 40) == [2, 12, 22, 32, 7, 17, 27, 37]
    assert evaluation_frames(p, 1, 3) == evaluation_frames(p, 2, 3)[4:] == [0, 1, 2, 2]
    assert evaluation_frames(p, 1, 1) == [0, 0, 0, 0]


def test_dense_clips_lie_in_the_middle_or_from_end_to_end():
    p = clip(frames=4, frame_step=3, sampling="dense")
    assert span(p) == 10
    assert evaluation_frames(p, 1, 20) == [5, 8, 11, 14]
    assert evaluation_frames(p, 3, 20) == [0, 3, 6, 9, 5, 8, 11, 14, 10, 13, 16, 19]
    assert evaluation_frames(p, 1, 10) == [0, 3, 6, 9]
    assert evaluation_frames(p, 2, 8) == [0, 3, 6, 7] * 2
    assert evaluation_frames(p, 1, 1) == [0, 0, 0, 0]


@pytest.mark.parametrize("sampling", ["uniform", "dense"])
@pytest.mark.parametrize("clips", [1, 2, 5])
@pytest.mark.parametrize("count", [1, 2, 7, 16, 17, 300])
def test_frames_are_in_the_video_and_never_go_back(sampling, clips, count):
    p = clip(frames=8, frame_step=2, sampling=sampling)
    torch.manual_seed(0)
    found = [evaluation_frames(p, clips, count)[start : start + 8] for start in range(0, 8 * clips, 8)]
    for frames in (*found, *(training_frames(p, count) for _ in range(50))):
        assert len(frames) == 8
        assert frames == sorted(frames)
        assert frames[0] >= 0
        assert frames[-1] <= count - 1
        if count >= span(p):
            assert len(set(frames)) == 8  # nothing is repeated without need
            steps = {later - earlier for earlier, later in pairwise(frames)}
            assert sampling == "uniform" or steps == {2}


def test_training_draws_all_frames_of_a_part_and_all_starts_alike():
    torch.manual_seed(0)
    uniform = [training_frames(clip(frames=4), 20) for _ in range(4000)]
    for part in range(4):
        seen = Counter(frames[part] for frames in uniform)
        assert sorted(seen) == list(range(5 * part, 5 * part + 5))
        assert all(abs(number - 800) < 5 * (800 * 0.8) ** 0.5 for number in seen.values())
    p = clip(frames=4, frame_step=2, sampling="dense")
    starts = Counter(training_frames(p, 16)[0] for _ in range(4000))
    assert sorted(starts) == list(range(10))
    assert all(abs(number - 400) < 5 * (400 * 0.9) ** 0.5 for number in starts.values())


# ------------------------------------------------------------------------------------------- the same for all frames

EVERY = {
    "crop": {},
    "padding": {"crop_padding": 4, "flip": 0.5, "vertical_flip": 0.5},
    "rand_augment": {"policy": "rand_augment"},
    "trivial_augment": {"policy": "trivial_augment"},
    "jitter": {"color_jitter": 0.4},
    "erasing": {"erasing": 1.0},
}


def changed(settings, pixels, seed, size=(16, 24)):
    torch.manual_seed(seed)
    return training_transform(Preprocessing(size=size), AugmentationSettings(**settings))(pixels)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", EVERY)
def test_all_frames_are_changed_alike(name, bits):
    """A clip is changed as each of its frames alone would be with the same numbers."""
    if bits == 16 and name.endswith("augment"):
        pytest.skip("of 8 bits")
    torch.manual_seed(0)
    frames = torch.randint(256, (5, 3, 30, 40), dtype=torch.uint8)
    frames = frames if bits == 8 else frames / 255
    distinct = 0
    for seed in range(25):
        together = changed(EVERY[name], frames, seed)
        alone = torch.stack([changed(EVERY[name], frame, seed) for frame in frames])
        assert together.dtype == frames.dtype
        assert together.shape == alone.shape == (5, 3, 16, 24)
        assert together.sub(alone).abs().max() <= (0 if bits == 8 else 1e-6)
        numbered = torch.stack([changed(EVERY[name], frame, seed + 50 + place) for place, frame in enumerate(frames)])
        distinct += not together.equal(numbered)
    assert distinct == 25  # the control: numbers of its own for each frame


@pytest.mark.parametrize("resize", ["crop", "squash", "keep", "fit", "native"])
def test_evaluation_sees_frames_as_pictures(resize):
    frames = torch.randint(256, (5, 3, 30, 50), dtype=torch.uint8)
    fit = evaluation_transform(Preprocessing(size=(16, 24), resize=resize))
    assert fit(frames).equal(torch.stack([fit(frame) for frame in frames]))


def test_mixing_takes_the_same_box_of_all_frames():
    images = torch.stack([torch.full((4, 3, 16, 16), value, dtype=torch.uint8) for value in (0, 255)])
    batch = Batch(images, tuple(Label(torch.tensor([index])) for index in range(2)), ("a", "b"), ((16, 16),) * 2)
    for settings in (AugmentationSettings(cutmix=1.0), AugmentationSettings(mixup=1.0)):
        mixed = Mixing(settings, 2).mix(batch, generator(3))
        assert mixed.images.shape == images.shape
        assert (mixed.images == mixed.images[:, :1]).all()
        share = float(mixed.images[0, 0, 0].mean())
        assert mixed.targets[0].scores.tolist() == pytest.approx([1 - share, share], abs=1e-6)


# ------------------------------------------------------------------------------------------------------ the data set


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """train/ and val/ of two classes; a frame folder, a GIF and a video of three frames among them."""
    pytest.importorskip("av")
    home = tmp_path_factory.mktemp("set")
    moving.class_folders(home / "train", {"wave": 2, "clap": 2})
    moving.video(home / "train" / "clap" / "short.mp4", count=3)
    moving.frame_folder(home / "train" / "wave" / "frames")
    moving.gif(home / "train" / "wave" / "z.gif")
    moving.class_folders(home / "val", {"wave": 1, "clap": 1}, count=20)
    return home


def opened(root, **settings):
    return open_data(DataSettings(path=str(root), **settings), seed=0, preprocessing=NATIVE, task=TASK)


def test_samples_are_clips(root):
    listing = opened(root).train
    assert listing.videos
    found = VideoClassification().evaluation_samples(listing, NATIVE)
    assert isinstance(found, Clips)
    for index in range(len(listing)):
        sample = found[0, index]
        assert sample.image.shape == (4, 3, *moving.SIZE)
        assert sample.size == moving.SIZE
        assert sample.target.classes.tolist() == list(listing.items[index].classes)
        expected = [0, 1, 2, 2] if "short" in sample.name else [5, 15, 25, 35]
        assert [number_of(frame) for frame in sample.image] == expected


@pytest.mark.parametrize("budget", [samples.CACHE_BYTES, 0])
@pytest.mark.parametrize("sampling", ["uniform", "dense"])
def test_clips_depend_on_seed_epoch_and_index_alone(root, sampling, budget, monkeypatch):
    monkeypatch.setattr(samples, "CACHE_BYTES", budget)
    listing, p = opened(root).train, clip(frames=4, frame_step=5, sampling=sampling)
    change = AugmentationSettings(policy="rand_augment", erasing=0.5)
    first, second = (VideoClassification().training_samples(listing, p, change, 3) for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(len(listing))]
    expected = {key: first[key].image for key in keys}
    torch.manual_seed(5)
    before = torch.get_rng_state()
    assert all(second[key].image.equal(expected[key]) for key in reversed(keys))
    assert torch.get_rng_state().equal(before)
    assert not any(second[0, index].image.equal(expected[1, index]) for index in range(len(listing)))
    assert not any(training_clips(listing, p, change, 4)[key].image.equal(expected[key]) for key in keys)
    native = Preprocessing(resize="native", frames=4, frame_step=5, sampling=sampling)
    moved = training_clips(listing, native, STILL, 3)
    assert len({tuple(number_of(frame) for frame in moved[epoch, 0].image) for epoch in range(6)}) > 3


def test_the_cache_changes_nothing_and_knows_its_limit(root, monkeypatch):
    listing, size = opened(root).validation, 20 * 3 * moving.SIZE[0] * moving.SIZE[1]
    monkeypatch.setattr(samples, "CACHE_BYTES", 2 * size)
    cached = training_clips(listing, NATIVE, STILL, 0)
    twice = [cached[epoch, 0].image for epoch in (0, 1, 0)]
    assert {index: whole.nbytes for index, whole in cached._cache.items()} == {0: size}
    monkeypatch.setattr(samples, "CACHE_BYTES", 2 * size - 1)
    plain = training_clips(listing, NATIVE, STILL, 0)
    assert [plain[epoch, 0].image.equal(image) for epoch, image in zip((0, 1, 0), twice)] == [True] * 3
    assert plain._cache is None


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_from_any_step_on_and_with_workers(root, workers):
    listing, p = opened(root).train, clip(frames=4)

    def run(start, workers):
        order = TrainingBatches(len(listing), 3, 9, start, 6)
        return list(
            training_loader(
                VideoClassification().training_samples(listing, p, AugmentationSettings(), 9), order, workers
            )
        )

    whole = run(0, 0)
    for again, batch in zip(run(1, workers), whole[1:], strict=True):
        assert again.images.equal(batch.images)
        assert again.names == batch.names
        assert [target.classes.tolist() for target in again.targets] == [
            target.classes.tolist() for target in batch.targets
        ]
    assert whole[0].images.shape == (3, 4, 3, 16, 24)
    assert whole[0].padding is None


def test_views_are_clip_by_clip_and_crop_by_crop(root):
    listing, p = opened(root).validation, clip(frames=4)  # frames of 64 x 96, to 16 x 24: nothing to spare
    wide = Preprocessing(size=(16, 16), crop_share=0.8, frames=4)
    once = VideoClassification().evaluation_samples(listing, wide)[0, 0].image
    found = VideoClassification().evaluation_samples(listing, wide, views=(2, 3))[0, 0].image
    assert found.shape == (24, 3, 16, 16)
    views = found.unflatten(0, (2, 3, 4))
    clips = [evaluation_clips(listing, wide, views=(2, 1))[0, 0].image[start : start + 4] for start in (0, 4)]
    assert all(views[index, 1].equal(clips[index]) for index in range(2))  # the one in the middle is the usual one
    assert not views[0, 0].equal(views[0, 1])
    assert VideoClassification().evaluation_samples(listing, wide, views=(1, 1))[0, 0].image.equal(once)
    alike = evaluation_clips(listing, p, views=(1, 3))[0, 0].image.unflatten(0, (3, 4))
    assert alike[0].equal(alike[2])
    for views, said in (((0, 1), "no view"), ((1, 0), "no view")):
        with pytest.raises(UsageError, match=said):
            evaluation_clips(listing, wide, views=views)
    with pytest.raises(UsageError, match="squash"):
        evaluation_clips(listing, clip(frames=4, resize="squash"), views=(1, 3))


def test_crops_go_along_the_side_with_more_to_spare():
    p = Preprocessing(size=(8, 8), crop_share=1.0, frames=1)
    ramp = torch.arange(24, dtype=torch.uint8).expand(1, 3, 8, 24)

    def lefts(image):
        return [int(crop[0, 0, 0]) for crop in Crops(p, 3)(image)], Crops(p, 3)(image)

    assert lefts(ramp)[0] == [0, 8, 16]
    assert lefts(ramp)[1].mT.equal(lefts(ramp.mT)[1])


def test_settings_that_do_not_go_with_the_data_are_refused(root, tmp_path):
    listing = opened(root).train
    for make in (
        lambda listing, p: VideoClassification().training_samples(listing, p, STILL, 0),
        VideoClassification().evaluation_samples,
    ):
        with pytest.raises(UsageError, match=r"are videos, and preprocessing\.frames is 0"):
            make(listing, Preprocessing())
    moving.frame_folder(tmp_path / "pictures")
    pictures = open_evaluation(tmp_path, DataSettings(), ("pictures",))
    with pytest.raises(UsageError, match=r"are pictures, and preprocessing\.frames is 4"):
        Classification().evaluation_samples(pictures, NATIVE)
    with pytest.raises(UsageError, match="mosaic is for objects"):
        VideoClassification().training_samples(listing, NATIVE, AugmentationSettings(mosaic=0.5), 0)


def test_settings_of_clips_go_into_the_model_and_nonsense_is_refused():
    recipe = Recipe(task=TASK, preprocessing=Preprocessing(frames=6, frame_step=3, sampling="dense"))
    refuse_nonsense(recipe)
    for change, said in (
        ({"frames": 0}, "frames is 0; it must be at least 1 for videos"),
        ({"frames": -1}, "frames is -1"),
        ({"frame_step": 0}, "frame_step is 0; it must be at least 1"),
        ({"sampling": "sparse"}, "sampling cannot be .sparse.; it is one of dense, uniform"),
    ):
        with pytest.raises(UsageError, match=said):
            refuse_nonsense(replace(recipe, preprocessing=replace(recipe.preprocessing, **change)))


def test_clips_of_several_sizes_are_padded_and_parts_count_their_frames():
    sizes = ((10, 8), (6, 12))
    made = [Sample(torch.ones(4, 3, *size, dtype=torch.uint8), Label(torch.tensor([0])), "a", size) for size in sizes]
    batch = collate(made)
    assert batch.images.shape == (2, 4, 3, 10, 12)
    for image, padding, (height, width) in zip(batch.images, batch.padding, sizes):
        assert not padding[:height, :width].any()
        assert padding.sum() == 120 - height * width
        assert (image.sum((0, 1)) == 12 * ~padding).all()
    moved = to_device(batch, "cpu")
    assert moved.images.equal(batch.images)
    assert [len(part.images) for part in split(batch, 0, 2 * 4 * 120)] == [2]
    parts = list(split(batch, 0, 2 * 4 * 120 - 1))
    assert [part.images.shape for part in parts] == [(1, 4, 3, 10, 8), (1, 4, 3, 6, 12)]


# ------------------------------------------------------------------------------------------------------------ faults


def spoil(root):
    """Four videos that cannot be used."""
    whole = (root / "train" / "wave" / "000.mp4").read_bytes()
    (root / "train" / "wave" / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (root / "train" / "wave" / "page.mp4").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    (root / "train" / "clap" / "empty.avi").write_bytes(b"")
    moving.sound_alone(root / "train" / "clap" / "sound.mkv")
    return 4


def test_faults_are_counted_and_named_and_left_out_if_so_asked(root, tmp_path):
    home = shutil.copytree(root, tmp_path / "set")
    listing = opened(home).train
    kept, report = check(listing, NATIVE)
    assert kept == listing
    assert report.notes == ('1 videos have less than 4 frames, and repeat the last one: "clap/short.mp4"',)
    assert check(listing, Preprocessing(frames=4, frame_step=15, sampling="dense"))[1].notes[0].startswith("7 videos")
    bad = spoil(home)
    listing = opened(home).train
    with pytest.raises(DataError, match=rf"{bad} of {len(listing)} videos cannot be used.*wave/page.mp4: not a video"):
        check(listing, NATIVE)
    kept, report = check(listing, NATIVE, skip_bad=0.5)
    assert len(kept) == report.used == len(listing) - bad
    assert {fault.kind for fault in report.faults} == {"video-bad"}
    again = check(listing, NATIVE, skip_bad=0.5)  # from memory
    assert again == (kept, report)
    with pytest.raises(DataError, match=r"empty in .*empty\.avi"):
        list(evaluation_loader(VideoClassification().evaluation_samples(listing, NATIVE), 2))


def test_a_check_is_made_again_when_a_frame_changes(root, tmp_path):
    home = shutil.copytree(root, tmp_path / "set")
    listing = opened(home).train
    assert examine(listing, NATIVE).faults == ()
    (home / "train" / "wave" / "frames" / "frame39.png").write_bytes(b"")
    (fault,) = examine(listing, NATIVE).faults
    assert (fault.where, fault.what) == ("wave/frames", "frame39.png: the file is empty")


def test_equal_videos_are_found(root, tmp_path):
    home = shutil.copytree(root, tmp_path / "set")
    assert overlap(*opened(home)[:2]) == ()
    shutil.copytree(home / "train" / "wave" / "frames", home / "val" / "wave" / "other")
    shutil.copyfile(home / "train" / "clap" / "short.mp4", home / "train" / "wave" / "twin.mp4")
    train, validation, _ = opened(home)
    assert overlap(train, validation) == (("wave/frames", "wave/other"),)
    assert [(train.name(one), train.name(two)) for one, two in copies(train)] == [("clap/short.mp4", "wave/twin.mp4")]
