"""A detector without weights, for tests of what is around one: it finds squares by their colour.

A square of red, green or blue on black is an object of class 0, 1 or 2. Its score is the level of the colour.
"""

import numpy as np
import torch
from scipy import ndimage

from patchform.backbones.base import Backbone
from patchform.geometry import detections, masks
from patchform.heads.base import Head
from patchform.model import Model
from patchform.records import Features, Instances, Preprocessing


class Pixels(Backbone):
    """The image itself."""

    strides, channels, width = (1,), (3,), 3

    def layers(self):
        return []

    def forward(self, images, *, padding=None):
        return Features((images,), (1,), tuple(images.shape[-2:]), padding=padding)


class Squares(Head):
    """Connected pixels above `least` of one channel."""

    tasks = ("detection", "instance_segmentation")

    def __init__(self, least=0.05, largest=10**9):
        super().__init__()
        self.least, self.largest = least, largest

    def forward(self, features, targets=None):
        return features.maps[0], detections.picture_sizes(features)

    def decode(self, raw, sizes):
        return [self._found(*one) for one in zip(*raw, sizes)]

    def _found(self, image, real, size):
        boxes, classes, scores = [], [], []
        for index, channel in enumerate(image.numpy()):
            labels, _ = ndimage.label(channel > self.least)
            for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
                if max(rows.stop - rows.start, columns.stop - columns.start) > self.largest:
                    continue
                boxes.append([columns.start, rows.start, columns.stop, rows.stop])
                classes.append(index)
                scores.append(float(channel[labels == number].max()))
        order = np.argsort([-score for score in scores], kind="stable")
        boxes = torch.tensor(boxes, dtype=torch.float32).view(-1, 4)[order]
        boxes = detections.to_pictures(boxes, real, size)
        dense = torch.zeros(len(boxes), *size)
        for mask, (left, top, right, bottom) in zip(dense, boxes.round().int().tolist()):
            mask[top:bottom, left:right] = 1
        classes = torch.tensor(classes, dtype=torch.int64)[order]
        return Instances(boxes, classes, torch.tensor(scores)[order], masks.from_dense(dense))


def detector(size=(64, 64), resize="fit", facts=None, **options):
    """The model; its input is resized to nearest pixels. `facts`: its ids and thresholds."""
    preprocessing = Preprocessing(size=size, resize=resize, interpolation="nearest", mean=(0.0,), std=(1.0,))
    names = ("red", "green", "blue")
    return Model(Pixels(), Squares(**options), classes=names, preprocessing=preprocessing, **(facts or {})).eval()


def picture(size, *squares):
    """(3, H, W) uint8 with squares of (class, left, top, side, level)."""
    pixels = torch.zeros(3, *size, dtype=torch.uint8)
    for index, left, top, side, level in squares:
        pixels[index, top : top + side, left : left + side] = level
    return pixels
