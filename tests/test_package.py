"""What is published: a source distribution and a wheel, made from the tree and installed where nothing else is."""

import email
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch

import patchform

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "patchform"
LEFT_OUT = (".pyc", ".pyo")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with both."""
    folder = tmp_path_factory.mktemp("made")
    command = [sys.executable, "-m", "hatchling", "build", "--directory", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def wheel(made):
    (file,) = made.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Python of an environment that has the wheel, and of all else what this one has."""
    home = tmp_path_factory.mktemp("clean") / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / ("Scripts" if os.name == "nt" else "bin") / Path(sys.executable).name
    find = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(run(python, "-c", find).strip())
    with zipfile.ZipFile(wheel) as archive:  # a wheel of Python alone is unpacked, no more
        archive.extractall(site)
    others = Path(torch.__file__).parent.parent
    (site / "others.pth").write_text(f"{others}\n")
    return python


def run(*words, **options):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, env=environment, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _number(version):
    return tuple(map(int, version.split(".")))


def test_both_hold_every_file_of_the_package(made, wheel):
    wanted = {
        path.relative_to(PACKAGE.parent).as_posix()
        for path in PACKAGE.rglob("*")
        if path.is_file() and path.suffix not in LEFT_OUT
    }
    assert {"patchform/py.typed", "patchform/model_table.json", "patchform/recipes/detection/small.yaml"} < wanted
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"patchform-{patchform.__version__}.")}
    assert names == wanted
    (source,) = made.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in wanted} < names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"} < names


def test_a_wheel_is_made_of_the_source_distribution_alone(made, wheel, tmp_path):
    (source,) = made.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        archive.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "--directory", str(tmp_path / "again")]
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(tmp_path / "again" / wheel.name) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {
            info.filename: info.CRC for info in other.infolist()
        }


def test_what_it_says_of_itself(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(archive.read(about))
    assert facts["Version"] == patchform.__version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert facts["License-File"] == "LICENSE"
    least, below = (bound.strip("<>=") for bound in sorted(facts["Requires-Python"].split(","), reverse=True))
    versions = [line.rpartition(" ")[2] for line in facts.get_all("Classifier") if "Python :: 3." in line]
    assert all(_number(least) <= _number(version) < _number(below) for version in versions)
    assert min(versions, key=_number) == least
    assert {"video", "hub", "export", "openvino", "demo"} <= set(facts.get_all("Provides-Extra"))
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert f"## [{patchform.__version__}]" in changes or "## [Unreleased]" in changes  # what is new is written down


def test_it_works_where_it_is_installed(installed, tmp_path):
    where = run(installed, "-c", "import patchform; print(patchform.__file__)", cwd=tmp_path)
    assert str(installed.parent.parent) in where
    assert run(installed, "-m", "patchform", "--version", cwd=tmp_path).split() == ["patchform", patchform.__version__]
    assert "vit/b16" in run(installed, "-m", "patchform", "models", "vit/*", cwd=tmp_path)
    assert "detection/small" in run(installed, "-m", "patchform", "recipes", "detection", cwd=tmp_path)
    work = (
        "import patchform as pf, torch\n"
        "model = pf.build_model('classification', backbone='swin/nano', head='linear', classes=['a', 'b'])\n"
        "print(sum(p.numel() for p in model.parameters()) > 0)"
    )
    assert run(installed, "-c", work, cwd=tmp_path).strip() == "True"
