"""Draw docs/pictures: what the pages show, made by the project itself.

python docs/make_pictures.py                      # choose-a-model.png, from docs/benchmarks.md and the table of models
patchform demo detection
python docs/make_pictures.py runs/demo-detection  # and digits.png, what that demo found on pictures it had not seen
"""

import argparse
import sys
from pathlib import Path

import make_reference
from matplotlib.figure import Figure
from PIL import Image

FOLDER = Path(__file__).parent / "pictures"
SHOWN, SIDE, GAP = 4, 216, 8
"""Pictures of a demo, the side of each, and what is between them; pixels."""
BESIDE = {
    **{"pvt/v1_s": (-6, -12), "dual_vit/s": (-6, -13), "swin/t": (-12, 7), "twins/pcpvt_s": (-6, -13)},
    **{"parallel_vit/deit3_s": (-30, 7), "cross_vit/15": (-30, -13)},
}
"""Where the name of a point is, in points from it, where it would cover another."""


def choose_a_model() -> Figure:
    """Published accuracy against measured speed."""
    figure = Figure(figsize=(7, 4), dpi=110, layout="constrained")
    axes = figure.subplots()
    for one in make_reference.measured():
        if one.score is not None:
            axes.plot(one.images, one.score, "o", color="tab:blue")
            place = BESIDE.get(one.model, (6, -3))
            axes.annotate(one.model, (one.images, one.score), xytext=place, textcoords="offset points", fontsize=8)
    axes.set_xlabel("pictures a second, two cores, float32 (docs/benchmarks.md)")
    axes.set_ylabel("published top-1 on ImageNet-1k, %")
    axes.set_xlim(right=axes.get_xlim()[1] + 3)
    axes.grid(alpha=0.3)
    return figure


def sheet(demo: Path) -> Image.Image:
    """Predictions of a demo side by side."""
    drawn = [Image.open(path) for path in sorted((demo / "predictions").glob("*.png"))[:SHOWN]]
    page = Image.new("RGB", (SHOWN * SIDE + (SHOWN - 1) * GAP, SIDE), "white")
    for number, picture in enumerate(drawn):
        alone = picture.convert("RGB").crop((0, 0, picture.width, picture.width))  # the names of classes are below
        page.paste(alone.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (number * (SIDE + GAP), 0))
    return page


def main() -> int:
    """Draw, and say what."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("demo", nargs="?", type=Path, help="folder that `patchform demo detection` made")
    demo = parser.parse_args().demo
    FOLDER.mkdir(exist_ok=True)
    choose_a_model().savefig(FOLDER / "choose-a-model.png", metadata={"Software": None})
    if demo is not None:
        sheet(demo).save(FOLDER / "digits.png", optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
