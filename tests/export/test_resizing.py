"""Resizing as products with matrices gives the pixels of the transform that training evaluates with."""

import pytest
import torch

from patchform.data.transforms import Fit
from patchform.descriptions import Preprocessing
from patchform.export.resizing import ResizeInside, parts

SIZES = [(64, 64), (1, 1), (7, 300), (300, 7), (33, 41), (97, 64), (48, 128), (131, 257), (5, 2), (1, 400)]


def picture(size, bits):
    images = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return images if bits == 8 else images / 255


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("resize", ["crop", "squash", "keep", "fit", "native"])
def test_pixels_are_those_of_the_transform(resize, interpolation, bits):
    p = Preprocessing(size=(48, 32), resize=resize, interpolation=interpolation, bits=bits, crop_share=0.9)
    for size in SIZES:
        image = picture(size, bits)
        wanted, given = Fit(p)(image), ResizeInside(p)(image[None])[0]
        assert given.shape == wanted.shape
        assert given.dtype == wanted.dtype
        apart = (given.double() - wanted.double()).abs()
        if bits == 16 and 1 in wanted.shape[-2:] and interpolation != "nearest":
            continue  # of floats in one column torch makes something else than of uint8, doubles or by definition
        if bits == 16:
            assert apart.max() <= 2e-6, size
        else:  # where a sum lies between two levels, rounding decides
            assert apart.max() <= 1, size
            assert (apart > 0).double().mean() <= 0.01, size


@pytest.mark.parametrize("resize", ["crop", "keep", "fit", "squash"])
def test_sizes_are_those_of_the_transform(resize):
    generator = torch.Generator().manual_seed(1)
    for height, width in torch.randint(1, 5000, (300, 2), generator=generator).tolist():
        p = Preprocessing(size=(224, 192), resize=resize)
        rows, columns = parts(p, height, width)
        image = torch.empty(1, height, width, device="meta", dtype=torch.uint8)
        whole = Fit(p).covering(image) if resize == "crop" else Fit(p)(image)
        assert (rows.whole, columns.whole) == tuple(whole.shape[-2:]), (height, width)


def test_another_interpolation_is_noticed():
    image = picture((97, 64), 8)
    wanted = Fit(Preprocessing(size=(48, 32), interpolation="bilinear"))(image)
    given = ResizeInside(Preprocessing(size=(48, 32), interpolation="bicubic"))(image[None])[0]
    assert ((given.double() - wanted.double()).abs() > 1).double().mean() > 0.3
