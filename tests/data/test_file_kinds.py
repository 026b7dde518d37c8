"""Whole files that are not read are called by their names, with what to do; none of them is called damaged."""

import io
import struct

import numpy as np
import pytest
from bad_pictures import encode, gradient, ramp16, smooth
from PIL import Image

from patchform.data.file_kinds import kind_of
from patchform.data.images import decode, facts
from patchform.data.listing import SUFFIXES, MaskCodes
from patchform.data.mask_files import decode_mask
from patchform.errors import DataError
from patchform.records import Preprocessing

RGB = Preprocessing()
HEADS = {
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0",
    "HEIF": b"\0\0\0\x18ftypmif1\0\0\0\0",
    "AVIF": b"\0\0\0\x18ftypavif\0\0\0\0",
    "JPEG XL": b"\xff\x0a\x10\x20",
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n",
    "Photoshop": b"8BPS\0\1",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9"/>',
    "PDF": b"%PDF-1.7\n",
    "raw file": b"\0\0\0\x18ftypcrx \0\0\0\1",
    "BigTIFF": b"II+\0\x08\0\0\0",
    "OpenEXR": b"v/1\x01\x02\0\0\0",
    "DICOM": bytes(128) + b"DICM",
    "ZIP": b"PK\x03\x04",
    "Windows Media": bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c"),
}


def tiff(bands=1, bits=8, form=1, packing=1, more=(), size=(4, 5)):
    """A TIFF whose pixels are zeros, with tags of whole numbers `more`."""
    height, width = size
    raw = bytes(height * width * bands * max(1, bits // 8))
    rows = [(256, 4, width), (257, 4, height), (258, 3, None), (259, 3, packing), (262, 3, 1), (273, 4, 8)]
    rows += [(277, 3, bands), (278, 4, height), (279, 4, len(raw)), (339, 3, form), *more]
    rows.sort()
    start = 8 + len(raw)
    behind = start + 2 + 12 * len(rows) + 4
    data = b"II*\0" + struct.pack("<I", start) + raw + struct.pack("<H", len(rows))
    for tag, kind, value in rows:
        if value is None and bands <= 2:
            data += struct.pack("<HHI2H", tag, kind, bands, bits, bits if bands == 2 else 0)
        else:
            number = bands if value is None else 1
            data += struct.pack("<HHII", tag, kind, number, behind if value is None else value)
    return data + struct.pack(f"<I{bands}H", 0, *[bits] * bands)


def refusal(data):
    with pytest.raises(DataError) as caught:
        decode(data, RGB)
    return str(caught.value)


@pytest.mark.parametrize("name", HEADS)
def test_files_of_other_kinds_are_named(name):
    for data in (HEADS[name], HEADS[name] + bytes(500)):
        said = refusal(data)
        assert name in said
        assert "damaged" not in said
        assert ";" in said  # and what to do
        assert name in kind_of(data).what


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ({"bands": 5}, "5 bands of 8 bits"),
        ({"bands": 13, "bits": 16}, "13 bands of 16 bits"),
        ({"bits": 64, "form": 3}, "1 band of 64 bits, floating-point"),
        ({"bands": 4, "bits": 32, "form": 3}, "4 bands of 32 bits, floating-point"),
        ({"packing": 50000}, "packed by Zstandard"),
        ({"packing": 34887}, "packed by LERC"),
        ({"packing": 777}, "packed by method 777"),
        ({"more": ((50706, 4, 0x00000401),)}, "raw file"),
        ({"more": ((254, 4, 1), (330, 4, 8))}, "raw file"),  # a preview in front of the picture
    ],
)
def test_tiff_files_say_what_they_hold(tags, said, capfd):
    text = refusal(tiff(**tags))
    assert said in text
    assert "damaged" not in text
    assert decode(tiff(), RGB).shape == (3, 4, 5)  # the control


def test_ordinary_tiff_files_that_are_cut_are_damaged():
    whole = encode(smooth(), "TIFF")
    assert "damaged" in refusal(whole[:-1400])
    assert "damaged" in refusal(tiff()[:20])


def pnm(kind, size, *values):
    return f"P{kind}\n# a remark\n{size}\n".encode() + b" ".join(str(value).encode() for value in values) + b"\n"


def test_pnm_pictures_are_read():
    for picture in (smooth(), smooth().convert("L"), smooth().convert("1")):
        data = encode(picture, "PPM")
        assert decode(data, RGB).equal(decode(encode(picture, "PNG"), RGB))
        assert facts(data).format == "PNM"
        assert "cut short" in refusal(data[:-40])
    deep = Preprocessing(channels=1, bits=16)
    assert decode(encode(Image.fromarray(ramp16()), "PPM"), deep).equal(
        decode(encode(Image.fromarray(ramp16()), "PNG"), deep)
    )
    assert decode(pnm(2, "3 1", 15, 0, 5, 15), RGB)[0].tolist() == [[0, 85, 255]]
    assert {".ppm", ".pgm", ".pbm", ".pnm", ".jfif", ".jpe", ".dib"} <= set(SUFFIXES)


def test_pgm_masks_keep_their_numbers_or_are_refused():
    codes = MaskCodes(ids=((0, 0), (1, 1)))
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    assert decode_mask(encode(Image.fromarray(ids), "PPM"), codes).tolist() == ids.tolist()
    assert decode_mask(pnm(2, "2 1", 255, 0, 1), codes).tolist() == [[0, 1]]
    with pytest.raises(DataError, match="3 levels, which are stretched"):
        decode_mask(pnm(2, "2 1", 2, 0, 1), codes)


def test_text_that_begins_like_a_pnm_is_refused():
    for data in (b"P5 is a game", b"P3\nabc", b"P7\nWIDTH 3", b"P6"):
        assert refusal(data)
    assert io.BytesIO(encode(Image.fromarray(gradient()), "PPM")).read(2) == b"P6"
