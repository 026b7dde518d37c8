"""The notebooks run from top to bottom, and each cell shows what it says."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAMES = ("photos", "masks", "boxes", "films", "looking_inside")


def cells(path):
    """(markdown or code, text) of a file in jupytext's percent format."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# %%"):
            found.append(("markdown" if line.endswith("[markdown]") else "code", []))
        elif found:
            found[-1][1].append(line)
    return [(kind, "\n".join(lines)) for kind, lines in found]


def shown(path):
    """What the last expression of each cell of code is, None without one; and the names at the end."""
    names, values = {"__name__": path.stem}, []
    for kind, text in cells(path):
        if kind == "code":
            tree = ast.parse(text, str(path))
            last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
            exec(compile(tree, str(path), "exec"), names)
            values.append(None if last is None else eval(compile(ast.Expression(last.value), str(path), "eval"), names))
    return values, names


def telling(value):
    """Whether a notebook shows something of a value."""
    if any(hasattr(value, f"_repr_{kind}_") for kind in ("html", "png")):
        html = value._repr_html_() if hasattr(value, "_repr_html_") else "<img"
        return any(part in html for part in ("<img", "<svg", "<table")) and "<script" not in html
    return " object at 0x" not in repr(value) and "tensor(" not in repr(value)


def test_every_notebook_is_run_here():
    assert sorted(path.stem for path in (ROOT / "notebooks").glob("*.py")) == sorted(NAMES)
    for name in NAMES:
        head = (ROOT / "notebooks" / f"{name}.py").read_text(encoding="utf-8")
        assert "format_name: percent" in head
        assert f"jupytext --to notebook {name}.py" in head
        assert cells(ROOT / "notebooks" / f"{name}.py")[0][0] == "markdown"


EXPECTED = {  # of what was reached: 0.83, 0.75, 0.7, 1, 0.8
    "photos": lambda names: names["scores"].best > 0.75,
    "masks": lambda names: names["scores"].best > 0.65,
    "boxes": lambda names: names["scores"].numbers["ap50"] > 0.3,
    "films": lambda names: names["scores"].best > 0.6,
    "looking_inside": lambda names: (names["names"][names["near"][:, 1:]] == names["names"][:, None]).mean() > 0.6,
}


SLOW = ("masks", "boxes", "films")  # ten seconds of a core and more, each


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in NAMES])
def test_a_notebook(name):
    values, names = shown(ROOT / "notebooks" / f"{name}.py")
    for number, value in enumerate(values):
        assert value is not None, f"cell {number} shows nothing"
        assert telling(value), f"cell {number} shows {value!r:.200}"
    assert EXPECTED[name](names)
