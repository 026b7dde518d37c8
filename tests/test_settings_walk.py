"""Every number that a user can set, walked with values that are none: it is right, or refused in one line.

Fields are read from the records and the parsers of the verbs, so a new one is walked by being there.
"""

import argparse
from typing import Annotated, Literal, get_args, get_origin

import pytest

from patchform import cli, lookup, schema
from patchform.commands import recipes
from patchform.errors import UsageError
from patchform.settings import Recipe

VALUES = ("-1", "0", "1000000000", "1e9", "nan", "inf", "-inf")
RIGHT = {
    # settings for which a value of the walk is right; of all others it is refused
    "-1": {"preprocessing.mean"},
    "0": {
        *("data.workers", "data.skip_bad", "data.ignore", "preprocessing.background", "preprocessing.frames"),
        *("preprocessing.mean", "model.drop_path", "augmentation.mosaic", "augmentation.copy_paste"),
        *("augmentation.crop_padding", "augmentation.flip", "augmentation.vertical_flip", "augmentation.magnitude"),
        *("augmentation.operations", "augmentation.color_jitter", "augmentation.erasing", "augmentation.mixup"),
        *("augmentation.mix_token", "loss.teacher.weight", "loss.teacher.own", "loss.teacher.image"),
        *("augmentation.cutmix", "augmentation.mix_probability", "augmentation.local_views", "augmentation.grey"),
        *("augmentation.blur", "augmentation.solarise", "loss.smoothing", "optimizer.weight_decay"),
        *("optimizer.betas", "optimizer.momentum", "optimizer.backbone_rate", "optimizer.clip"),
        *("schedule.warmup_epochs", "schedule.warmup_start", "schedule.floor", "schedule.power"),
        *("training.micro_batch", "training.pixels_at_once", "training.seed", "training.ema", "training.save_every"),
        *("training.patience", "training.threads", "model.frozen", "model.frozen_epochs"),
        "model.lora.dropout",
    },
    "1000000000": {"training.pixels_at_once", "training.seed", "training.save_every"},
}


def numeric(hint):
    """How many numbers a value of a type is made of: 0 for a number itself; None where it takes none."""
    of, inner = get_origin(hint), get_args(hint)
    if hint in (int, float):
        return 0
    if of is tuple:
        count = 1 if inner[-1] is Ellipsis else len(inner)
        return None if numeric(inner[0]) is None else count
    if of is list:
        return None if numeric(inner[0]) is None else 1
    if of is None or of in (dict, Literal):
        return None
    counts = [numeric(kind) for kind in (inner[:1] if of is Annotated else inner)]
    return next((count for count in counts if count is not None), None)


NUMBERS = {field.name: numeric(field.hint) for field in schema.fields(Recipe()) if numeric(field.hint) is not None}
TASKS = [name.removesuffix("/small") for name in recipes.packaged() if name.endswith("/small")]


AT_LEAST_ONE = {("serve", "--workers")}
"""Of a server: nothing is decoded where the door is."""


def test_the_walk_sees_every_number():
    assert len(NUMBERS) >= 60
    assert {"optimizer.lr", "preprocessing.size", "preprocessing.std", "loss.class_weights"} < set(NUMBERS)
    assert {name for names in RIGHT.values() for name in names} <= set(NUMBERS)
    assert sorted(TASKS) == lookup.names("tasks")


def refusal(base, name, value):
    """The line that refuses a setting, None where it is accepted."""
    try:
        recipes.resolve(base, recipes.nested({name: value}))
    except UsageError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", NUMBERS)
def test_a_setting_is_right_or_refused_in_one_line(name):
    base, count = recipes.resolve(TASKS[0]), NUMBERS[name]
    for value in VALUES:
        number = int(value) if value.lstrip("-").isdigit() else float(value)
        text = f"[{', '.join([value] * count)}]" if count else value
        for given in (text, [number] * count if count else number):  # by the command line, and by Python
            said = refusal(base, name, given)
            if name in RIGHT.get(value, ()):
                assert said is None
            else:
                assert said is not None, f"{given!r} was accepted"
                assert said.startswith(f"{name} ")
                assert "; it must be " in said or "; it is " in said
                assert "\n" not in said


def test_it_is_refused_before_data_are_read(tmp_path, capsys):
    for number, (name, count) in enumerate(NUMBERS.items()):
        value = f"[{', '.join(['nan'] * count)}]" if count else "nan"
        words = ["train", TASKS[number % len(TASKS)], "--data", str(tmp_path / "none"), "--runs", str(tmp_path)]
        assert cli.main([*words, f"--{name}", value]) == 2, name  # 3 would be that the data are not there
        assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# -------------------------------------------------------------------------------------------------------- other verbs


def flags(parser, path=()):
    """(verb ..., flag, action) of every option that takes a number."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, below in action.choices.items():
                yield from flags(below, (*path, name))
        elif action.type is not None:
            yield path, parser, action


FLAGS = list(flags(cli._parser()))
RIGHT_FLAGS = {
    "0": {"--workers", "--port", "--skip-bad", "--margin", "--threshold", "--allow", "--int8-snr"},
    "1000000000": {"--every", "--span"},
    "1e9": {"--every", "--span"},
}


def test_the_walk_sees_the_flags_of_every_verb():
    assert len(FLAGS) >= 25
    assert {path[0] for path, _, _ in FLAGS} >= {"evaluate", "predict", "probe", "features", "data", "weights"}
    assert not [action for _, _, action in FLAGS if action.type in (int, float)]  # none without a range


def flag_refusal(parser, action, value):
    try:
        parser._get_value(action, value)
    except argparse.ArgumentError as error:
        return str(error)
    return None


@pytest.mark.parametrize(("path", "parser", "action"), FLAGS, ids=lambda one: getattr(one, "dest", None))
def test_a_flag_is_right_or_refused_in_one_line(path, parser, action):
    name = action.option_strings[0]
    for value in VALUES:
        said = flag_refusal(parser, action, value)
        if name in RIGHT_FLAGS.get(value, ()) and (path[0], name) not in AT_LEAST_ONE:
            assert said is None
        else:
            assert said is not None, f"{' '.join(path)} {name} {value} was accepted"
            assert said.startswith(f"argument {name}: it ")
            assert "\n" not in said
