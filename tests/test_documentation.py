"""What the documents show is run, or read by the program itself as far as it goes without training."""

import importlib.util
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import patchform
from patchform import cli
from patchform.commands import recipes, train
from patchform.errors import PatchformError, UsageError
from patchform.settings import Recipe
from patchform.training.preparation import refuse_nonsense
from patchform.training.recipe_files import MOVED

ROOT = Path(__file__).parent.parent
PAGES = (*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")))
FIRST = ROOT / "docs" / "start.md"
"""Its blocks train the run that others use."""
OTHER_PROGRAMS = {"make", "pip"}
EXECUTED = {"models", "recipes", "runs", "completion"}
"""Verbs that are quick, and answer without data."""
RUNS = ("cells", "outlines", "streets", "gestures", "looked", "better")
"""Runs that pages go on with: here they are the first one."""
PLACES = ("cells", "scenes", "clips", "labelled", "others", "scans", "coco")
FILES = {
    "cells/data.yaml": "",
    "list.csv": "",
    "my-recipe.yaml": "task: classification\n",
    "checkpoint.safetensors": "",
}
SOUGHT = "checkpoint.safetensors"
"""Whose backbone would be looked for among all, which takes ten seconds: here it is named."""
PLACEHOLDER = re.compile(r"\b[A-Z][A-Z_]+\b|\.\.\.")
SECTIONS = sorted({name.partition(".")[0] for name in recipes.names() if "." in name})
SECTION = re.compile(rf"(?:--)?((?:{'|'.join(SECTIONS)})\.\S+)(?: (.+))?")
OPTIONS = ("model.options.", "model.head_options.")
NO_SETTINGS = re.compile(r"[(]|\.(json|safetensors|yaml|onnx|pt2|xml|data|pth|py|md)\b")
"""Names of files that begin as a setting does."""
NOT_GUIDES = ("house", "stack", "data-formats", "CHANGELOG", "add-a-")
"""Beginnings of pages that name rooms of the code, which begin as settings do."""


# ------------------------------------------------------------------------------------------------- what is in the pages


def blocks(page, language):
    """Code blocks of a page; those that are not run say why in a comment above."""
    text = page.read_text(encoding="utf-8")
    for match in re.finditer(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        why = re.search(r"<!-- not run: (.+?) -->\s*\Z", text[: match.start()])
        if why is None:
            yield match[1]


def commands(page):
    """Lines of shells, as words, without what is said of them."""
    for block in blocks(page, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def spans(page):
    """Code within the text of a page."""
    prose = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    return list(dict.fromkeys(re.findall(r"`([^`\n]+)`", prose)))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder as the pages imagine it, in which their Python has run."""
    folder = tmp_path_factory.mktemp("documents")
    for number in range(16):
        for place in ("photos", "other-photos"):
            path = folder / place / ("cat", "dog")[number % 2] / f"{number // 2 + 1}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (15 * number, 90, 255 - 15 * number)).save(path)
    for place in PLACES:
        (folder / place).mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        patched.chdir(folder)
        for block in blocks(FIRST, "python"):
            exec(compile(block, FIRST.name, "exec"), {"__name__": "page"})
    for name in RUNS:
        shutil.copytree(folder / "runs/first", folder / "runs" / name)
    return folder


@pytest.fixture
def in_folder(here, monkeypatch):
    """Here, where training stops before it trains."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(train, "train", trained)
    monkeypatch.setattr(train, "plan", planned)
    monkeypatch.setattr(train, "_say_end", lambda *arguments, **options: None)
    return here


def trained(recipe, *, resume, time, page, **settings):
    """All that `train` does before it opens the data."""
    if resume:
        recipe, settings = train._resumed(recipe, settings, time)
    refuse_nonsense(recipes.resolve(recipe, settings))


def planned(recipe, *, time, progress, **settings):
    """Likewise of a plan."""
    refuse_nonsense(recipes.resolve(recipe, settings))
    return SimpleNamespace(ways=(), device="cpu", room=0, held=SimpleNamespace(_asdict=dict), notes=(), best=None)


def checked(words):
    """Read a command line as the program does; raises PatchformError where it refuses."""
    if words[0] == "torchrun":
        words = words[words.index("patchform") :]
    if words[0] != "patchform":
        assert words[0] in OTHER_PROGRAMS, words
        return
    typed, settings = cli._take_settings(
        [*words[1:], *["--model", "vit/nano"] * (SOUGHT in words and "train" in words)]
    )
    if "--help" in typed:
        assert cli._parser(typed).parse_known_args([word for word in typed if word != "--help"])
        return
    arguments = cli._parser(typed).parse_args(typed)
    if not settings.keys() <= set(recipes.names()):
        recipes.resolve(Recipe(), recipes.nested(settings))
    if arguments.verb in EXECUTED or words[1:3] == ["weights", "list"]:
        assert cli.main(words[1:]) == 0
    if arguments.verb == "train":
        arguments.settings = settings
        if arguments.name is not None and not arguments.resume:
            arguments.name += "-anew"
        train.run(arguments)


# --------------------------------------------------------------------------------------------------------------- tests


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_pages_are_understood(page, in_folder, capsys):
    for words in commands(page):
        try:
            checked(words)
        except (PatchformError, SystemExit) as error:
            pytest.fail(f"{page.name}: {shlex.join(words)}: {error}")


@pytest.mark.parametrize("page", [page for page in PAGES if page.stem != "CHANGELOG"], ids=lambda page: page.stem)
def test_commands_and_settings_in_the_text_are_known(page, in_folder, capsys):
    for span in spans(page):
        if span.startswith(("patchform ", "torchrun ")) and not PLACEHOLDER.search(span):
            try:
                checked(shlex.split(span))
            except UsageError as error:
                if "required" not in error.what:  # such as `patchform data`, which is no whole line
                    raise
        elif (setting := setting_in(page, span)) is not None:
            known_setting(*setting)
        for name in re.findall(r"\bpf\.([A-Za-z_]+)", span):
            assert name in patchform.__all__, (page.name, span)


def setting_in(page, span):
    """Name and value of a setting that code in the text is; None where it is something else."""
    if page.stem.startswith(NOT_GUIDES) or NO_SETTINGS.search(span):
        return None
    match = SECTION.fullmatch(span)
    return match and (match[1].rstrip("*:."), match[2])


def known_setting(name, value):
    """Raise where there is no such setting, section or option, or it cannot have such a value."""
    names = (*recipes.names(), *MOVED)
    assert any(f"{known}.".startswith(f"{name}.") for known in names) or name.startswith(OPTIONS), name
    if value is not None and not PLACEHOLDER.search(value) and name in recipes.names():
        recipes.resolve("classification/small", recipes.nested({name: " ".join(shlex.split(value))}))


@pytest.mark.parametrize(
    "line",
    [
        "patchform train clasification --data photos/",
        "patchform train classification --data fotos/",
        "patchform train classification/small --data photos/ --optimizer.lrr 1",
        "patchform train classification/small --data photos/ --augmentation.views 2",
        "patchform train classification --data photos/ --from vit/dinov2_reg_s14.lvd142",
        "patchform evaluate runs/first --imgsz 3",
        "patchform models resnet50",
        "patchform data check photos/ --data.zzero ignore",
        "torchrun --nproc-per-node 8 -m patchform trian classification/small --data photos/",
    ],
)
def test_a_wrong_line_would_be_found(line, in_folder):
    with pytest.raises((PatchformError, AssertionError)):
        checked(shlex.split(line))


@pytest.mark.parametrize(("name", "value"), [("optimizer.lrr", None), ("augmentation.policy", "rand"), ("loss.x", "1")])
def test_a_wrong_setting_would_be_found(name, value):
    with pytest.raises((PatchformError, AssertionError)):
        known_setting(name, value)


@pytest.mark.parametrize("page", [page for page in PAGES if page != FIRST], ids=lambda page: page.stem)
def test_python_in_the_pages_runs(page, in_folder, monkeypatch):
    monkeypatch.undo()  # what is shown in Python may train
    monkeypatch.chdir(in_folder)
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), {"__name__": "page"})


def test_the_first_page_trains_judges_and_predicts(here):
    assert (here / "runs/first/report.html").is_file()
    assert (here / "scores.csv").read_text().count("\n") > 2
    assert (here / "runs/mine/model.json").is_file()


def test_links_in_the_documents_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.fixture(scope="module")
def make_reference():
    """The script that makes pages."""
    spec = importlib.util.spec_from_file_location("make_reference", ROOT / "docs" / "make_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_that_are_made_are_what_the_code_says(make_reference):
    assert make_reference.differing() == [], "python docs/make_reference.py writes them"


def test_every_setting_verb_and_format_has_its_place(make_reference):
    settings = (ROOT / "docs/settings.md").read_text()
    assert [name for name in recipes.names() if f"* **`{name}`**" not in settings] == []
    command_line = (ROOT / "docs/command-line.md").read_text()
    assert [verb for verb in cli.VERBS if f"\n## {verb}\n" not in command_line] == []
    told = {name for layout in make_reference.LAYOUTS for name in layout.formats}
    assert told == set(patchform.lookup.names("data/formats"))


def test_every_public_name_is_on_the_page_of_python():
    page = (ROOT / "docs/python.md").read_text()
    assert [name for name in patchform.__all__ if f"patchform.{name}" not in page] == []


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_examples_run(path, monkeypatch, capsys):
    assert len(path.read_text().splitlines()) < 40
    monkeypatch.setattr("sys.argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    assert capsys.readouterr().out


def test_the_site_is_built_without_a_warning_and_fetches_nothing(tmp_path):
    missing = [name for name in ("sphinx", "myst_parser", "furo") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed: pip install '.[docs]'")
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        str(ROOT / "docs"),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    for page in tmp_path.glob("*.html"):
        for tag in re.findall(r"<(?:script|img|link|iframe)\b[^>]*>", page.read_text(encoding="utf-8")):
            assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", tag), (page.name, tag)
    for style in tmp_path.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(?:https?:)?//|@import", style.read_text(encoding="utf-8")), style.name
