"""Small videos whose frames say their number, in every container and codec that is read."""

import shutil
from fractions import Fraction

import numpy as np
from PIL import Image

BITS, CELL = 6, 16
COUNT, SIZE = 40, (64, BITS * CELL)
"""Frames of a video, and their (height, width)."""


def numbered(number, size=SIZE):
    """(H, W, 3) uint8: the bits of a number as squares at the top, black below."""
    pixels = np.zeros((*size, 3), np.uint8)
    for bit in range(BITS):
        pixels[: 2 * CELL, bit * CELL : (bit + 1) * CELL] = 255 * (number >> bit & 1)
    return pixels


def number_of(frame):
    """The number that a frame (C, H, W) shows."""
    middles = frame.float().mean(0)[CELL // 2 : 3 * CELL // 2]
    if frame.is_floating_point():
        middles = middles * 255
    return sum(int(middles[:, bit * CELL + 4 : (bit + 1) * CELL - 4].mean() > 128) << bit for bit in range(BITS))


def video(
    path, codec="libx264", *, count=COUNT, size=SIZE, gop=12, between=2, times=None, turned=0, sound=False, **options
):
    """Write numbered frames.

    `between` frames are stored after one that is shown later; `times` are in 25ths of a second; `turned` is what the
    container asks for, degrees; `options` are those of the codec or container.
    """
    import av

    av.logging.set_level(av.logging.PANIC)  # libx265 greets
    path.parent.mkdir(parents=True, exist_ok=True)
    muxing = {key: options.pop(key) for key in ("movflags",) if key in options}
    named = {key.replace("_", "-"): value for key, value in options.items()}
    with av.open(str(path), "w", options=muxing) as container:
        stream = container.add_stream(codec, rate=25, options=named)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        if between is not None:
            stream.codec_context.max_b_frames = between
        if turned:
            stream.set_display_rotation(turned)
        voice = container.add_stream("aac", rate=8000) if sound else None
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(number, size), format="rgb24")
            frame.pts, frame.time_base = times[number] if times else number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
        if voice is not None:
            for start in range(0, 8000, 1024):
                part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
                part.sample_rate, part.pts = 8000, start
                container.mux(voice.encode(part))
            container.mux(voice.encode())
    return path


def gif(path, count=COUNT, size=SIZE, duration=80):
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.fromarray(numbered(number, size)) for number in range(count))
    first.save(path, save_all=True, append_images=others, duration=duration)
    return path


def frame_folder(path, count=COUNT, size=SIZE, ending="png"):
    """Names without leading zeros: only natural order gives them in turn."""
    path.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(numbered(number, size)).save(path / f"frame{number}.{ending}")
    return path


def class_folders(root, counts, **options):
    """Class folders of videos: `counts` says how many of each class. One is encoded, the others are its copies."""
    first, number = None, 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            place = root / name / f"{index:03d}.mp4"
            if first is None:
                first = video(place, **options)
            else:
                shutil.copyfile(first, place)
                with place.open("ab") as file:  # of other bytes, and the same to a decoder
                    file.write((8 + 1).to_bytes(4, "big") + b"free" + bytes([number]))
            number += 1
    return root


def sound_alone(path):
    """A second of silence as Matroska."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        for start in range(0, 8192, 1024):
            part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            part.sample_rate, part.pts = 8000, start
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return path
