"""A process that decodes what was sent: hostile bytes are met here, where neither the model nor another request is."""

from __future__ import annotations

import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from patchform import signals
from patchform.data.inputs import Source
from patchform.data.preparing import Preparation
from patchform.errors import DataError
from patchform.serving.jobs import Prepared, Refusal

READY = "ready"
SENT = "the picture"
"""What a picture is called in messages: names that clients give are not repeated."""
NO_MEMORY = "the picture is too large for the memory that is left"


def work(connection: Connection, preparation: Preparation) -> None:
    """What the process does: bytes in, `Prepared` or `Refusal` out, until the server is gone.

    Args:
        connection: gets `READY` first.
        preparation: of the model.
    """
    signals.ignore_all()
    torch.set_num_threads(1)
    connection.send(READY)
    while True:
        try:
            data = connection.recv()
        except EOFError:
            return
        connection.send(prepared(data, preparation))


def prepared(data: bytes, preparation: Preparation) -> Prepared | Refusal:
    """What the model takes, of the content of a file."""
    try:
        if not preparation.videos:
            return _prepared(Source(SENT, data), preparation)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "film"  # PyAV looks at what is in it, not at its name
            path.write_bytes(data)
            return _prepared(Source(SENT, path), preparation)
    except DataError as error:
        return Refusal("picture", _in_words(error))
    except MemoryError:
        return Refusal("memory", NO_MEMORY)


def _prepared(source: Source, preparation: Preparation) -> Prepared:
    sample = preparation.sample(preparation.read(source))
    return Prepared(sample.image.numpy(), sample.size)


def _in_words(error: DataError) -> str:
    """Without the place, which is a file of the server."""
    return f"{error.what}; {error.remedy}" if error.remedy else error.what
