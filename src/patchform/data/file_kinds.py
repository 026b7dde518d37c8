"""What a file is by its first bytes, and, of whole pictures that cannot be read, why not and what to do."""

from __future__ import annotations

import struct
from typing import NamedTuple

from patchform.data import jpeg

_SAVE = "save it as PNG or JPEG"
_EXPORT = "export it as PNG or JPEG with 8 or 16 bits"


class Kind(NamedTuple):
    """Files that begin alike."""

    at: int
    """Where the bytes are."""
    magic: bytes
    what: str
    """With its article."""
    remedy: str = ""

    @property
    def picture(self) -> bool:
        """Whether it is one, by another program's word."""
        return self.what.endswith(("picture", "drawing", "raw file"))


PICTURE_KINDS = (
    Kind(0, b"\xff\xd8\xff", "a JPEG picture"),
    Kind(0, b"\x89PNG\r\n\x1a\n", "a PNG picture"),
    Kind(8, b"WEBP", "a WebP picture"),
    Kind(0, b"BM", "a BMP picture"),
    Kind(0, b"II*\0", "a TIFF picture"),
    Kind(0, b"MM\0*", "a TIFF picture"),
    Kind(0, b"GIF8", "a GIF picture"),
    *(Kind(0, b"P%d" % number + blank, "a PNM picture") for number in range(1, 7) for blank in (b"\n", b"\r", b" ")),
)
"""Those that are read where pictures are."""
_KINDS = (
    *PICTURE_KINDS,
    # pictures that are not read
    *(Kind(4, b"ftyp" + brand, "an AVIF picture", _SAVE) for brand in (b"avif", b"avis")),
    *(Kind(4, b"ftyp" + b, "a HEIC picture", _SAVE) for b in (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx")),
    *(Kind(4, b"ftyp" + brand, "a HEIF picture", _SAVE) for brand in (b"mif1", b"msf1")),
    Kind(0, b"\xff\x0a", "a JPEG XL picture", _SAVE),
    Kind(0, b"\0\0\0\x0cJXL ", "a JPEG XL picture", _SAVE),
    Kind(0, b"\0\0\0\x0cjP  ", "a JPEG 2000 picture", _SAVE),
    Kind(0, b"\xff\x4f\xff\x51", "a JPEG 2000 picture", _SAVE),
    Kind(0, b"II\xbc\x01", "a JPEG XR picture", _SAVE),
    Kind(0, b"II+\0", "a BigTIFF picture", "save it as TIFF or PNG"),
    Kind(0, b"MM\0+", "a BigTIFF picture", "save it as TIFF or PNG"),
    Kind(0, b"8BPS", "a Photoshop file", _EXPORT),
    Kind(0, b"8BPB", "a Photoshop file", _EXPORT),
    Kind(0, b"gimp xcf", "a GIMP file", _EXPORT),
    Kind(0, b"\0\0\1\0", "an icon", _SAVE),
    Kind(0, b"\0\0\2\0", "a cursor", _SAVE),
    Kind(0, b"qoif", "a QOI picture", _SAVE),
    Kind(0, b"DDS ", "a DDS texture", _SAVE),
    Kind(0, b"v/1\x01", "an OpenEXR picture", _EXPORT),
    Kind(0, b"#?RADIANCE", "a Radiance picture", _EXPORT),
    Kind(0, b"SIMPLE  =", "a FITS file", "save it as .npy of uint8 or uint16"),
    Kind(0, b"\x89HDF\r\n\x1a\n", "an HDF5 file", "save its pictures as .npy, PNG or JPEG"),
    Kind(128, b"DICM", "a DICOM file", _EXPORT),
    Kind(4, b"ftypcrx", "a camera's raw file", _EXPORT),
    Kind(8, b"CR\2\0", "a camera's raw file", _EXPORT),
    Kind(0, b"FUJIFILMCCD-RAW", "a camera's raw file", _EXPORT),
    *(Kind(0, magic, "a camera's raw file", _EXPORT) for magic in (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb")),
    Kind(0, b"AT&TFORM", "a DjVu document", _EXPORT),
    Kind(0, b"%PDF", "a PDF document", _EXPORT),
    Kind(0, b"%!PS", "a PostScript file", _EXPORT),
    Kind(0, b"\xc5\xd0\xd3\xc6", "a PostScript file", _EXPORT),
    # others
    Kind(0, b"PK\x03\x04", "a ZIP archive", "unpack it"),
    Kind(0, b"\x1f\x8b", "a gzip archive", "unpack it"),
    Kind(0, b"Rar!", "a RAR archive", "unpack it"),
    Kind(0, b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive", "unpack it"),
    Kind(257, b"ustar", "a tar archive", "let its name end in .tar"),
    Kind(4, b"ftyp", "an MP4 or QuickTime video"),
    Kind(0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    Kind(8, b"AVI ", "an AVI video"),
    Kind(0, b"\0\0\1\xba", "an MPEG video"),
    Kind(0, b"\0\0\1\xb3", "an MPEG video"),
    Kind(0, b"FLV", "a Flash video"),
    Kind(0, b"OggS", "an Ogg file"),
    Kind(0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    Kind(0, b"\x93NUMPY", "a NumPy array"),
    Kind(0, b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "fetch it: git lfs pull"),
)


def kind_of(data: bytes) -> Kind:
    """What a file is that begins with these bytes, in words."""
    for kind in _KINDS:
        if data.startswith(kind.magic, kind.at):
            return kind
    head = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return Kind(0, b"", "an HTML page (a failed download?)")
    if b"<svg" in head:
        return Kind(0, b"", "an SVG drawing", _EXPORT)
    if head.startswith(b"<?xml"):
        return Kind(0, b"", "an XML file")
    if all(32 <= byte < 127 or byte in (9, 10, 13) for byte in data[:512]):
        return Kind(0, b"", "text")
    return Kind(0, b"", "bytes of no known kind")


def unread(data: bytes) -> tuple[str, str] | None:
    """Of a picture that the decoder refused: what it is and what to do, if that is why; None: it is damaged."""
    if data.startswith(b"\xff\xd8\xff"):
        what = jpeg.unread_process(data)
        return None if what is None else (what, "save it as an ordinary JPEG, or PNG")
    tags = tiff_tags(data)
    if not tags:
        return None
    bands, bits = tags.get(_BANDS, (1,))[0], tags.get(_BITS, (1,))
    form, packing = tags.get(_FORM, (1,))[0], tags.get(_PACKING, (1,))[0]
    numbers = {2: "signed numbers", 3: "floating-point numbers", 5: "complex numbers", 6: "complex numbers"}.get(form)
    widths = " and ".join(str(width) for width in sorted(set(bits)))
    if bands not in (1, 3, 4) or numbers or not {*bits} <= {1, 2, 4, 8, 16} or len({*bits}) > 1:
        what = f"a TIFF picture of {bands} band{'s' * (bands > 1)} of {widths} bits" + (
            f", {numbers}" if numbers else ""
        )
        return what, "save it as .npy, (height, width, bands) of uint8 or uint16"
    if packing not in _ALWAYS:
        return f"a TIFF picture packed by {_PACKINGS.get(packing, f'method {packing}')}", "save it unpacked, or as PNG"
    return None


def is_raw(data: bytes) -> bool:
    """Whether a TIFF file is a camera's: what a reader of TIFF finds in it may be a small preview."""
    tags = tiff_tags(data)
    return _DNG in tags or (bool(tags.get(_REDUCED, (0,))[0] & 1) and _BELOW in tags)


_REDUCED, _BITS, _PACKING, _BANDS, _BELOW, _FORM, _DNG = 254, 258, 259, 277, 330, 339, 50706
_ALWAYS = (1, 2, 3, 4, 5, 8, 32773, 32946)
"""Ways of packing that every build has: none, of fax machines, LZW, Deflate, PackBits."""
_PACKINGS = {6: "old JPEG", 7: "JPEG", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG", 34925: "LZMA"}
_PACKINGS |= {50000: "Zstandard", 50001: "WebP", 50002: "JPEG XL", 34933: "PNG", 34934: "JPEG XR"}
_LENGTHS = {1: "B", 3: "H", 4: "I"}


def tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The whole numbers that describe the first picture of a TIFF file; empty for what is none or is cut there."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        return {}
    tags: dict[int, tuple[int, ...]] = {}
    try:
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (count,) = struct.unpack_from(f"{order}H", data, start)
        for index in range(count):
            entry = start + 2 + 12 * index
            tag, kind, number = struct.unpack_from(f"{order}HHI", data, entry)
            if kind not in _LENGTHS or not 0 < number <= 4096:
                continue
            code = f"{order}{number}{_LENGTHS[kind]}"
            fits = struct.calcsize(code) <= 4
            tags[tag] = struct.unpack_from(
                code, data, entry + 8 if fits else struct.unpack_from(f"{order}I", data, entry + 8)[0]
            )
    except struct.error:
        pass
    return tags
