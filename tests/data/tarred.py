"""Tar shards: written whole, and headers of them written by hand, as no tool would."""

import io
import tarfile

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
END = bytes(1024)


def tar(path, members, format=tarfile.PAX_FORMAT):
    """A shard of {name: bytes}, or of (name, bytes) pairs; a value may be a `TarInfo` as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def special(name, kind, linkname=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, linkname
    return info


def header(name=b"a.jpg", size=b"00000000000", kind=b"0"):
    """512 bytes with a right checksum; `size` as it stands in the field."""
    block = bytearray(512)
    block[: len(name)] = name
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124 : 124 + len(size)] = size
    block[136:148], block[148:156], block[156:157] = b"00000000000\0", b" " * 8, kind
    block[257:265] = b"ustar\00000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def record(key, value):
    """A line of a pax header."""
    body = b" %s=%s\n" % (key, value)
    length = len(body)
    while length != len(str(length)) + len(body):
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def padded(data):
    return data + bytes(-len(data) % 512)


def pax(*pairs, kind=b"x"):
    """A pax header of these (key, value) pairs for what follows."""
    body = b"".join(record(*pair) for pair in pairs)
    return header(b"pax", b"%011o" % len(body), kind) + padded(body)
