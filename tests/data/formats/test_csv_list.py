import pytest
from bad_pictures import class_folders

from patchform.data.dataset import formats, open_data, open_evaluation
from patchform.data.formats.csv_list import CsvList
from patchform.errors import DataError
from patchform.records import Preprocessing
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


def test_other_encodings_are_read_where_they_say_so_or_stop(root):
    listing = csv_list.open(write(root, "image,label\na/000.png,größe\n", "utf-16"), SINGLE, None)
    assert listing.classes == ("größe",)
    with pytest.raises(DataError, match=r"not UTF-8 .*Latin-1.*größe"):
        csv_list.open(write(root, "image,label\na/000.png,größe\n", "latin-1"), SINGLE, None)


def test_numbers_are_ordered_as_numbers(root):
    listing = csv_list.open(write(root, "image,label\na/000.png,10\na/001.png,9\n"), SINGLE, None)
    assert listing.classes == ("9", "10")
    assert any("9 -> 0, 10 -> 1" in note for note in listing.notes)


def parts_of(path, **settings):
    train, validation, notes = open_data(
        DataSettings(path=str(path), **settings), seed=0, preprocessing=Preprocessing(size=(8, 8))
    )
    return [[item.path.stem for item in part.items] for part in (train, validation)], notes


ROWS = ("a/000.png,x", "a/001.png,y", "a/002.png,x", "a/003.png,y")


@pytest.mark.parametrize(
    ("column", "words", "expected"),
    [
        ("split", "train train val test", [["000", "001"], ["002"]]),
        ("Subset", "Train train TEST test", [["000", "001"], ["002", "003"]]),
        ("partition", "training training dev test", [["000", "001"], ["002"]]),
        ("part", "valid train train valid", [["001", "002"], ["000", "003"]]),
    ],
)
def test_a_column_tells_the_parts(root, column, words, expected):
    lines = [f"{row},{word}" for row, word in zip(ROWS, words.split(), strict=True)]
    path = write(root, "\n".join([f"image,label,{column}", *lines]))
    parts, notes = parts_of(path)
    assert parts == expected
    assert any(f'of column "{column}" 2 rows' in note for note in notes)
    held_out = open_evaluation(path, DataSettings(), ("x", "y"))
    assert [item.path.stem for item in held_out.items] == expected[1]
    assert not any("ignored" in note for note in notes)


def test_a_column_of_parts_beside_a_column_for_each_class(root):
    path = write(root, "image,x,split,y\na/000.png,1,train,0\na/001.png,0,train,1\na/002.png,1,val,0\n")
    parts, _ = parts_of(path)
    assert parts == [["000", "001"], ["002"]]
    assert csv_list.open(path, SINGLE, None).classes == ("x", "y")


def test_columns_that_tell_no_parts(root):
    path = write(root, "image,label,split\na/000.png,x,0\na/001.png,y,1\na/002.png,x,2\na/003.png,y,3\n")
    assert csv_list.parts(path) is None
    assert any('ignored columns: "split"' in note for note in csv_list.open(path, SINGLE, None).notes)
    path = write(root, "image,label,split\na/000.png,x,train\na/001.png,y,extra\na/002.png,x,val\n")
    with pytest.raises(DataError, match=r'"extra" in column "split".*line 3; write train, val or test'):
        parts_of(path)
    path = write(root, "image,label,split\n" + "".join(f"{row},train\n" for row in ROWS))
    assert sorted(map(len, parts_of(path)[0])) == [2, 2]  # held out, as without the column


def test_slashes_of_either_kind(root):
    path = write(root, "image,label\na\\000.png,x\n.\\a\\001.png,y\n")
    assert [item.path.name for item in csv_list.open(path, SINGLE, None).items] == ["000.png", "001.png"]
    with pytest.raises(DataError, match=r"a/000\.png\" is listed twice"):
        csv_list.open(write(root, "image,label\na\\000.png,x\na/000.png,y\n"), SINGLE, None)


def test_near_names_are_offered(root):
    with pytest.raises(
        DataError, match=r'1 of 1 files are missing: .*; for the first, there is "a/000.png", in other case'
    ):
        csv_list.open(write(root, "image,label\nA/000.PNG,x\n"), SINGLE, None)


@pytest.mark.parametrize("task", ["classification", "video_classification"])
def test_names_that_no_file_can_have(root, task):
    path = write(root, f"image,label\n{'x' * 5000}.jpg,x\n{'y' * 5000},x\n")
    with pytest.raises(DataError, match="2 of 2 files are missing") as caught:
        formats(task)["csv_list" if task == "classification" else "csv_videos"].open(path, SINGLE, None)
    assert len(str(caught.value)) < 1000
    with pytest.raises(DataError, match="not a CSV list"):
        csv_list.open(write(root, f"image,label,{'x' * 200_000}\na/000.png,x,1\n"), SINGLE, None)


def test_the_separator_that_a_spreadsheet_writes_and_lines_in_fields(root):
    path = write(root, 'sep=;\r\nimage;label;text\r\na/000.png;x;"two\r\nlines, one text"\r\na/001.png;y;\r\n')
    assert labels(csv_list.open(path, SINGLE, None)) == [("x",), ("y",)]
    with pytest.raises(DataError, match="line 5"):
        csv_list.open(write(root, 'sep=,\nimage,label\na/000.png,"x\ny"\na/001.png\n'), SINGLE, None)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a/000.png,x\na/001.png,y\n", "the first line is a row"),
        ("name,label\na/000.png,x\n", 'no column of paths among "name", "label"'),
        ("image,label,xmin,ymin,xmax,ymax\na/000.png,x,1,1,2,2\na/000.png,x,3,1,4,2\n", "a table of boxes"),
    ],
)
def test_other_tables(root, text, reason):
    with pytest.raises(DataError, match=reason):
        csv_list.open(write(root, text), SINGLE, None)


def test_regions_of_interest_of_labelled_pictures_are_a_note(root):
    path = write(root, "image,label,x1,y1,x2,y2\na/000.png,x,1,1,2,2\na/001.png,y,3,1,4,2\n")
    listing = csv_list.open(path, SINGLE, None)
    assert labels(listing) == [("x",), ("y",)]
    assert any("may be a table of boxes" in note for note in listing.notes)
