"""`patchform serve`, but with a model that fails on some pictures: for `serving.py`."""

import io
import sys

from PIL import Image

OUT_OF_MEMORY, BROKEN = (13, 7), (7, 13)
"""(height, width) of pictures over which the model runs out of memory, or fails."""


def picture(size):
    """A PNG of (height, width)."""
    stream = io.BytesIO()
    Image.new("RGB", size[::-1], "orange").save(stream, "PNG")
    return stream.getvalue()


CULPRIT = tuple(picture(size) for size in (OUT_OF_MEMORY, BROKEN))


def main():
    """Run `patchform serve` with these words, and a model that fails on `CULPRIT`."""
    from patchform import cli
    from patchform.serving import model_process

    model_process.Opening = Faulty
    return cli.main(["serve", *sys.argv[1:]])


try:
    from patchform.serving.model_process import Opening
except ImportError:  # whoever wants the requests alone
    Opening = object


class Faulty(Opening):
    """Opens a model that fails on some pictures."""

    def predictor(self):
        predictor = super().predictor()
        decide = predictor.decide

        def fails(samples, thresholds=None):
            if any(sample.size == OUT_OF_MEMORY for sample in samples):
                raise MemoryError
            if any(sample.size == BROKEN for sample in samples):
                raise RuntimeError("a kernel failed")
            return decide(samples, thresholds)

        predictor.decide = fails
        return predictor


if __name__ == "__main__":
    sys.exit(main())
