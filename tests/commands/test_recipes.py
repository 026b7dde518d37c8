import json
from dataclasses import asdict, replace

import pytest
import yaml

from patchform import cli, lookup, schema
from patchform.commands import recipes
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.settings import MOVED, Recipe


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
        ("optimizer: {lr: .inf}", "is inf"),
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


def test_every_setting_has_a_meaning_a_range_and_a_default():
    for field in schema.fields(Recipe()):
        assert field.meaning.endswith((".", "]")), field.name
        assert field.section, field.name
    text = " ".join(recipes.help_text().split())
    assert "a number in (0, 1000]; default: 0.001" in text
    assert "one of adamw, lamb, sgd; default: adamw" in text


@pytest.mark.parametrize("task", ["", *recipes.tasks(), "detection/detr_r50_coco"])
def test_help_shows_what_a_task_begins_with(task, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", *([task] if task else []), "--help"])
    text = capsys.readouterr().out
    for odd in ("Literal", "Union", "Annotated", "CONFIG", "typing", "None", "Optional"):
        assert odd not in text
    known = [line.strip() for line in text.splitlines() if line.startswith("  --") and "." in line.split()[0]]
    assert sorted(known) == sorted(f"--{name}" for name in recipes.names() if "." in name)
    recipe = recipes.resolve(task) if task else Recipe()
    flat = " ".join(text.split())
    for field in schema.fields(recipe):
        assert f"default: {schema.shown(field.value)}" in flat, field.name
    assert ("default: mask_rcnn" in flat) == (recipe.model.head == "mask_rcnn")


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
    assert larger.options == {"depth": 3}
    headed = recipes.resolve(
        recipes.resolve(file), {"model": {"head": "token_label", "head_options": {"dense": 1}}}
    ).model
    assert (headed.options, headed.head_options) == ({"patch": 8}, {"dense": 1})
    assert recipes.resolve(file, {"model": {"head": "linear"}}).model.head_options == {"dropout": 0.1}


EARLIER = (
    "data: {path: photos, image_size: [32, 48], resize: fit, crop_share: 0.9, interpolation: bilinear, channels: 1,"
    " bits: 16, mean: [0.4], std: [0.2], frames: 4, frame_step: 2, sampling: dense, workers: 2}\n"
)


def test_earlier_names_of_settings_are_read_everywhere(tmp_path):
    (tmp_path / "recipe.yaml").write_text(EARLIER)  # as in the folder of an earlier run
    wanted = Preprocessing(
        size=(32, 48), resize="fit", crop_share=0.9, interpolation="bilinear", channels=1, bits=16,
        mean=(0.4,), std=(0.2,), frames=4, frame_step=2, sampling="dense",
    )  # fmt: skip
    found = recipes.resolve(tmp_path)
    assert found.preprocessing == wanted
    assert (found.data.path, found.data.workers) == ("photos", 2)
    over = recipes.resolve(tmp_path, {"data": {"image_size": 64}, "preprocessing": {"channels": "3"}}).preprocessing
    assert over == replace(wanted, size=(64, 64), channels=3)
    flags = recipes.nested({"data.image_size": "[8, 9]", "preprocessing.std": "[1e-1]"})
    assert recipes.resolve(Recipe(), flags).preprocessing == Preprocessing(size=(8, 9), std=(0.1,))
    assert len(MOVED) == 11
    for old, new in MOVED.items():
        with pytest.raises(UsageError, match=f"{old} and {new} are the same setting; give {new} alone"):
            recipes.resolve(Recipe(), recipes.nested({old: "1", new: "1"}))


def test_earlier_words_of_settings_are_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {transfer: {head: new, patch: resample}}\n")
    found = recipes.resolve(tmp_path).model.transfer
    assert (found.head, found.patch) == ("reinit", "resample")
    assert recipes.resolve(tmp_path, {"model": {"transfer": {"head": "fill"}}}).model.transfer.head == "load"


def test_one_size_stands_for_both_sides_and_statistics_follow_the_channels():
    assert recipes.resolve(Recipe(), {"preprocessing": {"size": 64}}).preprocessing.size == (64, 64)
    grey = recipes.resolve(Recipe(), {"preprocessing": {"channels": 1}}).preprocessing
    assert (grey.mean, grey.resolved().mean, grey.resolved().std) == (None, (0.5,), (0.5,))
    assert Preprocessing().resolved().mean == (0.485, 0.456, 0.406)
    with pytest.raises(UsageError, match=r"size cannot be .64, 64, 64."):
        recipes.resolve(Recipe(), {"preprocessing": {"size": "[64, 64, 64]"}})


def test_a_recipe_that_is_written_is_read_again(tmp_path):
    made = recipes.resolve("detection/detr_r50_coco", {"name": "012", "model": {"options": {"dilated": 1}}})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(asdict(made)))))
    assert recipes.resolve(tmp_path) == made
