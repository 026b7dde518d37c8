"""Write docs/papers.md: one section a paper, made from the code itself.

python docs/make_papers.py            # writes; some minutes, as every variant is built and counted on no device
"""

from pathlib import Path

from patchform import lookup
from patchform.commands.models import CLASSES, models
from patchform.layers.patterns import Pattern
from patchform.model import build_backbone

GRID = (12, 12)
QUERY = (6, 7)


def drawing(pattern: Pattern) -> str:
    """What one query sees on a small grid, by the pattern's own definition."""
    seen = pattern.picture(GRID)[QUERY[0] * GRID[1] + QUERY[1]].view(GRID)
    rows = [
        " ".join("Q" if (y, x) == QUERY else "o" if seen[y, x] else "." for x in range(GRID[1])) for y in range(GRID[0])
    ]
    return "\n".join(rows)


def patterns(family: str) -> list[Pattern]:
    """The patterns of a family's smallest variant, each once."""
    found = [
        m.pattern
        for m in build_backbone(f"{family}/nano").modules()
        if isinstance(getattr(m, "pattern", None), Pattern)
    ]
    return list(dict.fromkeys(found))


def section(family: str) -> str:
    module = lookup.module("backbones", family)
    lines = [f"## {family}", "", "```text", (module.__doc__ or "").strip(), "```", ""]
    for pattern in patterns(family):
        lines += [f"`{pattern}`: what the cell Q sees", "", "```text", drawing(pattern), "```", ""]
    lines += ["| variant | input | parameters | multiply-adds |", "|---|--:|--:|--:|"]
    rows = models(f"{family}/*")
    for row in rows:
        size = row.name.partition("/")[2]
        lines.append(f"| {size} | {row.image_size} | {row.parameters:,} | {row.multiply_adds / 1e9:.3f} G |")
    published = [one for row in rows for one in row.published]
    if published:
        lines += ["", "| published | input | trained on | scores, % | source |", "|---|--:|---|---|---|"]
        for one in published:
            scores = ", ".join(f"{name} {score:g}" for name, score in one.scores.items())
            lines.append(f"| {one.variant} | {one.image_size} | {one.training} | {scores} | {one.source} |")
    known = lookup.published(family)
    if known.weights:
        lines += ["", "| weights | input | classes | about | licence |", "|---|--:|--:|--:|---|"]
        for row in known.weights:
            size = f"{row.preprocessing.size[0]} | {row.classes or '-'} | {row.megabytes} MB | {row.licence}"
            lines.append(f"| {family}/{row.variant}.{row.tag} | {size} |")
    return "\n".join([*lines, "", f"Layouts of published weights: {', '.join(known.layouts) or 'none'}.", ""])


def main() -> None:
    head = [
        "# Papers",
        "",
        "Made by `python docs/make_papers.py` from the code. Parameters and multiply-adds are counted with a linear",
        f"layer for {CLASSES} classes and one image (or clip) of the published size. Patterns are drawn on a grid of",
        f"{GRID[0]} x {GRID[1]} cells.",
        "Weights are not part of the project: a layout says how a published file is read, and a file that is named is",
        "fetched when you name it ([weights.md](weights.md)).",
        "",
    ]
    body = [section(family) for family in lookup.names("backbones")]
    (Path(__file__).parent / "papers.md").write_text("\n".join([*head, *body]))


if __name__ == "__main__":
    main()
