import io

import bad_pictures
import numpy as np
import pytest
import torch
from bad_pictures import array_bytes, encode, exif, mutations, png
from PIL import Image

from patchform.data.listing import MaskCodes
from patchform.data.mask_files import decode_mask
from patchform.errors import DataError

IDS = MaskCodes(ids=(*((number, number) for number in range(200)), (255, 255)))
NAMED = MaskCodes(colors=(((128, 64, 0), 0), ((0, 0, 255), 1), ((7, 7, 7), 2), ((0, 0, 0), 255)))


def numbers(high=200, size=(12, 20), seed=0):
    return np.random.default_rng(seed).integers(0, high, size).astype(np.uint8)


def palette_of(ids, order):
    picture = Image.fromarray(ids).convert("P")
    picture.putpalette([level for index in order for level in (index, 255 - index, 17)])
    return picture


def packed(ids, depth):
    """Rows of a PNG of fewer than 8 bits a pixel."""
    bits = np.unpackbits(ids[..., None], axis=-1)[..., 8 - depth :].reshape(len(ids), -1)
    return b"".join(b"\0" + np.packbits(row).tobytes() for row in bits)


IMAGE = numbers()
SMALL = {depth: numbers(1 << depth) for depth in (1, 2, 4)}
FILES = {
    "L.png": (encode(Image.fromarray(IMAGE), "PNG"), IMAGE),
    "P.png": (encode(palette_of(IMAGE, range(256)), "PNG"), IMAGE),
    "P-other-palette.png": (encode(palette_of(IMAGE, range(255, -1, -1)), "PNG"), IMAGE),
    "I16.png": (encode(Image.fromarray(IMAGE.astype(np.uint16)), "PNG"), IMAGE),
    "I16.tif": (encode(Image.fromarray(IMAGE.astype(np.uint16)), "TIFF"), IMAGE),
    "I32.tif": (encode(Image.fromarray(IMAGE.astype(np.int32)), "TIFF"), IMAGE),
    "L.tif": (encode(Image.fromarray(IMAGE), "TIFF", compression="tiff_lzw"), IMAGE),
    "L.bmp": (encode(Image.fromarray(IMAGE), "BMP"), IMAGE),
    "L.gif": (encode(Image.fromarray(IMAGE), "GIF", optimize=False), IMAGE),
    "8.npy": (array_bytes(IMAGE), IMAGE),
    "16.npy": (array_bytes(IMAGE.astype(np.uint16)), IMAGE),
    **{f"{depth}-bit grey.png": (png(20, 12, depth, 0, packed(ids, depth)), ids) for depth, ids in SMALL.items()},
    "4-bit palette.png": (encode(palette_of(SMALL[4], range(16)), "PNG", bits=4), SMALL[4]),
}


@pytest.mark.parametrize("name", FILES)
def test_numbers_are_read_as_they_are(name):
    data, wanted = FILES[name]
    found = decode_mask(data, IDS, (12, 20))
    assert found.dtype == torch.uint8
    assert found.numpy().tolist() == wanted.tolist()


def test_palettes_are_not_looked_at_and_pil_would_stretch_small_depths():  # the controls of the test above
    other = Image.open(io.BytesIO(FILES["P-other-palette.png"][0]))
    assert np.array(other.convert("L")).tolist() != IMAGE.tolist()
    four = Image.open(io.BytesIO(FILES["4-bit grey.png"][0]))
    assert np.array(four).tolist() == (SMALL[4] * 17).tolist()


def test_numbers_become_classes_by_the_coding():
    ids = np.array([[0, 1, 2, 3, 255]], np.uint8)
    coding = MaskCodes(ids=((0, 255), (1, 2), (2, 0), (3, 1), (255, 255)))
    assert decode_mask(encode(Image.fromarray(ids), "PNG"), coding).tolist() == [[255, 2, 0, 1, 255]]
    high = MaskCodes(ids=((0, 0), (40_000, 1)))
    deep = Image.fromarray(np.array([[0, 40_000]], np.uint16))
    assert decode_mask(encode(deep, "PNG"), high).tolist() == [[0, 1]]


def test_a_number_of_no_class_is_refused_with_its_pixels(tmp_path):
    coding = MaskCodes(ids=(*((number, number) for number in range(19)), (255, 255)))
    ids = numbers(19)
    ids[:3, :5] = 37
    file = tmp_path / "a.png"
    file.write_bytes(encode(Image.fromarray(ids), "PNG"))
    with pytest.raises(DataError, match=r"number 37 in 15 pixels .*0\.\.18 are, 255 is ignored") as caught:
        decode_mask(file, coding)
    assert caught.value.where == str(file)
    assert "begin at 1" not in caught.value.remedy
    ids[:3, :5] = 19
    with pytest.raises(DataError, match=r"number 19 in 15 .*begin at 1.*data\.zero"):
        decode_mask(encode(Image.fromarray(ids), "PNG"), coding)
    for odd in (-1, 70_000):
        with pytest.raises(DataError, match=f"number {odd} in 240 pixels"):
            decode_mask(encode(Image.fromarray(np.full((12, 20), odd, np.int32)), "TIFF"), coding)


def test_colours_count_when_there_is_a_map():
    colors = np.array([[128, 64, 0], [0, 0, 255], [7, 7, 7], [0, 0, 0]], np.uint8)
    wanted = np.array([0, 1, 2, 255])
    places = numbers(4)
    rgb = Image.fromarray(colors[places])
    for picture in (rgb, rgb.convert("RGBA"), rgb.quantize(8)):
        assert decode_mask(encode(picture, "PNG"), NAMED, (12, 20)).tolist() == wanted[places].tolist()
    assert decode_mask(array_bytes(colors[places]), NAMED).tolist() == wanted[places].tolist()
    assert decode_mask(encode(Image.fromarray(np.full((2, 2), 7, np.uint8)), "PNG"), NAMED).unique().tolist() == [2]
    odd = np.array(rgb)
    odd[0, :3] = (1, 2, 3)
    with pytest.raises(DataError, match=r"colour \(1, 2, 3\) in 3 pixels is none of the 4"):
        decode_mask(encode(Image.fromarray(odd), "PNG"), NAMED)
    for mode in ("RGB", "RGBA", "LA"):
        with pytest.raises(DataError, match=rf"colours \(mode {mode}\).*data\.colors"):
            decode_mask(encode(rgb.convert(mode), "PNG"), IDS)


@pytest.mark.parametrize("options", [("JPEG", {}), ("WebP", {"lossless": True}), ("TIFF", {"compression": "jpeg"})])
def test_formats_that_change_pixels_are_refused(options):
    format_, more = options
    with pytest.raises(DataError, match="save masks as PNG"):
        decode_mask(encode(Image.fromarray(IMAGE), format_, **more), IDS)
    with pytest.raises(DataError, match="save masks as PNG"):
        decode_mask(encode(Image.fromarray(IMAGE).convert("RGB"), format_, **more), NAMED)


def test_the_size_is_that_of_the_picture_and_turned_ones_are_explained():
    data = FILES["L.png"][0]
    with pytest.raises(DataError, match=r"20 x 12 pixels for a picture of 20 x 13.*one size"):
        decode_mask(data, IDS, (13, 20))
    with pytest.raises(DataError, match="orientation tag"):
        decode_mask(data, IDS, (20, 12))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_by_its_own_tag(orientation):
    turned = encode(Image.fromarray(IMAGE), "PNG", exif=exif(orientation))
    upright = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    wanted = Image.fromarray(IMAGE)
    if orientation > 1:
        wanted = wanted.transpose(upright[orientation])
    assert decode_mask(turned, IDS, wanted.size[::-1]).tolist() == np.array(wanted).tolist()


@pytest.mark.parametrize("name", sorted(set(bad_pictures.bad()) - {"float.tif", "nan.tif", "floats.npy", "cube.npy"}))
def test_files_that_are_no_pictures_are_no_masks(name):
    data, reason = bad_pictures.bad()[name]
    with pytest.raises(DataError, match=f"{reason}|JPEG|WebP|colours|decompression"):
        decode_mask(data, IDS)


def test_damaged_files_give_a_mask_or_a_data_error():
    seeds = {name: data for name, (data, _) in FILES.items()}
    wrong = 0
    for data in mutations(seeds, 400):
        try:
            found = decode_mask(data, IDS, (12, 20))
            assert found.shape == (12, 20)
            assert ((found < 200) | (found == 255)).all()
        except DataError:
            wrong += 1
    assert 100 < wrong < 400
