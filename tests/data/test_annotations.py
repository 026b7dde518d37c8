import bad_pictures
import numpy as np
import pytest
from bad_pictures import array_bytes, encode, exif, gradient
from PIL import Image

from patchform.data.images import decode, upright_size
from patchform.data.listed_names import is_inside
from patchform.data.listing import RLE
from patchform.data.outlines import polygon_area, runs_of
from patchform.errors import DataError
from patchform.records import Preprocessing


@pytest.mark.parametrize("name", bad_pictures.good())
def test_the_size_from_the_header_is_that_of_the_decoded_picture(tmp_path, name):
    file = tmp_path / name
    file.write_bytes(bad_pictures.good()[name])
    channels = 3
    assert upright_size(file) == tuple(decode(file, Preprocessing(channels=channels)).shape[-2:])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WebP"])
@pytest.mark.parametrize("turned", range(1, 10))
def test_upright_sizes_follow_the_orientation_tag(tmp_path, kind, turned):
    file = tmp_path / "a"
    file.write_bytes(encode(Image.fromarray(gradient(20, 33)), kind, exif=exif(turned)))
    assert upright_size(file) == tuple(decode(file, Preprocessing()).shape[-2:])
    assert upright_size(file) == ((33, 20) if 5 <= turned <= 8 else (20, 33))


def test_sizes_of_arrays_long_headers_and_what_is_none(tmp_path):
    (tmp_path / "a.npy").write_bytes(array_bytes(np.zeros((5, 7, 9), np.uint16)))
    assert upright_size(tmp_path / "a.npy") == (5, 7)
    jpeg = encode(Image.fromarray(gradient(20, 33)), "JPEG")
    comment = b"\xff\xfe\xff\xff" + b"x" * 65533
    (tmp_path / "a.jpg").write_bytes(jpeg[:2] + comment * 5 + jpeg[2:])
    assert upright_size(tmp_path / "a.jpg") == (20, 33)
    (tmp_path / "b.jpg").write_bytes(jpeg[:40])
    for name in ("b.jpg", "none.jpg", "."):
        with pytest.raises(DataError):
            upright_size(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "inside"),
    [
        ("a.jpg", True),
        ("deep/a.jpg", True),
        ("deep\\a.jpg", True),
        ("a..b/..c.jpg", True),
        ("", False),
        ("/a.jpg", False),
        ("\\a.jpg", False),
        ("../a.jpg", False),
        ("deep/../../a.jpg", False),
        ("deep\\..\\a.jpg", False),
        ("C:/a.jpg", False),
    ],
)
def test_names_that_stay_inside(name, inside):
    assert is_inside(name) == inside


def test_runs_of_both_forms():
    tools = pytest.importorskip("pycocotools.mask")
    random = np.random.default_rng(0)
    for share in (0.01, 0.3, 0.9):
        mask = (random.uniform(0, 1, (70, 90)) < share).astype(np.uint8)
        text = tools.encode(np.asfortranarray(mask))["counts"]
        lengths = runs_of(text)
        again = np.repeat(np.arange(len(lengths)) % 2, lengths).reshape(90, 70).T
        np.testing.assert_array_equal(again, mask)
        np.testing.assert_array_equal(runs_of(tuple(lengths.tolist())), lengths)
    for damaged in (b"0o", b"~~ ", b"o" * 30 + b"0", b"O0", (3, -1), (10**30,)):
        assert runs_of(damaged) is None
    assert RLE((), (1, 1)).counts == ()


def test_areas_of_polygons():
    square = np.array([[1, 1], [5, 1], [5, 4], [1, 4]], np.float32)
    assert polygon_area((square, square[::-1] + 10)) == 24
