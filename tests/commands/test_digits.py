import numpy as np
import pytest

from patchform.commands import digits

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def scans():
    return digits.load()


def test_the_scans_are_split_by_class(scans):
    parts = digits.split(scans, (0.7, 0.1, 0.2), 0)
    assert sum(len(part.images) for part in parts) == len(scans.images) == 1797
    for digit in range(10):
        members = (scans.classes == digit).sum()
        for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
            assert abs((part.classes == digit).sum() - share * members) <= 1
    numbered = digits.Digits(np.arange(1797)[:, None, None], scans.classes)  # which scan is where
    where = np.concatenate([part.images.ravel() for part in digits.split(numbered, (0.7, 0.1, 0.2), 0)])
    assert sorted(where) == list(range(1797))
    again, other = digits.split(scans, (0.7, 0.1, 0.2), 0)[2], digits.split(scans, (0.7, 0.1, 0.2), 1)[2]
    assert np.array_equal(again.images, parts[2].images)
    assert not np.array_equal(other.images, parts[2].images)  # control


def test_a_scene_knows_whose_ink_is_where(scans):
    sizes = []
    for seed in range(50):
        scene = digits.scene(scans, np.random.default_rng(seed))
        assert scene.image.shape == scene.owners.shape == (digits.SIDE, digits.SIDE)
        assert scene.image.dtype == scene.owners.dtype == scene.mask().dtype == np.uint8
        assert 1 <= len(scene.classes) <= digits.NUMBER[1]
        assert sorted(np.unique(scene.owners[scene.owners > 0])) == list(range(1, 1 + len(scene.classes)))
        mask = scene.mask()
        for number, digit in enumerate(scene.classes, 1):
            own = scene.owners == number
            assert (mask[own] == 1 + digit).all()
            rows, columns = np.flatnonzero(own.any(1)), np.flatnonzero(own.any(0))
            sizes.append(max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1)
            around = np.zeros_like(own)
            around[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = (
                scene.owners[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] == 0
            )
            assert abs(scene.image[own].mean() - scene.image[around].mean()) > 30  # it can be seen
        assert (mask[scene.owners == 0] == 0).all()
    assert max(sizes) <= digits.SIZES[1]
    assert max(sizes) - min(sizes) > 10


def test_scenes_depend_on_their_numbers_alone(scans):
    first, second, other = (digits.scene(scans, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.owners, second.owners)
    assert not np.array_equal(first.image, other.image)  # control


def test_a_digit_goes_where_its_class_says(scans):
    seen = 0
    for seed in range(20):
        for name, way in digits.MOTIONS.items():
            frames = digits.motion(scans, np.random.default_rng(seed), name).astype(np.float32)
            assert frames.shape == (digits.FRAMES, digits.SIDE, digits.SIDE)
            still = np.median(frames, 0)  # mostly the ground
            middles = []
            for part in (frames[:4], frames[-4:]):
                ink = np.abs(part.mean(0) - still) > 40
                middles.append([place.mean() if len(place) else np.nan for place in np.nonzero(ink)])
            if name == "still":
                assert np.isnan(middles).all()
            elif not np.isnan(middles).any():  # what is covered half of the time looks like ground
                moved = np.subtract(middles[1], middles[0])
                assert moved @ way > 4
                assert abs(moved @ way[::-1]) < abs(moved @ way)
                seen += 1
    assert seen > 20  # control: of 80


def test_one_frame_of_the_middle_does_not_tell_where(scans):
    """The same draws with another name give the same frame in the middle of the way, but for one pixel."""
    left, right = (digits.motion(scans, np.random.default_rng(5), name).astype(int) for name in ("left", "right"))
    differ = [(np.abs(left[index] - right[digits.FRAMES - 1 - index]) > 40).mean() for index in range(digits.FRAMES)]
    assert max(differ) < 0.02
    assert (np.abs(left[0] - right[0]) > 40).mean() > 0.02  # control
