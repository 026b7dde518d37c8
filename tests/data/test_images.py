import io
import os

import bad_pictures
import numpy as np
import pytest
import torch
from bad_pictures import encode, exif, gradient, png, ramp16, smooth
from PIL import Image, ImageOps

from patchform.data.images import decode, facts, to_image
from patchform.errors import DataError
from patchform.records import Preprocessing

RGB = Preprocessing()
GREY, RGBA = Preprocessing(channels=1), Preprocessing(channels=4)
DEEP = Preprocessing(bits=16)


def chw(image):
    array = np.array(image)
    return torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))


@pytest.mark.parametrize("name", bad_pictures.good())
def test_good_pictures_are_read_in_every_form(name):
    data = bad_pictures.good()[name]
    for channels in (1, 3, 4):
        for bits, dtype in ((8, torch.uint8), (16, torch.float32)):
            pixels = decode(data, Preprocessing(channels=channels, bits=bits))
            assert pixels.dtype == dtype
            assert len(pixels) == channels
            assert pixels.is_contiguous()
            assert pixels.max() <= (255 if bits == 8 else 1)


@pytest.mark.parametrize("name", bad_pictures.bad())
def test_bad_pictures_are_refused_with_the_reason(name, tmp_path):
    data, reason = bad_pictures.bad()[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        decode(path, RGB)
    assert reason in caught.value.what
    assert caught.value.where == str(path)
    assert path.read_bytes() == data


def test_only_data_errors_leave_the_decoder_on_hostile_bytes():
    refused = 0
    for data in bad_pictures.mutations(bad_pictures.good(), 1500):
        try:
            decode(data, RGB)
            facts(data)
        except DataError:
            refused += 1
    assert 300 < refused < 1500


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WebP", "TIFF"])
def test_orientation_is_honoured(orientation, format_):
    stored = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]  # PIL's transpositions that undo it
    turned = smooth() if stored is None else smooth().transpose(Image.Transpose(stored))
    options = {"quality": 95} if format_ == "JPEG" else {"lossless": True} if format_ == "WebP" else {}
    data = encode(turned, format_, exif=exif(orientation), **options)
    found = decode(data, RGB)
    assert found.shape == (3, 32, 48)
    assert (found.int() - chw(smooth()).int()).abs().max() <= (12 if format_ == "JPEG" else 0)
    with Image.open(io.BytesIO(data)) as image:  # the same bits as PIL's own way
        expected = ImageOps.exif_transpose(image) if format_ != "TIFF" else image
        torch.testing.assert_close(found, chw(expected), rtol=0, atol=0)
    if orientation > 1:  # control: the picture is not its own mirror image
        assert (chw(turned).shape != found.shape) or (chw(turned).int() - found.int()).abs().max() > 100


def test_deep_grey_is_scaled_and_never_clipped():
    for format_ in ("PNG", "TIFF"):
        data = encode(Image.fromarray(ramp16()), format_)
        shallow = decode(data, GREY)
        expected = torch.from_numpy(np.round(ramp16() / 257).astype(np.uint8))
        assert len(shallow.unique()) > 250
        torch.testing.assert_close(shallow[0], expected, rtol=0, atol=0)
        deep = decode(data, Preprocessing(channels=1, bits=16))
        assert len(deep.unique()) == len(np.unique(ramp16()))
        assert (deep[0] * 65535).round().int().equal(torch.from_numpy(ramp16().astype(np.int32)))
    clipped = np.array(Image.fromarray(ramp16()).convert("L"))  # control: what a plain conversion does
    assert len(np.unique(clipped)) < 250 or clipped.mean() > 200


def test_white_is_zero_in_deep_tiff():
    data = encode(Image.fromarray(ramp16()), "TIFF", tiffinfo={262: 0})
    assert decode(data, GREY)[0, 0, 0] == 255


@pytest.mark.parametrize(("bands", "color_type"), [(2, 4), (3, 2), (4, 6)])
def test_deep_colors_keep_every_bit(bands, color_type):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, bands)).astype(np.uint16)
    data = png(7, 5, 16, color_type, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    found = decode(data, Preprocessing(channels=4, bits=16))
    expected = values[..., [0, 0, 0, 1]] if bands == 2 else values
    whole = (found * 65535).round().int().numpy().transpose(1, 2, 0)
    np.testing.assert_array_equal(whole[..., : expected.shape[-1]], expected)
    assert facts(data).deep


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bands", [3, 4])
def test_deep_tiff_colors_keep_every_bit(bands, order):
    values = np.random.default_rng(0).integers(0, 65536, (5, 7, bands)).astype(np.uint16)
    found = decode(bad_pictures.tiff16(values, order), Preprocessing(channels=bands, bits=16))
    np.testing.assert_array_equal((found * 65535).round().int().numpy().transpose(1, 2, 0), values)


def test_transparency_is_composed_on_the_background():
    color, alpha = gradient(), np.zeros((32, 48, 1), np.uint8)
    alpha[:, 24:] = 255
    alpha[:, 12:24] = 128
    data = encode(Image.fromarray(np.concatenate([color, alpha], -1)), "PNG")
    for background in (0, 200):
        found = decode(data, Preprocessing(background=background)).numpy().transpose(1, 2, 0)
        expected = color * (alpha / 255) + background * (1 - alpha / 255)
        assert np.abs(found - expected).max() <= 0.5 + 1e-4
        assert (found[:, :12] == background).all()
    assert decode(data, RGBA).numpy().transpose(1, 2, 0)[:, :12].any()  # control: hidden colours are there
    palette = encode(smooth().quantize(8), "PNG", transparency=0)
    hidden = np.array(smooth().quantize(8)) == 0
    assert hidden.any()
    assert (decode(palette, Preprocessing(background=7)).numpy()[:, hidden] == 7).all()


def test_grey_is_luma_and_spreads():
    found = decode(encode(smooth(), "PNG"), GREY)
    assert (found[0].int() - chw(smooth().convert("L"))[0].int()).abs().max() <= 1
    spread = decode(encode(smooth().convert("L"), "PNG"), RGB)
    assert spread[0].equal(spread[1])
    assert spread[0].equal(chw(smooth().convert("L"))[0])
    one_bit = decode(encode(smooth().convert("1"), "PNG"), RGB)
    assert set(one_bit.unique().tolist()) == {0, 255}


def test_cmyk_is_close_to_the_original():
    found = decode(encode(smooth().convert("CMYK"), "JPEG", quality=95), RGB)
    assert (found.int() - chw(smooth()).int()).abs().float().mean() < 4


def test_the_first_frame_is_taken_and_noticed():
    data = bad_pictures.good()["animated.webp"]
    torch.testing.assert_close(decode(data, RGB), chw(smooth()), rtol=0, atol=0)
    assert facts(data).animated
    assert not facts(bad_pictures.good()["picture.webp"]).animated


def test_content_decides_not_the_name(tmp_path):
    path = tmp_path / "really_a_gif.jpg"
    path.write_bytes(bad_pictures.good()["picture.gif"])
    assert decode(path, RGB).shape == (3, 32, 48)
    assert facts(path.read_bytes()).format == "GIF"


def test_pixels_are_counted_before_decoding():
    data = bad_pictures.good()["rgb.png"]
    assert decode(data, RGB, max_pixels=48 * 32).shape == (3, 32, 48)
    with pytest.raises(DataError, match=r"48 x 32 pixels.* in a\.png"):
        decode(data, RGB, max_pixels=48 * 32 - 1, name="a.png")


def test_what_could_block_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path / "folder.jpg", tmp_path / "loop.jpg", tmp_path / "none.jpg"):
        with pytest.raises(DataError, match=r"regular|cannot be read"):
            decode(path, RGB)
    with pytest.raises(DataError, match="regular"):
        decode(type(tmp_path)("/dev/zero"), RGB)


def test_bands_come_from_arrays():
    values = np.random.default_rng(0).integers(0, 65536, (6, 5, 7)).astype(np.uint16)
    found = decode(bad_pictures.array_bytes(values), Preprocessing(channels=7, bits=16))
    assert (found * 65535).round().int().equal(torch.from_numpy(values.astype(np.int32).transpose(2, 0, 1)))
    fortran = decode(bad_pictures.array_bytes(np.asfortranarray(values)), Preprocessing(channels=7, bits=16))
    assert fortran.equal(found)
    with pytest.raises(DataError, match="7 channels, the model takes 5"):
        decode(bad_pictures.array_bytes(values), Preprocessing(channels=5))
    with pytest.raises(DataError, match="3 channels, the model takes 5"):
        decode(bad_pictures.good()["rgb.png"], Preprocessing(channels=5))


def test_pictures_in_memory_equal_files():
    expected = decode(encode(smooth(), "PNG"), RGB)
    array = gradient()
    for source in (smooth(), array, array / 255, torch.from_numpy(array).permute(2, 0, 1), chw(smooth()) / 255):
        assert to_image(source, RGB).equal(expected)
    assert to_image(chw(smooth()).bfloat16() / 255, RGB).dtype == torch.uint8
    assert to_image(ramp16(), Preprocessing(channels=1, bits=16)).equal(
        decode(encode(Image.fromarray(ramp16()), "PNG"), Preprocessing(channels=1, bits=16))
    )
    given = array.copy()
    to_image(given, RGB).zero_()
    np.testing.assert_array_equal(given, array)


@pytest.mark.parametrize(
    ("source", "rule"),
    [
        (gradient().astype(np.float32), r"must be in 0\.\.1, these are in 0\.\.255"),
        (gradient() / 255 - 1, r"must be in 0\.\.1"),
        (np.full((4, 4, 3), np.nan), "NaN"),
        (gradient().transpose(2, 0, 1), "48 channels"),
        (gradient().astype(np.int64), "int64"),
        (np.zeros((0, 3, 3), np.uint8), "shape"),
        (np.zeros((1, 3, 3, 3), np.uint8), "shape"),
        ("a.jpg", "str is not a picture"),
    ],
)
def test_arrays_that_break_a_rule_are_refused(source, rule):
    with pytest.raises(DataError, match=rule):
        to_image(source, RGB)


def test_a_lazily_opened_damaged_image_is_refused(tmp_path):
    path = tmp_path / "half.jpg"
    path.write_bytes(bad_pictures.bad()["pixels.jpg"][0])
    with Image.open(path) as image, pytest.raises(DataError, match="cut short"):
        to_image(image, RGB)
    path.write_bytes(path.read_bytes() + b"\xff\xd9")  # which the decoder alone would fill up
    with Image.open(path) as image, pytest.raises(DataError, match="cut short"):
        to_image(image, RGB)
    path.write_bytes(bad_pictures.good()["rgb.jpg"])
    with Image.open(path) as image:
        assert to_image(image, RGB).equal(decode(path, RGB))
        assert to_image(image, RGB).equal(decode(path, RGB))
        assert to_image(image.convert("L"), RGB).shape == (3, 32, 48)
    with Image.open(path) as image:
        image.draft("RGB", (12, 8))
        assert to_image(image, RGB).shape == (3, 8, 12)
