"""Scanned digits, scenes of them on textured ground, clips in which one moves: what the demos learn from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from patchform.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

SIDE = 64
"""Of a scene, pixels."""
SIZES = (20, 36)
"""Smallest and largest side of a digit in a scene, pixels."""
NUMBER = (2, 5)
"""Fewest and most digits of a scene; fewer if there is no place."""
INK = 0.4
"""Share of ink from which a pixel belongs to a digit."""
CONTRAST = (90, 150)
"""Grey levels between the ink and the ground around it."""
OVERLAP = 0.1
"""Largest share of a digit's square that an earlier one may cover."""
TRIES = 20
"""Places that are tried for each digit."""
FRAMES, TRAVEL = 16, (12, 24)
"""Of a clip: how many, and shortest and longest path of the digit in it, pixels."""
MOTIONS = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "still": (0, 0), "up": (-1, 0)}
"""Rows and columns that a digit goes."""


class Digits(NamedTuple):
    """Scans of single digits."""

    images: np.ndarray
    """(N, 8, 8) uint8 in 0..255, ink bright."""
    classes: np.ndarray
    """(N,) int64: 0 to 9."""


class Scene(NamedTuple):
    """Digits on textured ground. Boxes and masks of the digits follow from `owners`."""

    image: np.ndarray
    """(SIDE, SIDE) uint8."""
    classes: np.ndarray
    """(N,) int64: what was drawn, the last one on top."""
    owners: np.ndarray
    """(SIDE, SIDE) uint8: whose ink a pixel is, 1 to N, 0 for the ground. Each digit has some."""

    def mask(self) -> np.ndarray:
        """(SIDE, SIDE) uint8: 0 for the ground, 1 + the digit elsewhere."""
        import numpy as np

        return np.concatenate([[0], 1 + self.classes]).astype(np.uint8)[self.owners]


def load() -> Digits:
    """Scikit-learn's copy of the UCI test set of digits, 1797 of them.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise UsageError(
            "the demo needs scikit-learn for its pictures", remedy="pip install patchform[demo]"
        ) from error
    import numpy as np

    bunch = datasets.load_digits()
    return Digits(np.rint(bunch.images * (255 / 16)).astype(np.uint8), bunch.target)


def split(digits: Digits, shares: Sequence[float], seed: int) -> list[Digits]:
    """Parts that have nothing in common, each of its share of each class, which add up to 1."""
    import numpy as np

    numbers = np.random.default_rng(seed)
    parts: list[list[np.ndarray]] = [[] for _ in shares]
    for digit in range(10):
        members = numbers.permutation(np.flatnonzero(digits.classes == digit))
        ends = np.rint(np.cumsum(shares) * len(members)).astype(int)
        for part, own in zip(parts, np.split(members, ends[:-1])):
            part.append(own)
    chosen = [np.concatenate(part) for part in parts]
    return [Digits(digits.images[index], digits.classes[index]) for index in chosen]


def scene(digits: Digits, numbers: np.random.Generator) -> Scene:
    """A scene: `NUMBER` digits of random size and place, dark or bright on a ground of random texture."""
    import numpy as np

    image, owners = _ground(numbers), np.zeros((SIDE, SIDE), np.uint8)
    taken = np.zeros((SIDE, SIDE), bool)
    classes: list[int] = []
    for _ in range(int(numbers.integers(NUMBER[0], NUMBER[1] + 1))):
        index, side = int(numbers.integers(len(digits.images))), int(numbers.integers(SIZES[0], SIZES[1] + 1))
        for top, left in numbers.integers(0, SIDE - side + 1, (TRIES, 2)):
            window = slice(top, top + side), slice(left, left + side)
            if taken[window].mean() <= OVERLAP:
                break
        else:
            continue
        ink = _ink(digits.images[index], side)
        covered = owners[window].copy()
        covered[ink >= INK] = len(classes) + 1
        updated = owners.copy()
        updated[window] = covered
        if len(np.unique(updated[updated > 0])) <= len(classes):  # nothing would be left of an earlier one
            continue
        owners = updated
        _write(image[window], ink, _shade(image[window], numbers))
        taken[window] = True
        classes.append(int(digits.classes[index]))
    image += numbers.normal(0, numbers.uniform(1, 5), image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), np.array(classes, np.int64), owners)


def motion(digits: Digits, numbers: np.random.Generator, name: str) -> np.ndarray:
    """(FRAMES, SIDE, SIDE) uint8: a digit that moves over a textured ground. The middle of its path tells nothing."""
    import numpy as np

    ground = _ground(numbers)
    index, side = int(numbers.integers(len(digits.images))), int(numbers.integers(SIZES[0], SIZES[1] + 1))
    ink, travel = _ink(digits.images[index], side), numbers.uniform(*TRAVEL)
    middle = numbers.uniform(travel / 2, SIDE - side - travel / 2, 2)
    shade = _shade(ground, numbers)
    frames = np.repeat(ground[None], FRAMES, 0)
    for frame, share in zip(frames, np.linspace(-0.5, 0.5, FRAMES)):
        top, left = np.rint(middle + share * travel * np.array(MOTIONS[name])).astype(int)
        _write(frame[top : top + side, left : left + side], ink, shade)
    frames += numbers.normal(0, numbers.uniform(1, 5), frames.shape)
    return np.clip(frames, 0, 255).astype(np.uint8)


def _ink(scan: np.ndarray, side: int) -> np.ndarray:
    """(side, side) float32 in about 0..1."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(scan).resize((side, side), Image.Resampling.BICUBIC), np.float32) / 255


def _shade(ground: np.ndarray, numbers: np.random.Generator) -> float:
    """A grey level that stands out from the ground."""
    level = ground.mean()
    sign = 1 if level < 100 or (level < 155 and numbers.random() < 0.5) else -1
    return float(min(max(level + sign * numbers.uniform(*CONTRAST), 0), 255))


def _write(region: np.ndarray, ink: np.ndarray, shade: float) -> None:
    """Cover a part of a picture with ink: it is written into."""
    cover = (ink * 1.5).clip(0, 1)
    region[:] = region * (1 - cover) + shade * cover


def _ground(numbers: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) float32: patches of grey at two scales."""
    import numpy as np
    from PIL import Image

    ground = np.full((SIDE, SIDE), numbers.uniform(60, 195), np.float32)
    for cells, strength in ((4, 25), (int(numbers.integers(8, 25)), 12)):
        field = numbers.normal(0, numbers.uniform(0.3, 1) * strength, (cells, cells)).astype(np.float32)
        ground += np.asarray(Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return ground
