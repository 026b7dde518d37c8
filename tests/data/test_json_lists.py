import json
import os

import pytest

from patchform.data import json_lists
from patchform.data.json_lists import elements
from patchform.errors import DataError


def read(tmp_path, text):
    file = tmp_path / "a.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return list(elements(file))


@pytest.mark.parametrize("indent", [None, 1])
def test_what_json_reads_element_by_element(tmp_path, indent):
    content = {"a": [1, {"b": [2, "]"]}, [3], None], "c": {"d": [4]}, "e": "text é", "f": [], "g": [[]], "h": -1.5e-3}
    assert read(tmp_path, json.dumps(content, indent=indent)) == [
        *(("a", element) for element in content["a"]),
        ("c", {"d": [4]}),
        ("e", "text é"),
        ("f", None),
        ("g", []),
        ("h", -0.0015),
    ]
    assert read(tmp_path, " {} \n") == []
    assert read(tmp_path, '{ "a" : [ 1 , 2 ] , "b" : [ ] }') == [("a", 1), ("a", 2), ("b", None)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_is_accepted(tmp_path, encoding):
    assert read(tmp_path, '{"a": "größe"}'.encode(encoding)) == [("a", "größe")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "cut off at line 1, column 1"),
        ('{"a": [1,\n 2', "cut off at line 2, column 3"),
        ('{"a": [1,\n', "cut off at line 2, column 1"),
        ('{"a": [{"b": "te', "cut off|not JSON"),
        ('{"a": [1,\n 2 3]}', r"not JSON \(expected , or \]\) at line 2, column 4"),
        ('{"a": [1,]}', "not JSON"),
        ('{"a" 1}', "not JSON .* at line 1, column 6"),
        ('{"a": 1,}', "not JSON"),
        ('{"a": 1} 2', "more after the end.* at line 1, column 10"),
        ("{a: 1}", "not JSON"),
        ('{1: "a"}', "not JSON"),
        ("[1]", "a list, where an object is expected"),
        ("<html>", "not JSON .* at line 1, column 1"),
        ('{"a": 1, "a": 2}', "'a' a second time"),
        ('{"a": [1,\n {"NaN": [3, NaN]}]}', "NaN is no number in JSON, at line 2, column 14"),
        ('{"a": -Infinity}', "-Infinity is no number in JSON, at line 1, column 7"),
        ('{"a": [' + "9" * 5000 + "]}", "numbers too long"),
        ('{"a": [' + "[" * 200000, "too deep|cut off"),
        (b'{"a": "\xff"}', r"not UTF-8 \(byte 7, line 1"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16 without a byte order mark"),
    ],
)
def test_what_is_no_json(tmp_path, text, reason):
    with pytest.raises(DataError, match=rf"(?:{reason}).* in .*a\.json"):
        read(tmp_path, text)


def test_every_cut_is_noticed(tmp_path):
    text = json.dumps({"a": [1, {"b": [2.5, "x"]}], "c": {"d": True}, "e": []})
    for end in range(len(text)):
        with pytest.raises(DataError):
            read(tmp_path, text[:end])


def test_too_large_is_said_before_reading(tmp_path):
    file = tmp_path / "a.json"
    file.touch()
    os.truncate(file, json_lists.MAX_BYTES + 1)  # a hole: no space is taken
    with pytest.raises(DataError, match=r"2000 MB of JSON \(limit 2000\)"):
        list(elements(file))
    with pytest.raises(DataError, match="cannot be read"):
        list(elements(tmp_path))
