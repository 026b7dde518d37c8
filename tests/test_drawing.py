import io

import pytest
import torch
from PIL import Image

from patchform import drawing
from patchform.drawing import Line
from patchform.geometry import masks
from patchform.records import Instances


def pixels(*shape, seed=0):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_pixels_are_shown_as_they_are(channels):
    image = pixels(channels, 5, 8)
    picture = drawing.to_picture(image)
    assert (picture.size, picture.mode) == ((8, 5), "RGB")
    wanted = image[[0, 0, 0]] if channels < 3 else image[:3]
    assert picture.tobytes() == wanted.permute(1, 2, 0).contiguous().numpy().tobytes()
    assert drawing.to_picture(image.float() / 255).tobytes() == picture.tobytes()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (1, 5000), (5000, 1), (30, 500), (300, 900)])
def test_caption_at_any_size_leaves_the_picture_untouched(height, width):
    image = pixels(3, height, width)
    page = drawing.caption(image, [Line("a class", 0.93), Line("x" * 500, 0.0), Line("many\nlines\t", 1.0), Line("")])
    plain = drawing.enlarged(drawing.to_picture(image))
    left = (page.width - plain.width) // 2
    assert page.crop((left, 0, left + plain.width, plain.height)).tobytes() == plain.tobytes()
    assert page.height > plain.height
    assert page.width >= drawing.SMALLEST
    assert max(plain.size) <= max(drawing.LARGEST, height, width)


def test_tiny_pictures_grow_by_a_whole_factor():
    plain = drawing.to_picture(pixels(3, 8, 8))
    large = drawing.enlarged(plain)
    assert large.size == (224, 224)
    assert large.resize((8, 8), Image.Resampling.NEAREST).tobytes() == plain.tobytes()


def test_pictures_on_a_page_are_enlarged_further_and_no_others():
    image = pixels(3, 192, 256)
    with drawing.sharp():
        page = drawing.caption(image, [Line("a class", 0.5)])
    assert page.width == 3 * 256
    assert page.crop((0, 0, 768, 576)).resize((256, 192), Image.Resampling.NEAREST).tobytes() == (
        drawing.to_picture(image).tobytes()
    )
    assert drawing.caption(image, [Line("a class", 0.5)]).width == 2 * 256


def test_bars_are_as_long_as_their_shares():
    page = drawing.caption(pixels(3, 224, 224), [Line("", 0.25)])
    row = [page.getpixel((x, 225)) for x in range(224)]
    assert 54 <= row.count(drawing.BLUE) <= 58
    assert row.count(drawing.GREY) >= 160


def test_any_class_name_can_be_drawn():
    names = ["$x^2$", "猫", "a\x00b", "\ud800", "ä" * 300, ""]
    drawing.caption(pixels(3, 40, 40), [Line(name, 0.5) for name in names])
    matrix = torch.eye(len(names), dtype=torch.int64).tolist()
    picture = Image.open(io.BytesIO(drawing.confusion(matrix, names)))
    assert picture.format == "PNG"


def test_confusion_of_nothing_and_of_many_classes():
    for number in (1, 60):
        matrix = torch.zeros(number, number, dtype=torch.int64).tolist()
        assert drawing.confusion(matrix, [str(index) for index in range(number)]).startswith(b"\x89PNG")


def test_thumbnail_and_png():
    picture = drawing.thumbnail(pixels(3, 300, 600), 100)
    assert picture.size == (100, 50)
    assert drawing.thumbnail(pixels(3, 8, 8)).size == (8, 8)
    back = Image.open(io.BytesIO(drawing.to_png_bytes(picture)))
    assert back.tobytes() == picture.tobytes()


def test_the_palette_is_fixed_and_its_first_colours_are_far_apart_for_all_eyes():
    colors = drawing.palette()
    assert len(set(colors)) == 256
    assert colors[255] == (0, 0, 0)
    assert colors[:4] == ((0, 0, 255), (255, 255, 0), (128, 96, 0), (0, 128, 191))
    light = drawing._linear(torch.tensor(colors[:20], dtype=torch.float64) / 255)
    for eye in drawing._EYES:
        seen = drawing._lab(light @ torch.tensor(eye, dtype=torch.float64).T)
        distance = torch.cdist(seen, seen) + 999 * torch.eye(20)
        assert distance[:10, :10].min() > 30
        assert distance.min() > 15
    # the control: red and green of one luminance
    pair = drawing._linear(torch.tensor([[0.8, 0.2, 0.1], [0.35, 0.5, 0.1]], dtype=torch.float64))
    normal, _, deutan = (drawing._lab(pair @ torch.tensor(eye, dtype=torch.float64).T) for eye in drawing._EYES)
    assert torch.dist(*deutan) < 0.4 * torch.dist(*normal)


def test_lab_of_known_colours():
    known = {(1, 1, 1): (100, 0, 0), (1, 0, 0): (53.24, 80.09, 67.20), (0, 0, 1): (32.30, 79.19, -107.86)}
    for color, lab in known.items():
        found = drawing._lab(drawing._linear(torch.tensor([color], dtype=torch.float64)))[0]
        assert found.tolist() == pytest.approx(lab, abs=0.05)


def test_an_overlay_leaves_ignored_pixels_alone():
    image, classes = pixels(3, 6, 8), torch.zeros(6, 8, dtype=torch.uint8)
    classes[:3], classes[3:, 4:] = 255, 7
    found = drawing.overlay(image, classes)
    assert found[:, :3].equal(image[:, :3])
    color = torch.tensor(drawing.palette()[7])[:, None, None]
    assert (found[:, 3:, 4:].float() - (image[:, 3:, 4:].float() + color) / 2).abs().max() <= 0.5
    assert drawing.overlay(image, classes, opacity=1.0)[:, 5, 0].tolist() == list(drawing.palette()[0])


def test_a_legend_has_squares_of_its_colours():
    page = drawing.caption(pixels(3, 224, 224), [Line("road", 0.5, (1, 2, 3)), Line("sky", None, (9, 8, 7))])
    found = {page.getpixel((x, y)) for x in range(20) for y in range(224, page.height)}
    assert {(1, 2, 3), (9, 8, 7)} <= found


def test_objects_have_their_colours_and_names_that_hide_none():
    image = torch.zeros(3, 300, 400, dtype=torch.uint8)
    boxes = torch.tensor([[50.0, 60, 150, 160], [200, 60, 300, 160], [51, 61, 150, 160]])
    dense = torch.zeros(3, 300, 400, dtype=torch.bool)
    dense[1, 80:140, 220:280] = True
    found = Instances(boxes, torch.tensor([0, 1, 0]), torch.tensor([0.9, 0.8, 0.7]), masks.from_dense(dense))
    page = drawing.objects(image, found, ("cat", "dog"))
    blue, yellow = drawing.palette()[:2]
    assert page.width == 800  # twice as large
    assert page.getpixel((101, 200)) == blue
    assert page.getpixel((401, 200)) == page.getpixel((441, 200)) == yellow
    assert page.getpixel((500, 200)) == tuple(level // 2 for level in yellow)
    assert page.getpixel((200, 200)) == (0, 0, 0)
    assert page.getpixel((101, 114)) == blue  # above the box, the name
    two = drawing.objects(image, Instances(*(x[:2] for x in found[:3]), found.masks), ("cat", "dog"))
    assert page.crop((0, 60, 800, 117)).tobytes() == two.crop((0, 60, 800, 117)).tobytes()  # no third name
    long = drawing.objects(image, found, ("c" * 40, "dog"))
    assert long.getpixel((101, 114)) == blue  # its score alone
    assert long.getpixel((300, 114)) == (0, 0, 0)


def test_curves_of_precision():
    rows = [[1.0] * 101, [None] * 101, [0.5] * 101]
    assert drawing.precision_recall(rows, ("$x^2$", "b", "猫")).startswith(b"\x89PNG")
    assert drawing.precision_recall([[None] * 101], ("a",)).startswith(b"\x89PNG")


def test_frames_of_a_clip_stand_row_by_row():
    clip = pixels(8, 3, 5, 7)
    sheet = drawing.contact_sheet(clip)
    assert sheet.shape == (3, 10, 28)
    for number, frame in enumerate(clip):
        row, column = divmod(number, 4)
        assert torch.equal(sheet[:, 5 * row : 5 * row + 5, 7 * column : 7 * column + 7], frame)
    assert torch.equal(drawing.contact_sheet(clip[:1]), clip[0])
    few = drawing.contact_sheet(clip[:6].float() / 255)
    assert few.shape == (3, 10, 28)
    assert few[:, 5:, 14:].abs().max() == 0
    long = drawing.contact_sheet(torch.arange(100.0)[:, None, None, None].expand(-1, 1, 2, 2))
    assert long[0, ::2, ::2].flatten().tolist() == [0, 14, 28, 42, 57, 71, 85, 99]
