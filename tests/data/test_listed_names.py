import unicodedata

import pytest

from patchform.data.listed_names import NearNames, exists, inside, is_file

NFC, NFD = (unicodedata.normalize(form, "caf\u00e9.jpg") for form in ("NFC", "NFD"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("./b/a.jpg", "b/a.jpg"),
        ("b\\a.jpg", "b/a.jpg"),
        (".\\b\\.\\a.jpg", "b/a.jpg"),
        ("HOME/a.jpg", "a.jpg"),
        ("HOME/b/../a.jpg", "a.jpg"),
        ("file://HOME/my%20photo.jpg", "my photo.jpg"),
        ("../train/a.jpg", "train/a.jpg"),  # of a list in HOME/lists
        ("../../a.jpg", None),
        ("HOME/../a.jpg", None),
        ("HOMEly/a.jpg", None),
        ("/etc/passwd", None),
        ("C:\\a.jpg", None),
        ("\\\\server\\a.jpg", None),
        ("http://x/a.jpg", None),
        ("file:///etc/passwd", None),
        ("HOME", None),
        (".", None),
        ("", None),
        ("/a\0.jpg", None),
    ],
)
def test_names_that_stay_in_the_set(tmp_path, name, expected):
    assert inside(name.replace("HOME", str(tmp_path)), tmp_path, tmp_path / "lists") == expected


def test_names_by_a_link_to_the_set(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert inside(f"{tmp_path}/real/a.jpg", tmp_path / "link") == "a.jpg"
    assert inside(f"{tmp_path}/link/a.jpg", tmp_path / "link") == "a.jpg"


def test_names_that_no_file_can_have(tmp_path):
    for name in ("x" * 5000, "a\0b", "x" * 300 + "/a"):
        assert not is_file(tmp_path / name)
        assert not exists(tmp_path / name)


@pytest.mark.parametrize(
    ("there", "listed", "words"),
    [
        ("my photo.jpg", "my%20photo.jpg", "without % codes"),
        ("my%3Aphoto.jpg", "my:photo.jpg", "with % codes"),
        (NFD, NFC, "in the other Unicode form of its letters"),
        (NFC, NFD, "in the other Unicode form of its letters"),
        ("a.jpg", "A.jpg", "in other case"),
        ("a.JPG", "a.jpg", "in other case"),
        ("a.png", "a.jpeg", "with another suffix"),
        ("a.png", "a", "with another suffix"),
        ("deep/a.jpg", "a.jpg", "in another folder"),
        ("a.jpg", "images\\a.jpg", "in another folder"),
        ("a.jpg", "C:\\mine\\a.jpg", "in another folder"),
        ("deep/A.PNG", "a.jpg", "in another folder and in other case and with another suffix"),
        (f"deep/{NFD}", NFC, "in another folder and in the other Unicode form of its letters"),
        (f"{NFD[:-4]}.png", NFC, "in the other Unicode form of its letters and with another suffix"),
        ("a.jpg", " a.jpg ", "without spaces around it"),
        ("my_photo.jpg", "my photo.jpg", "spelt otherwise"),
        ("photo.jpg", "1a2b3c4d-photo.jpg", "spelt otherwise"),
    ],
)
def test_near_names_are_offered(tmp_path, there, listed, words):
    file = tmp_path / there
    file.parent.mkdir(exist_ok=True)
    file.touch()
    (tmp_path / "other.jpg").touch()
    (tmp_path / "a.txt").touch()
    assert NearNames(tmp_path).offer(listed) == f'there is "{there}", {words}'


def test_the_nearest_is_offered_and_nothing_far(tmp_path):
    for name in ("a.jpg", "b/c.jpg", "d/c.jpg", "c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    near = NearNames(tmp_path)
    assert near.offer("C.JPG").startswith('there is "c.png"')
    (tmp_path / "c.png").unlink()
    assert NearNames(tmp_path).offer("c.jpg") == 'there is "b/c.jpg" and 1 more, in another folder'
    assert near.offer("frame_002.jpg") == near.offer("") == near.offer("x" * 5000) == ""
    assert NearNames(tmp_path / "none").offer("a.jpg") == ""
    assert NearNames(tmp_path, (".xml",)).offer("a.jpg") == ""
