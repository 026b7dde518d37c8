"""MixToken: images are mixed behind the embedding, not in front of it (Jiang et al., NeurIPS 2021, arXiv:2104.10858,
section 3.3).

Patches that hold pixels of two images, as CutMix's may, belong to no class. So whole cells of a box are exchanged where
the backbone embeds them; each token is then that of one image, and learns what is in that, while the class of the whole
is shared by area.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from patchform.data.transforms import random_box, soft
from patchform.geometry import grids
from patchform.layers.token_mixing import partners
from patchform.records import Batch, Label
from patchform.settings import AugmentationSettings


class TokenMixing:
    """Says which cells images exchange, and what their labels then are.

    One box for a batch. The authors pair an image with that at the other end of the batch; here it is its neighbour, so
    that parts of an even size pair as the whole batch does.

    Args:
        augmentation: `mix_token` (alpha of the Beta distribution) and `mix_probability` are used.
        classes: C.
        stride: pixels of a side of a cell of the model's last map.
        smoothing: share of the targets of tokens that is spread evenly, in [0, 1).
    """

    def __init__(self, augmentation: AugmentationSettings, classes: int, stride: int, smoothing: float) -> None:
        self.alpha, self.probability = augmentation.mix_token, augmentation.mix_probability
        self.classes, self.stride, self.smoothing = classes, stride, smoothing

    def mix(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Choose the box, in cells.

        Args:
            batch: images of one size, with labels.
            generator: on the CPU; all that is drawn is drawn from it.

        Returns:
            The same images, `exchanged`, and labels whose `scores` (C,) are shared with the partner's by area and
            whose `tokens` (C, 1, 1) are the image's own; or the batch as it is, by chance or where the box is empty.
        """
        # the Beta distribution of torch takes no generator
        numbers = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        if numbers.random() >= self.probability:
            return batch
        rows, columns = grids.cells(grids.size_of(batch.images), self.stride)
        box = random_box(rows, columns, float(numbers.beta(self.alpha, self.alpha)), numbers)
        top, left, bottom, right = box
        if bottom <= top or right <= left:
            return batch
        kept = 1 - (bottom - top) * (right - left) / (rows * columns)
        labels = cast("Sequence[Label]", batch.targets)
        own = torch.stack([soft(label, self.classes) for label in labels])
        shared = torch.lerp(partners(own), own, kept)
        smooth = own * (1 - self.smoothing) + self.smoothing / self.classes
        targets = tuple(
            Label(label.classes, scores, tokens[:, None, None]) for label, scores, tokens in zip(labels, shared, smooth)
        )
        return batch._replace(targets=targets, exchanged=box)
