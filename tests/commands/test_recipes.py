import inspect

import pytest

from patchform import lookup
from patchform.commands import recipes
from patchform.errors import UsageError
from patchform.settings import Recipe


def test_a_task_names_its_default_and_settings_go_over_it():
    recipe = recipes.resolve("classification", {"optimizer": {"lr": "5e-4"}, "training": {"epochs": 3}})
    assert recipe.optimizer.lr == 5e-4
    assert recipe.training.epochs == 3
    assert recipe.optimizer.weight_decay == recipes.resolve("classification/small").optimizer.weight_decay
    assert recipes.resolve(recipe, {"name": "x"}).name == "x"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("optimizer: {lr: 1e-3, lr: 2e-3}", 'the key "lr" a second time'),
        ("a: &x 1\nb: *x", "anchor"),
        ("optimizer: !!python/object/apply:os.system ['true']", "a tag"),
        ("optimizer: {lrr: 1}", "did you mean optimizer.lr"),
        ("optimiser: {lr: 1}", "did you mean optimizer"),
        ("learning_rate: 1", "no such setting: learning_rate"),
        ("optimizer: {lr: fast}", "it is a number"),
        ("optimizer: {lr: .inf}", "cannot be inf"),
        ("training: {epochs: 1.5}", "it is a whole number"),
        ("optimizer: {name: adan}", "one of adamw, lamb, sgd"),
        ("- a\n- b", "no settings"),
        ("\tdata: 1", "not a recipe"),
        ("data: " + "[" * 30 + "]" * 30, "levels"),
        ("data: 5", "data is a section"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(text, message, tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        recipes.resolve(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_numbers_are_read_as_people_write_them(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("optimizer: {lr: 1e-3}\nname: '012'\ntraining: {epochs: 7}\n")
    recipe = recipes.resolve(file)
    assert (recipe.optimizer.lr, recipe.name, recipe.training.epochs) == (1e-3, "012", 7)


def test_every_setting_has_a_meaning():
    text = recipes.help_text()
    for name, _ in recipes.names():
        assert f"--{name} " in text or f"--{name}\n" in text, name
    assert inspect.getdoc(Recipe)


def test_a_task_is_any_that_there_is():
    for name in lookup.names("tasks"):
        assert recipes.resolve(Recipe(), {"task": name}).task == name
    with pytest.raises(UsageError, match=r'no task "clasification".*did you mean "classification"'):
        recipes.resolve(Recipe(), {"task": "clasification"})


def test_a_large_file_is_not_read(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text("#" * 200_000)
    with pytest.raises(UsageError, match="bytes"):
        recipes.resolve(file)


def test_options_go_with_the_backbone_and_the_head_that_they_were_made_for(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(
        "model: {backbone: vit/s16, options: {patch: 8}, head: linear, head_options: {dropout: 0.1}, drop_path: 0.2}\n"
    )
    other = recipes.resolve(file, {"model": {"backbone": "swin/t"}}).model
    assert (other.options, other.head_options, other.drop_path) == ({}, {"dropout": 0.1}, 0.2)
    larger = recipes.resolve(file, {"model": {"backbone": "vit/b16", "options": {"depth": 3}}}).model
    assert larger.options == {"patch": 8, "depth": 3}
    headed = recipes.resolve(
        recipes.resolve(file), {"model": {"head": "token_label", "head_options": {"dense": 1}}}
    ).model
    assert (headed.options, headed.head_options) == ({"patch": 8}, {"dense": 1})
    assert recipes.resolve(file, {"model": {"head": "linear"}}).model.head_options == {"dropout": 0.1}
