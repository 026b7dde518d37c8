"""What holds for every format, found by look-up, and for one from a plug-in folder."""

import sys

import pytest
from bad_pictures import encode
from PIL import Image

from patchform import lookup
from patchform.data.dataset import formats, open_data, serves
from patchform.data.faults import Faults
from patchform.errors import DataError, UsageError
from patchform.records import Preprocessing
from patchform.settings import DataSettings

TINY = Preprocessing(size=(8, 8))
PLUGIN = '''
from patchform.data.formats.base import Format
from patchform.data.listing import Item, Listing


class Pairs(Format):
    """Names of classes before a dash: cat-1.png."""

    tasks = ("classification",)
    layout = "a folder of pictures whose names begin with their class"

    def recognises(self, path):
        return path.is_dir() and any("-" in file.name for file in path.glob("*.png"))

    def parts(self, path):
        return (path / "a", path / "b") if (path / "a").is_dir() else None

    def read(self, path, settings, classes, faults):
        files = sorted(path.glob("*.png"))
        names = classes or tuple(sorted({file.name.partition("-")[0] for file in files}))
        for file in files:
            if not file.stat().st_size:
                faults.add("picture-bad", file.name, "empty")
        items = tuple(Item(file, (names.index(file.name.partition("-")[0]),)) for file in files)
        return Listing(classes=names, items=items, root=path)
'''


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    folder = tmp_path / "mine"
    (folder / "data" / "formats").mkdir(parents=True)
    (folder / "data" / "formats" / "pairs.py").write_text(PLUGIN)
    monkeypatch.setattr(lookup, "_plugins", [])
    lookup._files.cache_clear()
    yield folder
    lookup._files.cache_clear()
    sys.modules.pop("patchform.data.formats.pairs", None)


def test_every_format_says_what_it_serves():
    for name, format_ in formats().items():
        assert format_.tasks, name
        assert format_.layout, name
        assert set(format_.tasks) <= set(lookup.names("tasks"))
        assert not vars(format_)  # no state
    assert set(formats("semantic_segmentation")) == {"coco_stuff", "mask_folder", "python_masks"}
    assert formats("no_such_task") == {}


def test_every_format_leaves_an_empty_folder_to_others(tmp_path):
    for name, format_ in formats().items():
        assert not format_.recognises(tmp_path), name
        assert format_.parts(tmp_path) is None, name


def test_a_format_of_a_plugin_folder(plugin, tmp_path):
    for part in "ab":
        (tmp_path / "data" / part).mkdir(parents=True)
        for name in ("cat-1", "cat-2", "dog-1"):
            (tmp_path / "data" / part / f"{name}.png").write_bytes(encode(Image.new("RGB", (8, 8)), "PNG"))
    settings = DataSettings(path=str(tmp_path / "data"))
    control = open_data(settings, seed=0, preprocessing=TINY)
    assert control.train.classes == ("a", "b")  # without it, class folders
    lookup.add_plugin(plugin)
    splits = open_data(settings, seed=0, preprocessing=TINY)
    assert splits.train.classes == splits.validation.classes == ("cat", "dog")
    assert (len(splits.train), len(splits.validation)) == (3, 3)
    assert serves(tmp_path / "data", "classification")
    (tmp_path / "data" / "a" / "dog-2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"1 pictures that cannot be used: dog-2.png \(empty\)"):
        open_data(settings, seed=0, preprocessing=TINY)
    faults = Faults()
    assert len(open_data(settings, seed=0, preprocessing=TINY, faults=faults).train) == 4
    assert faults.counts == {"picture-bad": 1}


def test_a_file_without_a_format_is_refused(plugin):
    (plugin / "data" / "formats" / "pairs.py").write_text("TASKS = ('classification',)\n")
    lookup.add_plugin(plugin)
    with pytest.raises(UsageError, match=r"0 public Format classes, expected one.*data/formats/pairs\.py"):
        formats()
