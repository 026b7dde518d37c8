import pytest
from bad_pictures import class_folders

from patchform.data.formats.csv_list import CsvList
from patchform.errors import DataError
from patchform.settings import DataSettings

csv_list = CsvList()

SINGLE, MULTI = DataSettings(), DataSettings(labels="multi")


@pytest.fixture
def root(tmp_path):
    class_folders(tmp_path, {"a": 4})
    return tmp_path


def write(root, text, encoding="utf-8"):
    path = root / "list.csv"
    path.write_text(text, encoding=encoding, newline="")
    return path


def labels(listing):
    return [tuple(listing.classes[index] for index in item.classes) for item in listing.items]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_label_column(root, delimiter, encoding, ends):
    lines = ["Path,taken,Label", "a/000.png,2020,dog", 'a/001.png,2021,"größe"', "", "a/002.png,2021,dog"]
    path = write(root, ends.join(line.replace(",", delimiter) for line in lines) + ends, encoding)
    listing = csv_list.open(path, SINGLE, None)
    assert listing.classes == ("dog", "größe")
    assert labels(listing) == [("dog",), ("größe",), ("dog",)]
    assert listing.name(0) == "a/000.png"
    assert any("taken" in note for note in listing.notes)


def test_several_labels_in_one_column(root):
    path = write(root, "image,labels\na/000.png,x|y\na/001.png,y;z\na/002.png,\na/003.png,z|z\n")
    listing = csv_list.open(path, MULTI, None)
    assert labels(listing) == [("x", "y"), ("y", "z"), (), ("z",)]
    with pytest.raises(DataError, match=r"2 classes.*line 2"):
        csv_list.open(path, SINGLE, None)


def test_a_column_for_each_class(root):
    path = write(root, "image,zebra,ant\na/000.png,1,0\na/001.png,0,1\na/002.png,1,1\na/003.png,0,0\n")
    listing = csv_list.open(path, MULTI, None)
    assert listing.classes == ("zebra", "ant")
    assert labels(listing) == [("zebra",), ("ant",), ("zebra", "ant"), ()]
    with pytest.raises(DataError, match=r"line 4"):
        csv_list.open(path, SINGLE, None)


def test_given_classes_match_by_name(root):
    path = write(root, "image,label\na/000.png,b\na/001.png,a\n")
    listing = csv_list.open(path, SINGLE, ("b", "c", "a"))
    assert [item.classes for item in listing.items] == [(0,), (2,)]
    with pytest.raises(DataError, match='unknown class: "b"'):
        csv_list.open(path, SINGLE, ("a",))


def test_missing_files_are_counted_and_five_are_named(root):
    rows = "".join(f"no/{index}.png,x\n" for index in range(7))
    with pytest.raises(DataError, match=r"7 of 8 files are missing: .*no/4\.png\" and 2 more") as caught:
        csv_list.open(write(root, f"image,label\na/000.png,x\n{rows}"), SINGLE, None)
    assert "no/5.png" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("image,label\n", "empty"),
        ("what,label\na/000.png,x\n", "no column of paths"),
        ("image\na/000.png\n", "no column of classes"),
        ("image,label\na/000.png\n", "line 2"),
        ("image,label\na/000.png,x\na/001.png,\n", "no class.*line 3"),
        ("image,label\na/000.png,x\na/000.png,x\n", "twice.*lines 2 and 3"),
        ("image,x,y\na/000.png,1,2\n", '"2" in column "y".*line 2'),
        ("image,x,x\na/000.png,1,0\n", "two columns"),
        ("image,label\na/000.png,cat\na/001.png,Cat\n", "case"),
        ('image,label\na/000.png,"cat\n', "not a CSV"),
    ],
)
def test_faulty_lists_stop(root, text, reason):
    with pytest.raises(DataError, match=reason):
        csv_list.open(write(root, text), SINGLE, None)


def test_other_encodings_stop(root):
    with pytest.raises(DataError, match="UTF-8"):
        csv_list.open(write(root, "image,label\na/000.png,größe\n", "latin-1"), SINGLE, None)


def test_numbers_are_ordered_as_numbers(root):
    listing = csv_list.open(write(root, "image,label\na/000.png,10\na/001.png,9\n"), SINGLE, None)
    assert listing.classes == ("9", "10")
    assert any("9 -> 0, 10 -> 1" in note for note in listing.notes)
