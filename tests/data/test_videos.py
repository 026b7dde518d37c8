import multiprocessing
import random
import sys
from itertools import pairwise
from pathlib import Path

import moving
import numpy as np
import pytest
import torch
from bad_pictures import bad, encode, good
from moving import COUNT, SIZE, frame_folder, gif, number_of, numbered, video
from PIL import Image

from patchform.data import containers, encoded
from patchform.data.listing import VIDEO_SUFFIXES
from patchform.data.videos import open_video, stream
from patchform.errors import DataError, ResourceError, UsageError
from patchform.records import Preprocessing

av = pytest.importorskip("av")

UNEVEN = [number + number * number // 4 for number in range(COUNT)]
KINDS = {
    "h264.mp4": {},
    "h264.mkv": {},
    "open.mov": {"x264_params": "open-gop=1", "between": 3},
    "one_key.mp4": {"gop": 250},
    "keys.mp4": {"gop": 1, "between": 0},
    "uneven.mp4": {"times": UNEVEN},
    "uneven.mkv": {"times": UNEVEN},
    "late.mp4": {"times": [number + 100 for number in range(COUNT)]},
    "front.mp4": {"movflags": "faststart"},
    "pieces.mp4": {"movflags": "frag_keyframe+empty_moov"},
    "sound.mp4": {"sound": True},
    "mpeg4.avi": {"codec": "mpeg4"},
    "h264.avi": {},
    "motion_jpeg.avi": {"codec": "mjpeg", "between": 0},
    "vp8.webm": {"codec": "libvpx", "between": None, "auto_alt_ref": "1", "lag_in_frames": "10"},
    "vp9.webm": {"codec": "libvpx-vp9", "between": None},
    "h265.mp4": {"codec": "libx265"},
    "av1.mp4": {"codec": "libsvtav1", "between": None},
    "h264.ts": {},
    "sound.ts": {"sound": True},
    "h264.m2ts": {},
    "mpeg2.mpg": {"codec": "mpeg2video"},
    "mpeg1.mpg": {"codec": "mpeg1video"},
    "wmv2.wmv": {"codec": "wmv2", "between": None},
    "h264.flv": {},
    "h264.3gp": {},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """From a name to a video of `COUNT` numbered frames."""
    home = tmp_path_factory.mktemp("videos")

    def get(name):
        path = home / name
        if path.exists():
            return path
        if name.endswith(".gif"):
            return gif(path)
        if name == "folder":
            return frame_folder(path)
        options = dict(KINDS[name])
        codec = options.pop("codec", "libx264")
        if codec not in av.codecs_available:
            pytest.skip(f"PyAV without {codec}")
        return video(path, codec, **options)

    return get


ALL = (*KINDS, "animated.gif", "folder")


@pytest.mark.parametrize("name", ALL)
def test_every_frame_is_found_in_any_order(name, made):
    found = open_video(made(name))
    assert (len(found), found.size) == (COUNT, SIZE)
    everything = list(stream(found.path))
    assert [number_of(frame.pixels) for frame in everything] == list(range(COUNT))
    times = UNEVEN if name.startswith("uneven") else range(COUNT)
    unit = 2 / 25 if name.endswith(".gif") else 1 / 25
    expected = [unit * time for time in times]
    assert [frame.time for frame in everything] == pytest.approx(expected, abs=2e-3)
    assert [found.time(index) for index in range(COUNT)] == pytest.approx(expected, abs=2e-3)
    assert found.rate == pytest.approx((COUNT - 1) / expected[-1], rel=2e-3)
    for index, frame in enumerate(everything):  # sought, and met in passing: the same bits
        assert found.frames([index])[0].equal(frame.pixels)
    chance = random.Random(0)
    for _ in range(10):
        indices = chance.choices(range(COUNT), k=chance.randint(1, 8))
        clip = found.frames(indices)
        assert clip.shape == (len(indices), 3, *SIZE)
        assert clip.dtype == torch.uint8
        assert [number_of(frame) for frame in clip] == indices


@pytest.mark.parametrize("name", ["h264.mp4", "vp9.webm"])
def test_the_control_seeking_by_average_rate_misses(name, made):
    """Without the table of times a frame is sought by index / rate, and uneven videos give others."""
    found = open_video(made("uneven.mp4"))
    guessed = [int(np.searchsorted(UNEVEN, index * UNEVEN[-1] / (COUNT - 1))) for index in range(COUNT)]
    assert guessed != list(range(COUNT))
    assert found._table.pts[1] - found._table.pts[0] != found._table.pts[-1] - found._table.pts[-2]
    assert isinstance(open_video(made(name))._table.pts, range)


def test_little_is_decoded_to_get_to_a_frame(made, monkeypatch):
    """From the key frame before, not from the beginning."""
    passed, placed = [], encoded._timed_frames
    monkeypatch.setattr(encoded, "_timed_frames", lambda *given: (passed.append(1) or one for one in placed(*given)))
    for name in ("h264.mp4", "h264.mkv", "vp9.webm"):
        found = open_video(made(name))
        keys = [*found._table.keys, COUNT]
        for index in (5, 23, 39):
            passed.clear()
            found.frames([index])
            start = max(key for key in keys if key <= index)
            assert index - start + 1 <= len(passed) <= index - start + 3


@pytest.mark.parametrize(("degrees", "turns"), [(90, 1), (-90, 3), (180, 2)])
def test_turned_videos_are_upright(degrees, turns, tmp_path):
    if not hasattr(av.video.stream.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write turned videos")
    plain = open_video(video(tmp_path / "plain.mp4", count=3))
    turned = open_video(video(tmp_path / "turned.mp4", count=3, turned=degrees))
    assert turned.size == (SIZE if turns == 2 else SIZE[::-1])
    clip = turned.frames([0, 2])
    assert clip.shape[-2:] == turned.size
    assert clip.equal(torch.rot90(plain.frames([0, 2]), turns, (-2, -1)))  # counterclockwise, as the container says
    assert not clip.equal(torch.rot90(plain.frames([0, 2]), 4 - turns, (-2, -1))) or turns == 2
    assert next(stream(turned.path)).pixels.equal(clip[0])


def test_frames_have_the_channels_and_bits_of_the_model(made):
    for name in ("h264.mp4", "animated.gif", "folder"):
        found = open_video(made(name))
        grey = found.frames([9], Preprocessing(channels=1))
        assert grey.shape == (1, 1, *SIZE)
        deep = found.frames([9], Preprocessing(bits=16))
        assert deep.dtype == torch.float32
        assert deep.mul(255).round().to(torch.uint8).equal(found.frames([9]))
        assert number_of(grey[0]) == number_of(deep[0]) == 9


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    return path


CUT = ("h264.mp4", "front.mp4", "h264.mkv", "h264.avi", "motion_jpeg.avi", "vp9.webm", "open.mov", "wmv2.wmv")
CUT += ("h264.ts", "h264.m2ts", "mpeg2.mpg", "h264.flv", "h264.3gp")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.85, 0.97])
@pytest.mark.parametrize("name", CUT)
def test_cut_files_are_refused(name, share, made, tmp_path):
    path = tmp_path / name
    path.write_bytes(made(name).read_bytes())
    cut(path, share)
    with pytest.raises(DataError) as caught:
        open_video(path)
    assert str(path) in str(caught.value)
    assert "Errno" not in str(caught.value)
    with pytest.raises(DataError):
        list(stream(path))


def test_a_cut_between_header_and_frames_is_a_video_without_frames(made, tmp_path):
    data = made("front.mp4").read_bytes()
    path = tmp_path / "a.mp4"
    path.write_bytes(data[: data.index(b"mdat") - 4])
    for look in (open_video, lambda file: list(stream(file))):
        with pytest.raises(DataError, match=r"no frame|cut short"):
            look(path)


def test_lengths_that_are_left_open_refuse_nothing(made, tmp_path):
    data = bytearray(made("h264.mkv").read_bytes())
    at = data.index(b"\x18S\x80g") + 4
    data[at : at + 8] = b"\x01" + b"\xff" * 7  # as a recorder leaves it
    path = tmp_path / "live.mkv"
    path.write_bytes(data)
    assert len(open_video(path)) == len(list(stream(path))) == COUNT
    data = bytearray(made("h264.avi").read_bytes())
    data[4:8] = bytes(4)
    path = tmp_path / "live.avi"
    path.write_bytes(data)
    assert len(list(stream(path))) == COUNT


def test_suffixes_that_are_videos_are_read(made):
    names = {Path(name).suffix for name in KINDS}
    assert names <= set(VIDEO_SUFFIXES)
    assert not containers.is_cut(made("h264.ts"))
    with pytest.raises(DataError, match="not a video but text"):
        containers.demuxer(b"G is a letter too, and so is every other one of a program's source" * 9)


def broken(tmp_path):
    """Name -> (path, a part of the reason)."""
    places = {
        "none.mp4": (None, "no such file"),
        "empty.mp4": (b"", "empty"),
        "page.mp4": (bad()["page.jpg"][0], "HTML"),
        "picture.mp4": (good()["rgb.jpg"], "not a video but a JPEG picture"),
        "phone.mp4": (bad()["phone.jpg"][0], "HEIC"),
        "list.mp4": (b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n", "text"),
        "pointer.mkv": (bad()["pointer.jpg"][0], "LFS"),
        "noise.avi": (bytes(range(128, 256)) * 3, "no known kind"),
        "head.mp4": (bad()["video.jpg"][0], "damaged or cut short"),
        "cut.gif": (good()["animated.gif"][:-900], "damaged or cut short"),
    }
    for name, (content, reason) in places.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        yield path, reason
    path = video(tmp_path / "codec.mp4", count=2)
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzz1"))
    yield path, "codec"
    yield moving.sound_alone(tmp_path / "sound.mkv"), "sound alone"
    (tmp_path / "folder").mkdir()
    yield tmp_path / "folder", "no picture"
    folder = frame_folder(tmp_path / "frames", count=3)
    (folder / "frame2.png").write_bytes(b"")
    yield folder, "frame2.png: the file is empty"
    folder = frame_folder(tmp_path / "sizes", count=3)
    Image.fromarray(numbered(1)[1:]).save(folder / "frame1.png")
    yield folder, "several sizes"


def whole(path):
    found = open_video(path)
    return found.frames(range(len(found)))


def test_what_is_no_video_says_what_it_is(tmp_path, capfd):
    for path, reason in broken(tmp_path):
        with pytest.raises(DataError, match=reason) as caught:
            whole(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_frames_beyond_the_limit_are_not_decoded(made, monkeypatch):
    monkeypatch.setattr(encoded, "LARGEST", SIZE[0] * SIZE[1])
    assert len(open_video(made("h264.mp4"))) == COUNT
    monkeypatch.setattr(encoded, "LARGEST", SIZE[0] * SIZE[1] - 1)
    with pytest.raises(DataError, match="million pixels"):
        open_video(made("h264.mp4"))


def test_damaged_bytes_raise_one_kind_of_error(made, tmp_path, capfd):
    chance, kinds = random.Random(0), {}
    for name in ("h264.mp4", "h264.mkv", "motion_jpeg.avi", "vp9.webm", "animated.gif"):
        seed, path = made(name).read_bytes(), tmp_path / name
        for _ in range(40):
            data = bytearray(seed)
            for _ in range(chance.randint(1, 8)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            path.write_bytes(data)
            try:
                found = open_video(path)
                found.frames([0, len(found) - 1])
                kinds[name] = kinds.get(name, 0) + 1
            except DataError:
                pass
    assert capfd.readouterr() == ("", "")
    assert any(kinds.values())


def test_a_missing_library_is_one_line(made, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UsageError, match=r'videos need PyAV; pip install "patchform\[video\]"'):
        open_video(made("h264.mp4"))
    with pytest.raises(UsageError, match="PyAV"):
        next(stream(made("h264.mp4")))
    with pytest.raises(UsageError, match="PyAV"):
        encoded.write(tmp_path / "a.mp4", [numbered(1)])
    assert encoded.version() == ""
    assert len(open_video(made("animated.gif")).frames([3])) == 1  # these need none
    assert len(open_video(made("folder")).frames([3])) == 1


def open_often(path, count):
    for _ in range(count):
        open_video(path).frames([3, 30])
        next(stream(path))  # left in the middle


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_no_file_stays_open(made):
    handles = Path("/proc/self/fd")
    before = len(list(handles.iterdir()))
    open_often(made("h264.mp4"), 3)
    assert len(list(handles.iterdir())) == before
    left = stream(made("h264.mp4"))  # the control
    next(left)
    assert len(list(handles.iterdir())) == before + 1


def memory():
    """Bytes that this process holds, those of files and libraries aside."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        if line.startswith("RssAnon")
    )
    return int(line.split()[1]) * 1024


def _grow(path, answers):
    sizes, kept = [], []
    for _ in range(5):
        open_often(path, 100)
        sizes.append(memory())
    for _ in range(50):  # the control: those that are kept are seen
        kept.append(stream(path))
        next(kept[-1])
    sizes.append(memory())
    answers.put(sizes)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_does_not_grow_with_the_videos_that_were_opened(made):
    context = multiprocessing.get_context("spawn")  # here there is freed memory that a leak would fill first
    answers = context.Queue()
    child = context.Process(target=_grow, args=(made("h264.mp4"), answers))
    child.start()
    sizes = answers.get(timeout=300)
    child.join()
    *grown, kept = (later - earlier for earlier, later in pairwise(sizes))
    assert min(grown) < 1 << 18  # what leaks grows each time; once in a while the allocator takes a block
    assert kept > 1 << 22


def _ask(found, index, answers):
    answers.put(number_of(found.frames([index])[0]))


@pytest.mark.slow
def test_what_is_known_of_a_video_goes_to_other_processes(made):
    found = open_video(made("h264.mp4"))
    found.frames([3])
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    child = context.Process(target=_ask, args=(found, 17, answers))
    child.start()
    assert answers.get(timeout=60) == 17
    child.join()


def test_a_stream_is_read_as_it_is_asked_for(made, monkeypatch):
    passed, placed = [], encoded._timed_frames
    monkeypatch.setattr(encoded, "_timed_frames", lambda *given: (passed.append(1) or one for one in placed(*given)))
    frames = stream(made("h264.mp4"))
    next(frames)
    next(frames)
    assert len(passed) == 2


@pytest.mark.parametrize("size", [SIZE, (65, 97)])
def test_written_videos_are_read_again(size, tmp_path):
    path = tmp_path / "made.mp4"
    frames = [numbered(number, size) for number in range(7)]
    encoded.write(path, (torch.from_numpy(frame).permute(2, 0, 1) for frame in frames), rate=12.5)
    found = open_video(path)
    assert found.rate == pytest.approx(12.5)
    assert found.size == tuple(side + side % 2 for side in size)
    assert [number_of(frame) for frame in found.frames(range(7))] == list(range(7))
    encoded.write(path, map(Image.fromarray, frames[:2]))
    assert len(open_video(path)) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["made.mp4"]


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(UsageError, match="no frame"):
        encoded.write(tmp_path / "a.mp4", [])
    with pytest.raises(UsageError, match="rate"):
        encoded.write(tmp_path / "a.mp4", [numbered(0)], rate=0)
    with pytest.raises(DataError, match="frame 1 is of another size"):
        encoded.write(tmp_path / "a.mp4", [numbered(0), numbered(0)[2:]])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ResourceError, match="cannot be written"):
        encoded.write(tmp_path / "none" / "a.mp4", [numbered(0)])


def test_a_picture_is_an_animation_of_one_frame(tmp_path):
    path = tmp_path / "a.gif"
    path.write_bytes(encode(Image.fromarray(numbered(5)), "GIF"))
    found = open_video(path)
    assert len(found) == 1
    assert number_of(found.frames([0, 0])[1]) == 5
