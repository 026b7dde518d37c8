import pytest

from patchform.data.faults import KEPT, KINDS, Fault, Faults
from patchform.errors import DataError


def test_every_kind_says_what_it_is_and_what_to_do():
    for kind, about in KINDS.items():
        assert kind == kind.lower()
        assert " " not in kind
        assert about.what
        assert about.remedy


def test_nothing_is_nothing():
    faults = Faults()
    faults.refuse("here")
    assert (list(faults), faults.fatal, faults.notes()) == ([], 0, ())


def test_one_kind_is_told_with_its_first_five_and_its_remedy():
    faults = Faults()
    for index in range(7):
        faults.add("class-unknown", f"{index}.jpg", f"class {index}")
    with pytest.raises(DataError) as caught:
        faults.refuse("a.json")
    assert str(caught.value) == (
        "7 objects of an unknown class: 0.jpg (class 0); 1.jpg (class 1); 2.jpg (class 2); 3.jpg (class 3); "
        "4.jpg (class 4); ... in a.json; add the class to the list, or remove them"
    )


def test_what_is_mended_is_noted_and_stops_nothing():
    faults = Faults()
    faults.add("box-empty", "a.jpg, annotation 3")
    faults.add("box-clipped", "a.jpg, annotation 4", "x1 -2")
    faults.refuse("a.json")
    assert faults.fatal == 0
    assert faults.notes() == (
        "1 boxes without a width or height, left out: a.jpg, annotation 3",
        "1 boxes partly outside their picture, cut off at the edge: a.jpg, annotation 4 (x1 -2)",
    )


def test_all_are_counted_some_are_kept_in_order():
    faults = Faults()
    for index in range(KEPT + 5):
        faults.add("box-bad", str(index))
    faults.extend([Fault("picture-missing", "b.jpg", "")])
    kept = list(faults)
    assert (faults.fatal, len(kept)) == (KEPT + 6, KEPT + 1)
    assert kept[0] == Fault("picture-missing", "b.jpg", "", fatal=True)
    with pytest.raises(KeyError):
        faults.add("no-such-kind", "here")
