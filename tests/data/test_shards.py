"""Members of tar shards are read where they lie, and no tar makes anything else be read."""

import bz2
import gzip
import lzma
import os
import random
import re
import shutil
import subprocess
import tarfile
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest
from bad_pictures import encode, gradient
from PIL import Image
from tarred import END, FORMATS, header, padded, pax, record, special, tar

from patchform.data import check_cache, images, shards
from patchform.data.checks.copies import copies, overlap
from patchform.data.checks.examination import check
from patchform.data.images import decode
from patchform.data.inputs import expand
from patchform.data.listing import Item, Listing
from patchform.errors import DataError
from patchform.records import Preprocessing

PLAIN = Preprocessing()
LONG = "/".join(["f" * 30] * 5)
SIZES = (0, 1, 511, 512, 513, 10_000)


def named(format):
    """Names of all lengths that a format can hold; ustar has 100 bytes beside 155 of folders."""
    names = [f"a/{size}.bin" for size in SIZES] + [LONG[:120] + "/x.jpg", "n" * 100, "./dots//and/./slashes.jpg"]
    names += [] if format == "ustar" else [LONG * 3 + "/y.jpg", "d/" + "n" * 300 + ".jpg"]
    return [*names, "ä/Größe.jpg", "with space\nand line.jpg", "back\\slash.jpg", "a.tar/inside.jpg"]


def noise(length, seed=0):
    return random.Random(seed).randbytes(length)


@pytest.fixture(params=FORMATS)
def shard(request, tmp_path):
    names = named(request.param)
    members = {name: noise(SIZES[row % len(SIZES)], row) for row, name in enumerate(names)}
    return tar(tmp_path / "000.tar", members, FORMATS[request.param])


def differences(shard):
    """Names of members that are not read as `tarfile` extracts them."""
    with tarfile.open(shard) as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    assert len(members) == len(shards.index(shard).names) > 10
    return [name for name, data in members if shards.read(shard / name, 1 << 20) != data]


def test_every_member_is_what_tarfile_extracts(shard):
    assert differences(shard) == []
    assert list(shards.index(shard).names) == sorted(shards.index(shard).names)
    assert "dots/and/slashes.jpg" in shards.index(shard).names


def test_control_a_place_that_is_off_by_one_is_found(shard, monkeypatch):
    real = shards._index
    monkeypatch.setattr(
        shards, "_index", lambda *key: real(*key)._replace(offsets=[place + 1 for place in real(*key).offsets])
    )
    assert len(differences(shard)) > 8


def test_a_shard_may_have_more_headers_than_one_member_may(tmp_path):
    number = shards._LONGEST_HEADER // 512 + 10
    found = shards.index(tar(tmp_path / "0.tar", {f"{row}.jpg": b"" for row in range(number)}))
    assert len(found.names) == number


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
@pytest.mark.parametrize("format", ["v7", "ustar", "gnu", "posix"])
def test_what_the_system_packs_is_read_as_its_files(tmp_path, format):
    names = [name for name in named("gnu" if format in ("gnu", "posix") else "ustar") if "\n" not in name]
    names = [name for name in names if len(name) < (99 if format == "v7" else 240)]
    for row, name in enumerate(names):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(noise(SIZES[row % len(SIZES)], row))
    command = ["tar", "-cf", str(tmp_path / "0.tar"), f"--format={format}", "-C", str(tmp_path / "in"), "."]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("another tar")
    files = [file for file in (tmp_path / "in").rglob("*") if file.is_file()]
    assert len(shards.index(tmp_path / "0.tar").names) == len(files) >= 10
    for file in files:
        member = tmp_path / "0.tar" / file.relative_to(tmp_path / "in")
        assert shards.read(member, 1 << 20) == file.read_bytes()


def picture(seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    return encode(Image.fromarray(pixels), "PNG")


def test_a_member_is_decoded_like_a_file_and_a_file_asks_nobody(tmp_path, monkeypatch):
    data = encode(Image.fromarray(gradient()), "PNG")
    member = tar(tmp_path / "0.tar", {"a/b.png": data}) / "a" / "b.png"
    (tmp_path / "b.png").write_bytes(data)
    assert decode(member, PLAIN).equal(decode(tmp_path / "b.png", PLAIN))
    assert images.upright_size(member) == images.upright_size(tmp_path / "b.png")
    for name in ("_member", "_index", "_open"):
        monkeypatch.setattr(shards, name, None)
    decode(tmp_path / "b.png", PLAIN)
    shards.status(tmp_path / "b.png")
    with pytest.raises(DataError, match="NoneType"):  # control
        decode(member, PLAIN)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("0.tar/none.png", "no such member"),
        ("0.tar/a", "no such member"),
        ("0.tar/a/../a/b.png", "no such member"),
        ("0.tar/big.png", "600 bytes, more than"),
        ("0.tar/link.png", "a link"),
        ("c.png/b.png", "no tar shard"),
        ("none.tar/b.png", "No such file"),
        ("folder.tar/b.png", "No such file"),
    ],
)
def test_a_path_that_leads_to_no_member_says_so(tmp_path, monkeypatch, name, what):
    link = special("link.png", tarfile.SYMTYPE, "a/b.png")
    tar(tmp_path / "0.tar", {"a/b.png": picture()[:400], "big.png": bytes(600), "": link})
    (tmp_path / "c.png").write_bytes(picture())
    (tmp_path / "folder.tar").mkdir()
    monkeypatch.setattr(images, "MAX_BYTES", 500 if "big" in name else 1 << 20)
    with pytest.raises(DataError, match=what):
        decode(tmp_path / name, PLAIN)


# --------------------------------------------------------------------------------------------------- damaged, foreign


@pytest.mark.parametrize("format", FORMATS)
def test_a_shard_that_is_cut_anywhere_is_refused(tmp_path, format):
    names = ["a.jpg", "d/" + ("n" * 90 if format == "ustar" else "n" * 200) + ".jpg", "z.jpg"]
    whole = tar(tmp_path / "0.tar", {name: noise(700, row) for row, name in enumerate(names)}, FORMATS[format])
    data = whole.read_bytes()
    end = len(data.rstrip(b"\0")) + -len(data.rstrip(b"\0")) % 512
    assert not any(data[end:])
    assert end < len(data) - 512
    for length in [*range(0, end + 512, 128), *range(end - 3, end + 4), end + 511]:
        whole.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"(cut short: it ends at byte|damaged from its start).*0\.tar") as error:
            shards.index(whole)
        assert length < 512 or f"byte {length}" in str(error.value)
    whole.write_bytes(data[: end + 512])  # control: all is there, and one block of zeros
    assert len(shards.index(whole).names) == 3


def test_a_damaged_header_does_not_end_a_shard(tmp_path):
    data = bytearray(tar(tmp_path / "0.tar", {"a.jpg": b"x", "b.jpg": b"y", "c.jpg": b"z"}).read_bytes())
    data[1024] ^= 1
    (tmp_path / "0.tar").write_bytes(data)
    with tarfile.open(tmp_path / "0.tar") as archive:
        assert len(archive.getmembers()) == 1  # which is why
    with pytest.raises(DataError, match=r"damaged at byte 1024 \(no header\)"):
        shards.index(tmp_path / "0.tar")


def test_random_damage_gives_an_index_inside_the_file_or_an_error_in_one_line(tmp_path):
    members = {"a/b.jpg": noise(600), LONG + "/c.jpg": noise(100), "n" * 120 + ".jpg": noise(1)}
    originals = [tar(tmp_path / "0.tar", members, FORMATS[name]).read_bytes() for name in ("gnu", "pax")]
    draw, refused = random.Random(0), 0
    for number in range(600):
        data = bytearray(originals[number % 2])
        for _ in range(draw.choice((1, 1, 3, 30))):
            data[draw.randrange(4096)] = draw.randrange(256)
        if number % 3:  # checksums that are right let more through
            for start in range(0, 4096, 512):
                if data[start + 257 : start + 262] == b"ustar":
                    data[start + 148 : start + 156] = b" " * 8
                    data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        (tmp_path / "bad.tar").write_bytes(data)
        shards._index.cache_clear()
        try:
            found = shards.index(tmp_path / "bad.tar")
        except DataError as error:
            refused += bool(re.fullmatch(r".*bad\.tar.*", str(error)))
            continue
        for offset, size in zip(found.offsets, found.sizes, strict=True):
            assert 512 <= offset <= offset + size <= len(data)
    assert 100 < refused < 590


HUGE = b"\x80" + (1 << 40).to_bytes(11, "big")
NEGATIVE = b"\xff" + (-1024).to_bytes(11, "big", signed=True)
BACK = b"\xff" + (-512).to_bytes(11, "big", signed=True)
BEYOND = ("a size beyond the file", "the largest size there is", "a pax size beyond the file")
HOSTILE = {
    "a size beyond the file": header(size=HUGE) + END,
    "the largest size there is": header(size=b"\x80" + b"\xff" * 11) + END,
    "a negative size": header() + header(b"b.jpg", NEGATIVE) + END,
    "a size that leads back": header(kind=b"7", size=NEGATIVE) + END,
    "something unknown that leads back to itself": header() + header(b"z", BACK, b"Z") + END,
    "a long name beyond the file": header(b"././@LongLink", HUGE, b"L") + END,
    "a long name of negative size": header(b"././@LongLink", NEGATIVE, b"L") + END,
    "a pax header beyond the file": header(b"pax", HUGE, b"x") + END,
    "a pax header of negative size": header(b"pax", NEGATIVE, b"x") + header() + END,
    "a pax size beyond the file": pax((b"size", b"9" * 15)) + header(size=b"00000001000") + bytes(512) + END,
    "a negative pax size": pax((b"size", b"-512")) + header(size=b"00000001000") + bytes(512) + END,
    "a pax size for all": pax((b"size", b"4096"), kind=b"g") + header(size=b"00000001000") + bytes(512) + END,
    "sparse in pax 0.1": pax((b"GNU.sparse.map", b"0,1"), (b"GNU.sparse.size", b"999999")) + header() + END,
    "sparse in pax 1.0 without end": pax((b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"))
    + header(size=b"00000001000")
    + padded(b"99999999\n1"),
    "sparse in pax 1.0": pax(
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"99999999")
    )
    + header(size=b"00000001000")
    + padded(b"1\n0\n1\n")
    + END,
    "old sparse": header(kind=b"S") + END,
    "headers for headers": pax((b"a", b"b")) * 5000 + header() + END,
    "nothing after a long name": header(b"././@LongLink", b"%011o" % 4, b"L") + padded(b"name") + END,
}


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_headers_are_refused_before_anything_is_allocated(tmp_path, what):
    (tmp_path / "0.tar").write_bytes(HOSTILE[what])
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"0\.tar") as error:
            shards.index(tmp_path / "0.tar")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()
    assert "cut short: it ends" in str(error.value) or what not in BEYOND


@pytest.mark.parametrize("kind", [b"L", b"K", b"x", b"g"])
def test_headers_that_are_really_gigabytes_are_not_read(tmp_path, kind):
    with (tmp_path / "0.tar").open("wb") as file:
        file.write(header(b"long", b"%011o" % (3 << 30), kind))
        file.truncate((3 << 30) + 4096)  # holes
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match="header is too long"):
            shards.index(tmp_path / "0.tar")
        assert tracemalloc.get_traced_memory()[1] < 20 << 20
    finally:
        tracemalloc.stop()


def test_control_what_is_put_together_by_hand_is_fine_where_nothing_is_wrong(tmp_path):
    content = pax((b"path", b"ok.jpg"), (b"size", b"3")) + header(size=b"%011o" % 9) + padded(b"abc") + header() + END
    (tmp_path / "0.tar").write_bytes(content)
    assert shards.index(tmp_path / "0.tar").names == ("a.jpg", "ok.jpg")
    assert shards.read(tmp_path / "0.tar" / "ok.jpg", 9) == b"abc"
    assert record(b"path", b"x" * 90).startswith(b"99 path=")
    assert len(record(b"path", b"x" * 91)) == 101


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../a.jpg", "a/../../b.jpg", "..", ".", "./", "a/..", "//a.jpg", "a\0b.jpg"]
)
def test_names_that_lead_out_of_the_shard_are_refused(tmp_path, name):
    (tmp_path / "0.tar").write_bytes(pax((b"path", name.encode())) + header(b"x") + END)
    with pytest.raises(DataError, match=r"no path inside the shard in .*0\.tar"):
        shards.index(tmp_path / "0.tar")
    tar(tmp_path / "1.tar", {"a..b/...jpg": b"x", "c/..d.jpg": b"y"})  # control
    assert shards.index(tmp_path / "1.tar").names == ("a..b/...jpg", "c/..d.jpg")


def test_links_folders_and_devices_are_no_members(tmp_path):
    kinds = {"hard": tarfile.LNKTYPE, "soft": tarfile.SYMTYPE, "folder": tarfile.DIRTYPE, "pipe": tarfile.FIFOTYPE}
    others = [(name, special(name, kind, "../a.jpg")) for name, kind in kinds.items()]
    found = shards.index(tar(tmp_path / "0.tar", [*others, ("a.jpg", b"x"), *others]))
    assert found.names == ("a.jpg",)
    assert found.links == ("hard", "soft", "hard", "soft")


@pytest.mark.parametrize("second", ["a.jpg", "./a.jpg", ".//a.jpg"])
def test_two_members_of_one_name_are_refused(tmp_path, second):
    with pytest.raises(DataError, match=r'two members named "a\.jpg"'):
        shards.index(tar(tmp_path / "0.tar", [("a.jpg", b"x"), (second, b"y")]))


@pytest.mark.skipif(shutil.which("tar") is None, reason="no tar")
@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_a_real_sparse_member_is_refused(tmp_path, format):
    with (tmp_path / "a.jpg").open("wb") as file:
        file.write(b"x" * 4096)
        file.truncate(1 << 20)
    command = ["tar", "-cSf", str(tmp_path / "0.tar"), f"--format={format}", "-C", str(tmp_path), "a.jpg"]
    if subprocess.run(command, capture_output=True).returncode or (tmp_path / "0.tar").stat().st_size > 1 << 19:
        pytest.skip("another tar, or a file system without holes")
    with pytest.raises(DataError, match=r'a sparse member "a\.jpg".*--sparse'):
        shards.index(tmp_path / "0.tar")


@pytest.mark.parametrize(
    "squeeze", [gzip.compress, bz2.compress, lzma.compress, lambda data: b"\x28\xb5\x2f\xfd" + data]
)
def test_compressed_shards_are_refused_whatever_their_name(tmp_path, squeeze):
    data = tar(tmp_path / "0.tar", {"a.jpg": b"x"}).read_bytes()
    for name in ("0.tar", "0.tar.gz", "0.tgz", "0.tar.zst"):
        (tmp_path / name).write_bytes(squeeze(data))
        assert shards.is_shard(name)
        with pytest.raises(DataError, match=r"no random access.*unpack the compression"):
            shards.index(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"text", b"<html>" * 1000, picture(), bytes(range(256)) * 9])
def test_what_is_no_tar_is_refused(tmp_path, content):
    (tmp_path / "0.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"not a tar archive.*0\.tar"):
        shards.index(tmp_path / "0.tar")


def test_pipes_folders_and_missing_files_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    for name in ("pipe.tar", "folder.tar"):
        with pytest.raises(DataError, match="not a regular file"):
            shards.index(tmp_path / name)
    with pytest.raises(DataError, match="No such file"):
        shards.index(tmp_path / "none.tar")


def test_joined_tars_are_refused(tmp_path):
    one, two = (tar(tmp_path / name, {name: b"x"}).read_bytes() for name in ("1.tar", "2.tar"))
    (tmp_path / "1.tar").write_bytes(one + bytes(9 * 512))
    assert shards.index(tmp_path / "1.tar").names == ("1.tar",)  # control: zeros may follow
    (tmp_path / "1.tar").write_bytes(one + two)
    with pytest.raises(DataError, match="were tars joined"):
        shards.index(tmp_path / "1.tar")


# ------------------------------------------------------------------------------------------------------------ changes


def test_a_shard_is_looked_through_once_until_it_changes(tmp_path):
    shards._index.cache_clear()
    shard = tar(tmp_path / "0.tar", {"a.jpg": b"first", "b.jpg": b"x"})
    for _ in range(3):
        assert shards.read(shard / "a.jpg", 9) == b"first"
    assert shards._index.cache_info().misses == 1
    before = shards.status(shard / "a.jpg")
    tar(shard, {"0.jpg": b"y", "a.jpg": b"other"})
    assert shards.read(shard / "a.jpg", 9) == b"other"
    assert shards._index.cache_info().misses == 2
    assert shards.status(shard / "a.jpg") != before
    with pytest.raises(DataError, match=r"no such member in .*b\.jpg"):
        shards.read(shard / "b.jpg", 9)


def test_another_file_of_equal_size_and_time_is_found_too(tmp_path):
    one, two = tar(tmp_path / "0.tar", {"a.jpg": b"1"}), tar(tmp_path / "1.tar", [("b.jpg", b""), ("a.jpg", b"2")])
    for shard in (one, two):
        os.utime(shard, ns=(1, 1))
    assert shards.read(one / "a.jpg", 9) == b"1"
    assert one.stat().st_size == two.stat().st_size
    os.replace(two, one)
    assert shards.read(one / "a.jpg", 9) == b"2"


def test_a_shard_that_shrinks_under_the_reader_is_refused(tmp_path, monkeypatch):
    shard = tar(tmp_path / "0.tar", {"a.jpg": b"1" * 5000})
    found = shards.index(shard)
    monkeypatch.setattr(shards, "_index", lambda *_: found)
    os.truncate(shard, 1000)
    with pytest.raises(DataError, match="was cut while it was read"):
        shards.read(shard / "a.jpg", 9999)


def test_no_file_stays_open(tmp_path):
    shard = tar(tmp_path / "0.tar", {"a.jpg": b"1"})
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no list of open files")
    before = os.listdir("/proc/self/fd")
    for name in ("a.jpg", "b.jpg"):
        with suppress(DataError):
            shards.read(shard / name, 9)
    assert len(os.listdir("/proc/self/fd")) == len(before)


# ------------------------------------------------------------------------------------------------- where else they go


def listed(root, *names):
    return Listing(classes=(), items=tuple(Item(root / name, ()) for name in names), root=root)


def test_checks_see_members_as_they_see_files(tmp_path):
    pictures = {"a.png": picture(0), "b.png": picture(1), "c.png": picture(0), "bad.png": picture(2)[:-9]}
    tar(tmp_path / "0.tar", pictures)
    for name, data in pictures.items():
        (tmp_path / "files").mkdir(exist_ok=True)
        (tmp_path / "files" / name).write_bytes(data)
    members, files = listed(tmp_path / "0.tar", *pictures), listed(tmp_path / "files", *pictures)
    assert copies(members) == copies(files) == ((0, 2),)
    assert overlap(members, files) == overlap(files, files)
    assert len(overlap(members, files)) == 4
    kept, report = check(members, PLAIN, skip_bad=0.5)
    assert (kept.name(2), report.faults) == ("c.png", check(files, PLAIN, skip_bad=0.5)[1].faults)
    assert report.faults[0].where == "bad.png"


def test_a_check_is_made_anew_when_the_shard_changed(tmp_path):
    shard = tar(tmp_path / "0.tar", {"a.png": picture(0)})
    listing = listed(tmp_path, "0.tar/a.png")
    first = check_cache.key(listing, PLAIN)
    assert first is not None
    assert first == check_cache.key(listing, PLAIN)
    os.utime(shard, ns=(5, 5))
    second = check_cache.key(listing, PLAIN)
    assert second not in (None, first)
    tar(shard, {"b.png": picture(0)})
    assert check_cache.key(listing, PLAIN) is None


def test_a_shard_or_a_member_can_be_asked_about(tmp_path):
    members = {"a/10.png": picture(0), "a/2.png": picture(1), "a/2.json": b"{}", "a/._2.png": b"x"}
    shard = tar(tmp_path / "0.tar", members)
    assert [source.content for source in expand(str(shard))] == [shard / "a/2.png", shard / "a/10.png"]
    assert [source.name for source in expand(shard / "a" / "2.png")] == [str(shard / "a/2.png")]
    assert shards.exists(shard / "a/2.png")
    assert shards.exists(shard)
    assert shards.exists(tmp_path)
    (tmp_path / "x.png").write_bytes(b"x")
    for name in ("none.tar/a.png", "none", "x.png/a.png"):
        assert not shards.exists(tmp_path / name)
        with pytest.raises(DataError, match="no such file"):
            expand(tmp_path / name)
    with pytest.raises(DataError, match="no picture"):
        expand(tar(tmp_path / "1.tar", {"a.txt": b"x"}))


def test_pictures_come_in_the_order_of_a_walk(tmp_path):
    names = ["b.png", "a/z.png", "a.b/c.png", "a-b/c.png", "a/b/c.JPG", "a0.png", "a/.hidden.png", "__MACOSX/a.png"]
    found = shards.pictures(shards.index(tar(tmp_path / "0.tar", dict.fromkeys([*names, "a.txt"], b"x"))))
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    walked = [file.relative_to(tmp_path / "in").as_posix() for file in shards.walk(tmp_path / "in")]
    assert found == walked
    assert len(found) == 6
    assert found != sorted(found)  # control: a folder is not its characters


def test_hold_data(tmp_path):
    tar(tmp_path / "deep" / "er" / "0.tar", {"a.png": b"x"})
    assert shards.hold_data(tmp_path)
    assert shards.hold_data(tmp_path / "deep" / "er" / "0.tar")
    (tmp_path / "a.txt").write_text("x")
    assert shards.hold_data(tmp_path)
    assert not shards.hold_data(tmp_path / "a.txt")
    (tmp_path / "z.png").write_bytes(b"x")
    assert not shards.hold_data(tmp_path)
    assert not shards.hold_data(tmp_path / "none")
