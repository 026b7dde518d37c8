import shutil

import pytest
from bad_pictures import class_folders, tree_state

from patchform.data.formats.image_folder import ImageFolder
from patchform.errors import DataError
from patchform.settings import DataSettings

image_folder = ImageFolder()

PLAIN = DataSettings()


def names(listing):
    return [(listing.name(index), item.classes) for index, item in enumerate(listing.items)]


def test_folders_are_classes(tmp_path):
    class_folders(tmp_path, {"dog": 2, "cat": 1})
    (tmp_path / "dog" / "deep" / "er").mkdir(parents=True)
    shutil.copy(tmp_path / "dog" / "000.png", tmp_path / "dog" / "deep" / "er" / "X.JPG")
    before = tree_state(tmp_path)
    listing = image_folder.open(tmp_path, PLAIN, None)
    assert listing.classes == ("cat", "dog")
    assert names(listing) == [
        ("cat/000.png", (0,)),
        ("dog/000.png", (1,)),
        ("dog/001.png", (1,)),
        ("dog/deep/er/X.JPG", (1,)),
    ]
    assert listing.counts() == (1, 3)
    assert listing.notes == ()
    assert tree_state(tmp_path) == before


def test_hidden_and_system_folders_are_ignored_and_said_once(tmp_path):
    class_folders(tmp_path, {"cat": 1, "dog": 1, ".ipynb_checkpoints": 1, "__MACOSX": 1, "@eaDir": 1, ".git": 1})
    (tmp_path / "cat" / "._000.png").write_bytes(b"")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"")
    (tmp_path / "cat" / "notes.txt").write_bytes(b"")
    (tmp_path / "README").write_bytes(b"")
    listing = image_folder.open(tmp_path, PLAIN, None)
    assert listing.classes == ("cat", "dog")
    assert len(listing) == 2
    assert sum(".ipynb_checkpoints" in note for note in listing.notes) == 1
    assert any("'.txt': 1" in note for note in listing.notes)
    assert any("1 files beside" in note for note in listing.notes)


def test_numbers_are_ordered_as_numbers_and_the_mapping_is_said(tmp_path):
    class_folders(tmp_path, {str(number): 1 for number in range(11)})
    listing = image_folder.open(tmp_path, PLAIN, None)
    assert listing.classes == tuple(map(str, range(11)))
    assert any("10 -> 10" in note for note in listing.notes)


def test_an_empty_class_stops_unless_allowed(tmp_path):
    class_folders(tmp_path, {"cat": 1, "dog": 0})
    with pytest.raises(DataError, match="dog"):
        image_folder.open(tmp_path, PLAIN, None)
    allowed = image_folder.open(tmp_path, DataSettings(allow_empty_class=True), None)
    assert allowed.counts() == (1, 0)
    assert image_folder.open(tmp_path, PLAIN, ("cat", "dog")).counts() == (1, 0)
    shutil.rmtree(tmp_path / "cat")
    with pytest.raises(DataError, match="no picture"):
        image_folder.open(tmp_path, DataSettings(allow_empty_class=True), None)


@pytest.mark.parametrize("twin", ["Cat", "cat ", "c at"])
def test_names_equal_but_for_case_or_spaces_stop(tmp_path, twin):
    class_folders(tmp_path, {"cat": 1, twin: 1})
    with pytest.raises(DataError) as caught:
        image_folder.open(tmp_path, PLAIN, None)
    assert '"cat"' in caught.value.what
    assert f'"{twin}"' in caught.value.what


def test_given_classes_match_by_name(tmp_path):
    class_folders(tmp_path, {"cat": 1, "dog": 1})
    listing = image_folder.open(tmp_path, PLAIN, ("dog", "bird", "cat"))
    assert names(listing) == [("cat/000.png", (2,)), ("dog/000.png", (0,))]
    assert listing.classes == ("dog", "bird", "cat")
    with pytest.raises(DataError, match='1 unknown class: "dog"'):
        image_folder.open(tmp_path, PLAIN, ("cat",))


def test_link_loops_end(tmp_path):
    class_folders(tmp_path / "data", {"cat": 2})
    class_folders(tmp_path / "elsewhere", {"more": 3})
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "linked").symlink_to(tmp_path / "elsewhere" / "more")
    (tmp_path / "data" / "cat" / "self.jpg").symlink_to(tmp_path / "data" / "cat" / "self.jpg")
    listing = image_folder.open(tmp_path / "data", PLAIN, None)
    assert (tmp_path / "data" / "cat" / "self.jpg") in {item.path for item in listing.items}  # the check will refuse it
    found = {item.path.resolve() for item in listing.items if item.path.exists()}
    assert len(found) == 5
    assert listing.counts()[0] < 12


def test_only_folders_with_folders_are_recognised(tmp_path):
    assert not image_folder.recognises(tmp_path)
    (tmp_path / ".hidden").mkdir()
    assert not image_folder.recognises(tmp_path)
    (tmp_path / "cat").mkdir()
    assert image_folder.recognises(tmp_path)
