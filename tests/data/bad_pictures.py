"""Good pictures of every kind that is read, bad ones of every kind that is refused, and mutations of the good ones."""

import io
import random
import struct
import zlib
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 48, 32


def gradient(height=HEIGHT, width=WIDTH):
    """(H, W, 3) uint8: smooth, and different in each corner and channel."""
    y, x = np.mgrid[:height, :width]
    red, green = x * 255 // max(1, width - 1), y * 255 // max(1, height - 1)
    return np.stack([red, green, (red + green) // 2], -1).astype(np.uint8)


def smooth():
    return Image.fromarray(gradient())


def encode(image, format_, **options):
    stream = io.BytesIO()
    image.save(stream, format_, **options)
    return stream.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, color, rows):
    """A PNG from raw rows; for what PIL does not write."""
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff16(values, order):
    """An uncompressed TIFF of (H, W, 3 or 4) uint16, "<" little or ">" big endian."""
    height, width, bands = values.shape
    raw = values.astype(f"{order}u2").tobytes()
    tags = [(256, width), (257, height), (258, None), (259, 1), (262, 2), (273, 8), (277, bands), (278, height)]
    tags += [(279, len(raw)), (284, 1)] + [(338, 2)] * (bands == 4)
    start = 8 + len(raw)
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start) + raw
    data += struct.pack(f"{order}H", len(tags))
    for tag, value in tags:
        if value is None:  # bits of each band, behind the tags
            data += struct.pack(f"{order}HHII", tag, 3, bands, start + 2 + 12 * len(tags) + 4)
        else:
            data += struct.pack(f"{order}HHII", tag, 4, 1, value)
    return data + struct.pack(f"{order}I{bands}H", 0, *[16] * bands)


def bomb(side):
    """A valid one-bit PNG of side x side pixels in a few kilobytes."""
    return png(side, side, 1, 0, bytes((side + 7) // 8 + 1) * side)


def ramp16():
    """(32, 48) uint16 that reaches from 0 to 65535."""
    return np.linspace(0, 65535, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH).round().astype(np.uint16)


def array_bytes(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@cache
def good():
    """Name -> bytes that must be read."""
    picture, second = smooth(), Image.fromarray(255 - gradient())
    palette = picture.quantize(32)
    deep = ramp16()
    jpeg = encode(picture, "JPEG", quality=90)
    return {
        "rgb.jpg": jpeg,
        "grey.jpg": encode(picture.convert("L"), "JPEG"),
        "cmyk.jpg": encode(picture.convert("CMYK"), "JPEG"),
        "progressive.jpg": encode(picture, "JPEG", progressive=True),
        "orientation99.jpg": encode(picture, "JPEG", exif=exif(99)),
        "bad_profile.jpg": encode(picture, "JPEG", icc_profile=b"garbage" * 10),
        "bad_exif.jpg": encode(picture, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\x12\x01" * 9),
        "tail.jpg": jpeg + b"PK\3\4" + b"junk" * 50,
        "rgb.png": encode(picture, "PNG"),
        "grey.png": encode(picture.convert("L"), "PNG"),
        "grey_alpha.png": encode(picture.convert("LA"), "PNG"),
        "rgba.png": encode(picture.convert("RGBA"), "PNG"),
        "one_bit.png": encode(picture.convert("1"), "PNG"),
        "palette.png": encode(palette, "PNG"),
        "palette_transparent.png": encode(palette, "PNG", transparency=0),
        "key_transparent.png": encode(picture, "PNG", transparency=(0, 0, 0)),
        "deep.png": encode(Image.fromarray(deep), "PNG"),
        "deep_rgb.png": png(8, 4, 16, 2, (b"\0" + bytes(range(48))) * 4),
        "animated.png": encode(picture, "PNG", save_all=True, append_images=[second]),
        "picture.webp": encode(picture, "WebP", lossless=True),
        "animated.webp": encode(picture, "WebP", save_all=True, append_images=[second], lossless=True),
        "picture.bmp": encode(picture, "BMP"),
        "picture.tif": encode(picture, "TIFF"),
        "packed.tif": encode(picture, "TIFF", compression="tiff_lzw"),
        "deep.tif": encode(Image.fromarray(deep), "TIFF"),
        "picture.gif": encode(picture, "GIF"),
        "animated.gif": encode(palette, "GIF", save_all=True, append_images=[second, palette]),
        "one_pixel.png": encode(Image.new("RGB", (1, 1)), "PNG"),
        "long.png": encode(Image.new("RGB", (5000, 1)), "PNG"),
        "array.npy": array_bytes(gradient()),
    }


@cache
def bad():
    """Name -> (bytes that must be refused, a part of the reason)."""
    picture = smooth()
    jpeg, plain = encode(picture, "JPEG", quality=90), encode(picture, "PNG")
    floats = np.linspace(0, 1, HEIGHT * WIDTH, dtype=np.float32).reshape(HEIGHT, WIDTH)
    return {
        "empty.jpg": (b"", "empty"),
        "text.jpg": (b"hello world, not an image", "text"),
        "page.jpg": (b"\n<!DOCTYPE html><html>404 not found</html>", "HTML"),
        "drawing.png": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        "video.jpg": (b"\0\0\0\x18ftypisom\0\0\2\0isomiso2" + bytes(99), "video"),
        "movie.jpg": (b"RIFF\x24\0\0\0AVI LIST" + bytes(99), "AVI"),
        "phone.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(99), "HEIC"),
        "print.jpg": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "PostScript"),
        "pointer.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "LFS"),
        "noise.jpg": (bytes(range(128, 256)) * 3, "no known kind"),
        "half.jpg": (jpeg[: len(jpeg) // 2], "cut short"),
        "pixels.jpg": (encode(smooth().resize((480, 320)), "JPEG", quality=98)[:-1000], "cut short"),
        "tail2.jpg": (jpeg[:-2], "cut short"),
        "header.jpg": (jpeg[:20], "cut short"),
        "half.png": (plain[: len(plain) // 2], "cut short"),
        "no_end.png": (plain[:-12], "cut short"),
        "half.bmp": (encode(picture, "BMP")[:999], "cut short"),
        "half.gif": (encode(picture, "GIF")[:-400], "cut short"),
        "half.webp": (encode(picture, "WebP", lossless=True)[:-40], "cut short"),
        "half.tif": (encode(picture, "TIFF")[:-1400], "cut short"),
        "float.tif": (encode(Image.fromarray(floats), "TIFF"), "floating-point"),
        "nan.tif": (encode(Image.fromarray(floats * np.nan), "TIFF"), "floating-point"),
        "bomb10k.png": (bomb(10_000), "bomb"),
        "bomb20k.png": (bomb(20_000), "limit 180"),
        "text_bomb.png": (
            plain[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 20_000_000, 9)) + plain[33:],
            "large",
        ),
        "objects.npy": (array_bytes(np.array([[None]])), "object"),
        "floats.npy": (array_bytes(floats), "float32"),
        "cube.npy": (array_bytes(np.zeros((2, 2, 2, 2), np.uint8)), "shape"),
        "cut.npy": (array_bytes(gradient())[:-1], "damaged"),
        "lying.npy": (array_bytes(gradient()).replace(b"(32, 48, 3)", b"(92, 48, 3)"), "damaged"),
    }


def mutations(seeds, count, seed=0):
    """`count` damaged versions of the seeds: bits flipped, bytes replaced, cut, or two spliced."""
    chance = random.Random(seed)
    names = sorted(seeds)
    for _ in range(count):
        data = bytearray(seeds[chance.choice(names)])
        kind = chance.randrange(4)
        if kind == 0:
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:  # headers are where it hurts
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(min(64, len(data)))] = chance.randrange(256)
        elif kind == 2:
            del data[chance.randrange(len(data)) :]
        else:
            other = seeds[chance.choice(names)]
            data = data[: chance.randrange(len(data))] + other[chance.randrange(len(other)) :]
        yield bytes(data)


def class_folders(root: Path, counts: dict, size=(16, 16), seed=0):
    """Class folders of noise pictures: `counts` says how many of each class."""
    numbers = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = numbers.integers(0, 256, (*size, 3), dtype=np.uint8)
            (root / name / f"{index:03d}.png").write_bytes(encode(Image.fromarray(pixels), "PNG"))
    return root


def mask_folders(root: Path, names, *, pictures="images", masks="masks", classes=3, size=(24, 32), seed=0):
    """Pictures of noise and their masks of `classes` squares, in two folders."""
    numbers = np.random.default_rng(seed)
    for name in names:
        pixels = numbers.integers(0, 256, (*size, 3), dtype=np.uint8)
        ids = numbers.integers(0, classes, (-(-size[0] // 8), -(-size[1] // 8)), dtype=np.uint8)
        ids = ids.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
        for folder, array in ((pictures, pixels), (masks, ids)):
            place = root / folder / f"{name}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(encode(Image.fromarray(array), "PNG"))
    return root


def tree_state(root: Path):
    """Everything that a program could change in a folder: names, content and times of writing."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(root.rglob("*"))
    }
