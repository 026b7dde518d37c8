"""Short forms of settings, alone and beside the long ones."""

import pytest

from patchform import cli
from patchform.commands import recipes, short_forms
from patchform.commands.short_forms import SHORT_FORMS
from patchform.errors import UsageError

TYPED = {
    "--data": ("my photos", "my photos"), "--from": ("own.pt", "own.pt"), "--model": ("swin/t", "swin/t"),
    "--size": ("320x480", "[320, 480]"), "--epochs": ("3", "3"), "--batch": ("8", "8"), "--lr": ("5e-4", "5e-4"),
    "--seed": ("7", "7"),
}  # fmt: skip


def settings(*words):
    typed, long = cli._take_settings(["train", "classification", *words])
    arguments = cli._parser(typed).parse_args(typed)
    arguments.settings = long
    return short_forms.settings(arguments)


@pytest.mark.parametrize("form", SHORT_FORMS, ids=lambda form: form.option)
def test_it_is_the_setting(form):
    assert form.setting in recipes.names()
    word, value = TYPED[form.option]
    assert settings(form.option, word) == {form.setting: value}
    assert settings(f"{form.option}={word}") == {form.setting: value}


def test_sizes_by_one_side_or_two():
    for word, size in {"320": (320, 320), "320x480": (320, 480), "[320, 480]": (320, 480)}.items():
        resolved = recipes.resolve("classification", recipes.nested(settings("--size", word)))
        assert resolved.preprocessing.size == size
    for word in ("x", "32x", "0x8", "big", "3.5"):
        with pytest.raises(UsageError, match="height x width"):
            settings("--size", word)


def test_both_ways_are_one_setting():
    assert settings("--lr", "1e-3", "--optimizer.lr", "0.001") == {"optimizer.lr": "0.001"}
    assert settings("--size", "320x320", "--preprocessing.size", "[320, 320]")["preprocessing.size"] == "[320, 320]"
    with pytest.raises(UsageError, match=r"--lr 1 beside --optimizer.lr 2, which it is short for; give one of them"):
        settings("--lr", "1", "--optimizer.lr", "2")
    with pytest.raises(UsageError, match="are the same setting"):
        recipes.resolve("classification", recipes.nested(settings("--size", "32", "--data.image_size", "64")))


def test_help_says_what_each_is_short_for(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for form in SHORT_FORMS:
        assert f"{form.meaning}: short for --{form.setting}" in shown
