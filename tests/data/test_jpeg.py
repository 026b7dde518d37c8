"""A JPEG file that lacks data is refused, however it ends; a whole one of any kind is read as PIL reads it."""

import io

import numpy as np
import pytest
from bad_pictures import encode, exif, gradient, smooth
from PIL import Image, JpegImagePlugin

from patchform.data import jpeg
from patchform.data.images import decode, to_image
from patchform.errors import DataError
from patchform.records import Preprocessing

RGB = Preprocessing()
END = b"\xff\xd9"
KINDS = {
    "plain": {},
    "best": {"quality": 100, "subsampling": 0},
    "worst": {"quality": 3, "subsampling": 2},
    "optimised": {"optimize": True},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_blocks": 2},
    "progressive restarts": {"progressive": True, "restart_marker_rows": 1},
}


def noise(size=(90, 120)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))


def scan_of(data):
    """Where the data of the last scan begin and end."""
    last = jpeg.layout(data).scans[-1]
    return last.start, last.end


def by_pil(data):
    image = JpegImagePlugin.JpegImageFile(io.BytesIO(data))
    image.load()
    return to_image(image, RGB)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_are_read_as_pil_reads_them(kind):
    flat = Image.new("RGB", (333, 40), (128, 128, 128))  # the colour of what is filled up
    cmyk, grey = smooth().convert("CMYK"), smooth().convert("L")
    for picture in (noise(), smooth(), flat, Image.new("RGB", (1, 1)), noise((8, 500)), cmyk, grey):
        data = encode(picture, "JPEG", **KINDS[kind])
        for tail in (b"", b"\0" * 600, b"PK\3\4 and more", data):
            assert decode(data + tail, RGB).equal(by_pil(data))
        _, end = scan_of(data)
        if jpeg.layout(data).single and "restarts" not in kind:  # cameras fill the last block of their memory
            assert decode(data[:end] + b"\0" * 500 + data[end:], RGB).equal(by_pil(data))


def test_pictures_within_the_header_do_not_count():
    small = encode(noise((16, 16)), "JPEG")
    whole = encode(noise(), "JPEG", exif=exif(1).tobytes() + small)
    assert whole.count(END) > 1
    assert decode(whole, RGB).equal(by_pil(whole))
    with pytest.raises(DataError, match="cut short"):
        decode(whole[: len(whole) // 2] + END, RGB)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.95])
@pytest.mark.parametrize("kind", KINDS)
def test_half_a_scan_with_an_end_mark_is_refused(kind, share):
    data = encode(noise(), "JPEG", **KINDS[kind])
    start, end = scan_of(data)
    cut = start + int(share * (end - start))
    cut += data[cut - 1] == 0xFF  # not within a stuffed byte
    for spoilt in (data[:cut] + END, data[:cut] + END + data[cut + 2 :], data[:cut] + data[end:]):
        assert by_pil(spoilt).shape == by_pil(data).shape  # the control: the decoder alone fills it up
        with pytest.raises(DataError, match=r"cut short|damaged"):
            decode(spoilt, RGB)


def test_scans_that_are_missing_are_noticed_without_a_second_decoding():
    data = encode(noise(), "JPEG", progressive=True)
    for scan in jpeg.layout(data).scans[1:]:
        header = data.rindex(b"\xff\xda", 0, scan.start)
        with pytest.raises(DataError, match="last scans are missing"):
            decode(data[:header] + END, RGB, thorough=False)
    start, end = scan_of(data)
    spoilt = data[: (start + end) // 2 + 1] + END
    decode(spoilt, RGB, thorough=False)  # the last scan alone needs two
    with pytest.raises(DataError, match="last scan is not whole"):
        decode(spoilt, RGB)


@pytest.mark.parametrize("kind", ["plain", "best", "optimised"])
def test_data_that_are_left_over_are_refused(kind):
    data = encode(noise(), "JPEG", **KINDS[kind])
    start, end = scan_of(data)
    middle, quarter = (start + end) // 2, (end - start) // 4
    middle += data[middle - 1] == 0xFF
    zeros = data[:middle] + bytes(quarter) + data[middle + quarter :]
    twice = data[:end] + data[middle:end] + data[end:]
    for spoilt in (zeros, twice) if kind != "optimised" else (twice,):  # there zeros may be codes of as many pixels
        by_pil(spoilt)
        with pytest.raises(DataError, match=r"left over|cut short"):
            decode(spoilt, RGB)


def test_restart_markers_follow_each_other():
    data = encode(noise(), "JPEG", restart_marker_blocks=2)
    start, end = scan_of(data)
    for old, new in ((b"\xff\xd3", b"\xff\xd5"), (b"\xff\xd3", b"")):
        at = data.index(old, start, end)
        spoilt = data[:at] + new + data[at + 2 :]
        by_pil(spoilt)
        with pytest.raises(DataError, match="restart markers"):
            decode(spoilt, RGB)


def test_of_spoilt_files_most_are_refused_and_nothing_else_is_raised():
    chance, wrong, refused = np.random.default_rng(1), 0, 0
    for options in KINDS.values():
        data = encode(Image.fromarray(gradient(60, 80)), "JPEG", **options)
        expected, (start, end) = by_pil(data), scan_of(data)
        for _ in range(30):
            at = int(chance.integers(start, end - 20))
            spoilt = data[:at] + bytes(chance.integers(0, 256, 12).tolist()) + data[at + 12 :]
            try:
                found = decode(spoilt, RGB)
            except DataError:
                refused += 1
            else:
                wrong += not found.equal(expected)
    assert refused > 60
    assert wrong < 140  # codes that make as many pixels of as many bytes: no decoder knows


@pytest.mark.parametrize("marker", [0xC3, 0xC7, 0xF7])
def test_kinds_of_jpeg_that_are_not_read_are_named(marker):
    data = encode(smooth(), "JPEG")
    at = data.index(b"\xff\xc0")
    with pytest.raises(DataError, match=r"a (lossless JPEG|hierarchical JPEG|JPEG-LS) picture, which is not read"):
        decode(data[: at + 1] + bytes([marker]) + data[at + 2 :], RGB)
    with pytest.raises(DataError, match="a JPEG picture of 12 bits, which is not read"):
        decode(data[: at + 1] + b"\xc1" + data[at + 2 : at + 4] + b"\x0c" + data[at + 5 :], RGB)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"\xff\xd8\xff\xda", b"\xff\xd8" + b"\xff" * 99, b"\xff\xd8\0\0"])
def test_what_has_no_layout_is_none(data):
    assert jpeg.layout(data) is None
