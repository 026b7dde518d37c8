import argparse

import pytest

from patchform.commands import asking
from patchform.errors import UsageError
from patchform.inference import Scaled, Sliding


def way(*words):
    parser = argparse.ArgumentParser()
    asking.add_arguments(parser)
    return asking.way(parser.parse_args(words))


def test_words_become_ways_to_ask():
    assert way() is None
    assert way("--window", "512") == Sliding((512, 512), (342, 342))
    assert way("--window", "64", "--stride", "64") == Sliding((64, 64), (64, 64))
    assert way("--mirrored") == Scaled((1.0,), True)
    assert way("--scales", "0.5", "1") == Scaled((0.5, 1.0), False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--stride", "3"), "without --window"),
        (("--window", "8", "--stride", "9"), "do not cover"),
        (("--window", "0"), "do not cover"),
        (("--window", "8", "--mirrored"), "at once"),
        (("--scales", "0"), "a scale of 0"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, said):
    with pytest.raises(UsageError, match=said):
        way(*words)
