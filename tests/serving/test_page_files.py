"""The files of the page, without a browser."""

import re
from pathlib import Path

import pytest

app = pytest.importorskip("patchform.serving.app", reason="the extra serve is not installed")
guard = pytest.importorskip("patchform.serving.guard")

PAGE = Path(app.__file__).parent / "page"


def test_all_scripts_are_served_and_stay_small():
    files = {path.name for path in PAGE.iterdir()}
    assert files == {name for name, _ in app.PAGE.values()}
    assert set(app.PAGE) <= guard.OPEN
    for path in PAGE.iterdir():
        lines = path.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 450, path.name
        assert max(map(len, lines)) <= 120, path.name


def test_scripts_are_modules_of_their_own():
    html = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)|https?:", html)
    for path in PAGE.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|https?:", text), (
            path.name
        )
        for name in re.findall(r'from "\./(\w+)\.js"', text):
            assert name in guard.MODULES
