"""Scanned digits, and scenes of them on textured ground: what the demos learn from."""

from __future__ import annotations

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

    found = datasets.load_digits()
    return Digits(np.rint(found.images * (255 / 16)).astype(np.uint8), found.target)


def split(digits: Digits, share: float, seed: int) -> tuple[Digits, Digits]:
    """Two parts, the second of `share` of each class."""
    import numpy as np

    numbers = np.random.default_rng(seed)
    kept, held_out = [], []
    for digit in range(10):
        members = numbers.permutation(np.flatnonzero(digits.classes == digit))
        count = round(share * len(members))
        held_out.append(members[:count])
        kept.append(members[count:])
    first, second = np.concatenate(kept), np.concatenate(held_out)
    return Digits(digits.images[first], digits.classes[first]), Digits(digits.images[second], digits.classes[second])


def scene(digits: Digits, numbers: np.random.Generator) -> Scene:
    """A scene: `NUMBER` digits of random size and place, dark or bright on a ground of random texture."""
    import numpy as np
    from PIL import Image

    image, owners = _ground(numbers), np.zeros((SIDE, SIDE), np.uint8)
    taken = np.zeros((SIDE, SIDE), bool)
    classes: list[int] = []
    for _ in range(int(numbers.integers(NUMBER[0], NUMBER[1] + 1))):
        which, side = int(numbers.integers(len(digits.images))), int(numbers.integers(SIZES[0], SIZES[1] + 1))
        for top, left in numbers.integers(0, SIDE - side + 1, (TRIES, 2)):
            place = slice(top, top + side), slice(left, left + side)
            if taken[place].mean() <= OVERLAP:
                break
        else:
            continue
        scan = Image.fromarray(digits.images[which]).resize((side, side), Image.Resampling.BICUBIC)
        ink = np.asarray(scan, np.float32) / 255
        here = owners[place].copy()
        here[ink >= INK] = len(classes) + 1
        after = owners.copy()
        after[place] = here
        if len(np.unique(after[after > 0])) <= len(classes):  # nothing would be left of an earlier one
            continue
        owners, level = after, image[place].mean()
        sign = 1 if level < 100 or (level < 155 and numbers.random() < 0.5) else -1
        shown = np.clip(level + sign * numbers.uniform(*CONTRAST), 0, 255)
        cover = np.clip(ink * 1.5, 0, 1)
        image[place] = image[place] * (1 - cover) + shown * cover
        taken[place] = True
        classes.append(int(digits.classes[which]))
    image += numbers.normal(0, numbers.uniform(1, 5), image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), np.array(classes, np.int64), owners)


def _ground(numbers: np.random.Generator) -> np.ndarray:
    """(SIDE, SIDE) float32: patches of grey at two scales."""
    import numpy as np
    from PIL import Image

    ground = np.full((SIDE, SIDE), numbers.uniform(60, 195), np.float32)
    for cells, strength in ((4, 25), (int(numbers.integers(8, 25)), 12)):
        field = numbers.normal(0, numbers.uniform(0.3, 1) * strength, (cells, cells)).astype(np.float32)
        ground += np.asarray(Image.fromarray(field).resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    return ground
