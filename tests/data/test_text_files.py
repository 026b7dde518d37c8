import pytest

from patchform.data.text_files import beginning, read_text
from patchform.errors import DataError

TEXT = "größe, 猫\nline\n"


def written(tmp_path, data):
    (tmp_path / "a.txt").write_bytes(data)
    return tmp_path / "a.txt"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_that_says_what_it_is(tmp_path, encoding):
    file = written(tmp_path, TEXT.encode(encoding))
    assert read_text(file) == TEXT
    assert beginning(file, 1000) == TEXT


@pytest.mark.parametrize("order", ["le", "be"])
def test_marks_of_both_orders(tmp_path, order):
    assert read_text(written(tmp_path, ("\ufeff" + TEXT).encode(f"utf-16-{order}"))) == TEXT


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"a\nb\ngr\xf6\xdfe x", r'byte 6, line 3, Latin-1 or Windows-1252, as it seems: "größe"'),
        (b"\xe9t\xe9\n", 'line 1, Latin-1 or Windows-1252, as it seems: "été"'),
        ("a b".encode("utf-16-le"), "UTF-16 without a byte order mark"),
        ("\u732b, \u732b".encode("utf-16-be"), "UTF-16 without a byte order mark"),
        (b"\xff\xfe\x00", "-16, as its first bytes say, nor UTF-8"),
        (b"\x89PNG\r\n\x1a\n\xff", "no text"),
        (b"a\0b", "zeros from byte 1"),
    ],
)
def test_other_text_is_called_by_its_name(tmp_path, data, reason):
    with pytest.raises(DataError, match=rf"not UTF.*{reason}.*a\.txt; save it as UTF-8"):
        read_text(written(tmp_path, data))


def test_what_cannot_be_read(tmp_path):
    for file in (tmp_path, tmp_path / "none", tmp_path / ("x" * 5000)):
        with pytest.raises(DataError, match="cannot be read"):
            read_text(file)
        assert beginning(file, 10) == ""


def test_the_beginning_of_text_without_a_mark_can_be_recognised(tmp_path):
    assert beginning(written(tmp_path, '{"images": ['.encode("utf-16-le")), 24) == '{"images": ['
    assert beginning(written(tmp_path, "é".encode()[:1]), 24) == "\ufffd"
