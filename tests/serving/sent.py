"""What clients send."""

import io

import numpy as np
from PIL import Image


def picture(seed=0, size=(40, 50), kind="JPEG"):
    """The bytes of a file."""
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()
