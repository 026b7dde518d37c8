"""From a file, bytes, array or PIL image to pixels: the one decoder that every command uses.

Rules, the same for all sources:

* PIL decodes, also JPEG. The decoders of torchvision are 1.6 to 2.4 times as fast, but deprecated, and a damaged PNG
  ends the process in them.
* The content decides on the format, not the name: JPEG, PNG, WebP, BMP, TIFF, GIF (the first frame of animated ones),
  PNM (PBM, PGM, PPM), and arrays in `.npy` files, (H, W) or (H, W, C), uint8 or uint16: the way in for pictures of more
  than four bands. Whole pictures of other kinds are called by their names, with what to do (`data.file_kinds`).
* A damaged or cut file is refused, never filled up; of JPEG, which the decoder does fill up, see `data.jpeg`.
* The orientation tag (EXIF 274) is honoured; an invalid one is ignored.
* Transparency is composed on the stated background unless the model sees alpha (4 channels).
* 16-bit values are divided by 65535, never clipped to 8 bits. Grey is BT.601 luma, (299 R + 587 G + 114 B) / 1000.
"""

from __future__ import annotations

import io
import stat
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from torch import Tensor

from patchform.data import file_kinds, jpeg, python_sets, shards
from patchform.descriptions import Preprocessing
from patchform.errors import DataError, UsageError

MAX_PIXELS = 180_000_000
"""Largest picture that is decoded."""
MAX_BYTES = 2 << 30
"""Largest file that is read."""
_SUSPECT_PIXELS, _SUSPECT_RATE = 16_000_000, 4096
"""A picture above the first with more than so many pixels a byte is a decompression bomb: photographs have under 20,
scanned text in one bit about 1000."""

_READERS: tuple[tuple[bytes, str, Any], ...] = (
    (b"\xff\xd8\xff", "JPEG", JpegImagePlugin.JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", "PNG", PngImagePlugin.PngImageFile),
    (b"RIFF", "WebP", WebPImagePlugin.WebPImageFile),  # and "WEBP" at byte 8
    (b"BM", "BMP", BmpImagePlugin.BmpImageFile),
    (b"II*\0", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"MM\0*", "TIFF", TiffImagePlugin.TiffImageFile),
    (b"GIF8", "GIF", GifImagePlugin.GifImageFile),
    *((b"P%d" % number, "PNM", PpmImagePlugin.PpmImageFile) for number in range(1, 7)),
)
_NUMPY = b"\x93NUMPY"
_HEAD = 1 << 18
"""Bytes that hold the header of most JPEG files."""


class Facts(NamedTuple):
    """What a header says, for reports on a data set."""

    format: str
    """JPEG, PNG, WebP, BMP, TIFF, GIF, PNM or NumPy."""
    animated: bool
    """There is more than one frame; the first is used."""
    deep: bool
    """Sixteen bits a channel."""


def decode(
    source: Path | bytes,
    preprocessing: Preprocessing,
    *,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    thorough: bool = True,
) -> Tensor:
    """Decode a file, or the bytes of one, into what `preprocessing` asks for: channels, bits, background.

    Args:
        source: a regular file, or its content.
        preprocessing: size and resizing are not applied here.
        name: what to call the source in errors; default: the path.
        max_pixels: pictures of more pixels are refused from their header.
        thorough: progressive JPEG files are decoded twice, to see whether their last scan is whole (`data.jpeg`).

    Returns:
        (C, H, W) uint8 in 0..255 when bits is 8, float32 in 0..1 when bits is 16.

    Raises:
        DataError: not a picture, damaged, too large, of other channels, or not a regular file. Nothing else.
    """
    with faults_of(name or (source if isinstance(source, Path) else "the bytes given")):
        return _arrange(_pixels(read(source), max_pixels, thorough), preprocessing)


@contextmanager
def faults_of(where: object, kind: str = "picture") -> Iterator[None]:
    """Whatever a decoder raises becomes a DataError that names the file; a UsageError stays one."""
    try:
        yield
    except UsageError:
        raise
    except DataError as error:
        raise DataError(error.what, where=where, remedy=error.remedy) from None
    except MemoryError:
        raise DataError(f"the {kind} is too large for the memory that is left", where=where) from None
    except Exception as error:  # decoders raise a dozen kinds on hostile bytes; all mean the same to the user
        raise DataError(f"the {kind} is damaged or cut short ({_first_line(error)})", where=where) from None


def to_image(source: Any, preprocessing: Preprocessing) -> Tensor:
    """Turn a picture in memory into what `decode` gives.

    Args:
        source: a PIL image; a NumPy array (H, W) or (H, W, C); a tensor (H, W) or (C, H, W). Colours are in the order
            RGB; uint8, uint16, or floating point in 0..1.
        preprocessing: as in `decode`.

    Returns:
        (C, H, W) uint8 in 0..255 when bits is 8, float32 in 0..1 when bits is 16.

    Raises:
        DataError: another type, shape or range.
    """
    if isinstance(source, Image.Image):
        try:
            data = jpeg.not_decoded(source)
            return _arrange(_from_pil(source) if data is None else _pixels(data, MAX_PIXELS, True), preprocessing)
        except DataError:
            raise
        except Exception as error:  # a lazily opened file is decoded only now
            raise DataError(
                f"the picture is damaged or cut short ({_first_line(error)})", where="a PIL image"
            ) from None
    if isinstance(source, np.ndarray):
        return _arrange(_from_array(source), preprocessing)
    if isinstance(source, Tensor):
        array = source.detach().cpu()
        array = array.float() if array.is_floating_point() else array  # bfloat16 is unknown to NumPy
        return _arrange(_from_array((array.movedim(0, -1) if array.dim() == 3 else array).numpy()), preprocessing)
    raise DataError(f"{type(source).__name__} is not a picture", remedy="give a PIL image, a NumPy array or a tensor")


def facts(data: bytes) -> Facts:
    """What the header of a file that `decode` accepts says. Raises whatever the header's reader raises on others."""
    if is_array(data):
        return Facts("NumPy", False, array_of(data, MAX_PIXELS).dtype.itemsize == 2)
    format_, image = _open(data)
    deep = image.mode.startswith("I") or ";16" in raw_mode(image)
    try:
        animated = bool(getattr(image, "is_animated", False))
    except Exception:  # a damaged second frame is not used
        animated = False
    return Facts(format_, animated, deep)


def orientation_of(data: bytes) -> int:
    """The orientation tag of a file that `decode` accepts: 2 to 8 where pixels are mirrored or turned, else 1."""
    if is_array(data) or (data.startswith(b"\x89PNG") and b"exif" not in data.lower()):  # PIL would decode a PNG whole
        return 1
    turned = orientation(_open(data)[1])
    return turned if 2 <= turned <= 8 else 1


def upright_size(path: Path) -> tuple[int, int]:
    """(height, width) that `decode` would give, from as little of the file as tells it. Raises DataError."""
    with faults_of(path):
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(_HEAD)
            if head.startswith(_READERS[0][0]):
                try:
                    return _upright_size(head)
                except (OSError, SyntaxError):  # a longer header
                    pass
        return _upright_size(read(path))


def _upright_size(data: bytes) -> tuple[int, int]:
    if is_array(data):
        height, width = array_of(data, MAX_PIXELS).shape[:2]
        return height, width
    format_, image = _open(data)
    width, height = image.size
    axes_exchanged = format_ != "TIFF" and orientation_of(data) >= 5  # PIL has done it for TIFF
    return (width, height) if axes_exchanged else (height, width)


def read(source: Path | bytes) -> bytes:
    """The bytes of a regular file, a member of a tar shard (`data.shards`), or an item of a Python object.

    Raises DataError for anything that could block or is none, and for no permission.
    """
    if isinstance(source, bytes):
        return source
    if python_sets.is_held(source):
        return python_sets.read(source)
    try:
        status = source.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError("not a regular file", where=source)
        if status.st_size > MAX_BYTES:
            raise DataError(f"{status.st_size} bytes is more than a picture has", where=source)
        return source.read_bytes()
    except NotADirectoryError:
        return shards.read(source, MAX_BYTES)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", where=source) from None


# ---------------------------------------------------------------- bytes -> pixels of the file's own kind


def _pixels(data: bytes, max_pixels: int, thorough: bool) -> Tensor:
    """(C, H, W): 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA, or bands; uint8, or float32 in 0..1 of 16-bit files."""
    if is_array(data):
        return _from_array(array_of(data, max_pixels))
    format_, image = opened(data, max_pixels)
    layout = raw_mode(image)
    with explained(data):
        if ";16" in layout and image.mode in ("RGB", "RGBA"):
            return upright(_deep_color(image, _open(data)[1], layout), orientation(image))
        if format_ != "JPEG":
            return _from_pil(image)
        image.fp = stream = jpeg.Stream(data)
        pixels = _from_pil(image)
        stream.finish()
        if thorough and (again := stream.padded()) and not _from_pil(_open(again)[1]).equal(pixels):
            raise DataError("the picture is cut short: its last scan is not whole")
        return pixels


@contextmanager
def explained(data: bytes) -> Iterator[None]:
    """What a decoder raises because it does not read such files becomes a DataError that says what the file is."""
    try:
        yield
    except DataError:
        raise
    except Exception:
        if reason := file_kinds.unread(data):
            raise DataError(f"{reason[0]}, which is not read", remedy=reason[1]) from None
        raise


def is_array(data: bytes) -> bool:
    """Whether these are the bytes of a `.npy` file."""
    return data.startswith(_NUMPY)


def opened(data: bytes, max_pixels: int = MAX_PIXELS) -> tuple[str, Any]:
    """Format and lazily opened PIL image; raises DataError for what is none, too large, a bomb or a cut PNG."""
    format_, image = _open(data)
    width, height = image.size
    pixels = width * height
    if pixels > max_pixels or (pixels > _SUSPECT_PIXELS and pixels > _SUSPECT_RATE * len(data)):
        why = f"limit {max_pixels / 1e6:.0f}" if pixels > max_pixels else f"in {len(data)} bytes: a decompression bomb"
        raise DataError(f"{width} x {height} pixels are {pixels / 1e6:.0f} million ({why})")
    if format_ == "PNG" and data.rfind(b"IEND", -65536) < 0:  # PIL needs no end mark
        raise DataError("the picture is cut short: PNG without its end mark")
    return format_, image


def raw_mode(image: Any) -> str:
    """PIL's name of the layout in the file, such as "RGB;16B"; empty where the decoder needs none."""
    args = image.tile[0].args if image.tile else ""
    return args if isinstance(args, str) else str(args[0])


def _deep_color(image: Image.Image, again: Image.Image, layout: str) -> Tensor:
    """(C, H, W) float32 of a picture of 16-bit colours, of which PIL keeps the high bytes.

    The low bytes come from a second reading with the other byte order; grey and alpha, from reading four bytes a pixel.
    """
    if layout.startswith("LA"):
        _read_as(again, "RGBA")
        values = np.array(again).view(">u2").astype(np.int32)  # (H, W, 2)
    else:
        kind, order = layout.split(";16")
        _read_as(again, f"{kind};16{'L' if order == 'B' or (order == 'N' and sys.byteorder == 'big') else 'B'}")
        values = np.array(image).astype(np.int32) * 256 + np.array(again)
    return _from_deep(torch.from_numpy(values.transpose(2, 0, 1)))


def _read_as(image: Any, layout: str) -> None:
    image.tile = [
        tile._replace(args=layout if isinstance(tile.args, str) else (layout, *tile.args[1:])) for tile in image.tile
    ]


def _open(data: bytes) -> tuple[str, Any]:
    """Format and lazily opened image. `Image.open` is avoided: it lets more formats in and warns of large pictures."""
    if not data:
        raise DataError("the file is empty")
    _silence_tag_warnings()
    for magic, format_, reader in _READERS:
        if data.startswith(magic) and not (format_ == "WebP" and data[8:12] != b"WEBP"):
            if format_ == "TIFF" and file_kinds.is_raw(data):
                raise DataError("a camera's raw file, which is not read", remedy="export it as PNG or JPEG")
            with explained(data):
                return format_, reader(io.BytesIO(data))
    kind = file_kinds.kind_of(data)
    what = f"{kind.what}, which is not read" if kind.picture else f"not a picture but {kind.what}"
    raise DataError(what, remedy=kind.remedy or "JPEG, PNG, WebP, BMP, TIFF, GIF and PNM can be read")


def _from_pil(image: Image.Image) -> Tensor:
    _silence_tag_warnings()
    image.load()
    turned, mode = orientation(image), image.mode  # PIL turns TIFF files itself while loading, and drops their tag
    if mode == "F":
        raise DataError("floating-point pixels have no known range", remedy="save it with 8 or 16 bits")
    if mode.startswith("I"):
        values = np.array(image).astype(np.int32)
        if values.min() < 0 or values.max() > 65535:
            raise DataError("pixels are outside 0..65535", remedy="save it with 8 or 16 bits")
        if getattr(image, "tag_v2", {}).get(262) == 0:  # "white is zero", which PIL applies to 8 bits only
            values = 65535 - values
        return upright(_from_deep(torch.from_numpy(values)[None]), turned)
    if mode == "1":
        image = image.convert("L")
    elif "transparency" in image.info or mode in ("PA", "La", "RGBa"):
        image = image.convert("RGBA")
    elif mode not in ("L", "LA", "RGB", "RGBA"):  # P, CMYK, YCbCr, LAB, HSV, RGBX
        image = image.convert("RGB")
    array = np.array(image)
    pixels = torch.from_numpy(array[None] if array.ndim == 2 else array.transpose(2, 0, 1))
    return upright(pixels, turned)


def array_of(data: bytes, max_pixels: int) -> np.ndarray:
    """The array of a `.npy` file. Its length must be what the header says, so nothing is allocated on its word."""
    stream = io.BytesIO(data)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    shape, fortran, dtype = headers[np.lib.format.read_magic(stream)](stream)
    if dtype.hasobject or dtype.kind != "u" or dtype.itemsize > 2:
        raise DataError(f"an array of {dtype}", remedy="save uint8 or uint16")
    if len(shape) not in (2, 3) or 0 in shape:
        raise DataError(f"an array of shape {shape}", remedy="save (height, width) or (height, width, bands)")
    if shape[0] * shape[1] > max_pixels:
        raise DataError(f"{shape[1]} x {shape[0]} pixels (limit {max_pixels / 1e6:.0f} million)")
    return np.frombuffer(data, dtype, offset=stream.tell()).reshape(shape, order="F" if fortran else "C")


def _from_array(array: np.ndarray) -> Tensor:
    if array.ndim not in (2, 3) or 0 in array.shape:
        raise DataError(f"an array of shape {array.shape} is not a picture", remedy="give (H, W) or (H, W, C)")
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    if array.dtype == np.uint8:
        return torch.from_numpy(array.copy())
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _from_deep(torch.from_numpy(array.astype(np.int32)))
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= -0.5 and high <= 1.5):  # also NaN; resampling may overshoot a little
            rule = "floating-point pixels must be in 0..1" + (", without NaN" if low != low else "")
            raise DataError(f"{rule}, these are in {low:g}..{high:g}", remedy="divide by 255, or give uint8")
        return torch.from_numpy(array.astype(np.float32)).clamp_(0, 1)
    raise DataError(f"pixels of type {array.dtype}", remedy="give uint8, uint16, or floating point in 0..1")


def _from_deep(values: Tensor) -> Tensor:
    return values.float().div_(65535)


def orientation(image: Image.Image) -> int:
    """The orientation tag, 1 where there is none that can be read."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a broken tag is no reason to refuse the pixels
        return 1


def upright(pixels: Tensor, turned: int) -> Tensor:
    """Undo an EXIF orientation: 2 mirrored, 3 turned by 180 degrees, 4 flipped, 5 to 8 with exchanged axes."""
    if turned in (5, 6, 7, 8):
        pixels = pixels.transpose(-1, -2)
    axes = {2: [-1], 3: [-1, -2], 4: [-2], 6: [-1], 7: [-1, -2], 8: [-2]}.get(turned)
    return pixels.flip(axes) if axes else pixels


# ---------------------------------------------------------------- to the channels and bits of the model


def _arrange(pixels: Tensor, preprocessing: Preprocessing) -> Tensor:
    pixels = _match_channels(pixels, preprocessing.channels, preprocessing.background / 255)
    if preprocessing.bits == 8 and pixels.is_floating_point():
        pixels = pixels.mul(255).round_().to(torch.uint8)
    elif preprocessing.bits == 16:
        pixels = _unit(pixels)
    return pixels.contiguous()


def _match_channels(pixels: Tensor, channels: int, background: float) -> Tensor:
    have = len(pixels)
    if have == channels and have != 2:
        return pixels
    if have > 4 or channels not in (1, 3, 4):
        if have == channels:
            return pixels
        raise DataError(
            f"{have} channels, the model takes {channels}", remedy="set preprocessing.channels, or save as .npy"
        )
    color, alpha = (pixels[:-1], pixels[-1:]) if have in (2, 4) else (pixels, None)
    if channels == 4:
        opaque = torch.full_like(color[:1], 1 if color.is_floating_point() else 255) if alpha is None else alpha
        return torch.cat([color.expand(3, -1, -1), opaque])
    if alpha is not None:
        opacity = _unit(alpha)
        color = _like(_unit(color) * opacity + background * (1 - opacity), pixels)
    if channels == 1 and len(color) == 3:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        color = _like((_unit(color) * weights).sum(0, keepdim=True), pixels)
    return color.expand(channels, -1, -1)


def _unit(pixels: Tensor) -> Tensor:
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)


def _like(unit: Tensor, pixels: Tensor) -> Tensor:
    return unit if pixels.is_floating_point() else unit.mul_(255).round_().to(torch.uint8)


# ---------------------------------------------------------------- small print


def _silence_tag_warnings() -> None:
    """Keep PIL's remarks on broken tags from the user, and from becoming errors where warnings are.

    Not `catch_warnings`: that is not safe with threads. The filter is put first, once.
    """
    first = warnings.filters[0] if warnings.filters else None
    if first is None or (first[0], first[2], getattr(first[3], "pattern", None)) != ("ignore", UserWarning, r"PIL\."):
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "strerror", None) or error).strip().split("\n")[0]
    return text[:120] if text else type(error).__name__
