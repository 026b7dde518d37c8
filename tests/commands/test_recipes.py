import json
from dataclasses import asdict, replace

import pytest
import torch
import yaml

from patchform import cli, lookup, schema
from patchform.commands import recipes
from patchform.descriptions import Preprocessing
from patchform.errors import UsageError
from patchform.model import build_backbone
from patchform.settings import Recipe
from patchform.training import preparation
from patchform.training.recipe_files import MOVED


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
        ("optimizer: {name: adan}", 'no optimizer "adan"; did you mean "adamw"?'),
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
    assert "one of adamw, lamb, sgd or text; default: adamw" in text


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
    assert len(MOVED) == 12
    for old, new in MOVED.items():
        with pytest.raises(UsageError, match=f"{old} and {new} are the same setting; give {new} alone"):
            recipes.resolve(Recipe(), recipes.nested({old: "1", new: "1"}))


def test_earlier_words_of_settings_are_read(tmp_path):
    (tmp_path / "recipe.yaml").write_text("model: {transfer: {head: new, patch: resample}}\n")
    found = recipes.resolve(tmp_path).model.transfer
    assert (found.head, found.patch) == ("reinit", "resample")
    assert recipes.resolve(tmp_path, {"model": {"transfer": {"head": "fill"}}}).model.transfer.head == "load"
    for word, loggers in ((True, ("tensorboard",)), ("false", ()), ("True", ("tensorboard",))):
        assert recipes.resolve(tmp_path, {"training": {"tensorboard": word}}).training.loggers == loggers


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


# ------------------------------------------------------------------------------- the backbone that is named is built


def sized():
    """(recipe, variant) of every packaged recipe with options of its own, and some other variants of the family."""
    for name in recipes.packaged():
        model = recipes.resolve(name).model
        family, _, size = model.backbone.partition("/")
        if model.options:
            others = [row for row in lookup.module("backbones", family).VARIANTS if row != size]
            yield from ((name, f"{family}/{row}") for row in {others[0], others[len(others) // 2], others[-1]})


def test_no_recipe_keeps_an_option_that_another_variant_states_itself():
    cases = list(sized())
    assert len({name for name, _ in cases}) > 15
    for name, backbone in cases:
        recipe, origin = recipes.traced(name, {"model": {"backbone": backbone}})
        before, left = recipes.resolve(name).model.options, set(recipe.model.options)
        assert not left & set(lookup.backbone(backbone)[1].options), (name, backbone)
        assert left <= {"position", "maps_from", "image_size"}, (name, backbone)
        for option, value in before.items():  # each is said, whatever became of it
            words = f"{option} {schema.shown(value)}"
            assert sum(words in note and ("go with it" in note or "stays" in note) for note in origin.notes) == 1


NAMED = [
    ("classification", "vit/b16", 85.8),
    ("classification/digits", "vit/s16", 21.7),
    ("detection", "pvt/v2_b0", 3.4),
    ("detection/digits", "pvt/v1_ti", 12.7),
    ("instance_segmentation", "swin/t", 27.5),
    ("semantic_segmentation", "pvt/v2_b1", 13.5),
    ("semantic_segmentation/digits", "twins/svt_s", 23.5),
    ("pretraining", "vit/b16", 85.8),
    ("pretraining/small_dino", "vit/s16", 21.7),
    ("video_classification", "vivit/b16x2", 88.6),
    ("video_classification/digits", "vivit/b16x2_fe", 114.3),
]


@pytest.mark.parametrize(("name", "backbone", "millions"), NAMED)
def test_what_is_named_is_built(name, backbone, millions):
    options = recipes.resolve(name, {"model": {"backbone": backbone}}).model.options
    with torch.device("meta"):
        built, named = (build_backbone(backbone, **more) for more in (options, {}))
    size, wanted = (sum(parameter.numel() for parameter in each.parameters()) for each in (built, named))
    assert size == wanted
    assert size / 1e6 == pytest.approx(millions, abs=0.5)


OWN = "model: {backbone: vit/s16, options: {patch: 8, mlp_ratio: 2.0, position: sincos_2d}, head: linear}\n"


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ({"backbone": "vit/b16"}, {"position": "sincos_2d"}),
        ({"backbone": "vit/s16"}, {"patch": 8, "mlp_ratio": 2.0, "position": "sincos_2d"}),  # it is the recipe's own
        ({"backbone": "vit/b16", "options": {"patch": 8}}, {"position": "sincos_2d", "patch": 8}),  # typed with it
        ({"backbone": "vit/b16", "options": '{"depth": 3}'}, {"depth": 3}),  # as a whole, on a command line
        ({"options": {"depth": 3}}, {"patch": 8, "mlp_ratio": 2.0, "position": "sincos_2d", "depth": 3}),
        ({"backbone": "vit_det/b"}, {}),
        ({"backbone": "swin/t", "options": {"window": 8}}, {"window": 8}),
        ({"drop_path": 0.3}, {"patch": 8, "mlp_ratio": 2.0, "position": "sincos_2d"}),
    ],
)
def test_what_was_typed_stays_and_what_is_the_variants_own_goes(model, options, tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(OWN)
    assert recipes.resolve(file, {"model": model}).model.options == options
    assert recipes.resolve(recipes.resolve(file), {"model": model}).model.options == options
    (tmp_path / "recipe.yaml").write_text(OWN)  # a run folder
    assert recipes.resolve(tmp_path, {"model": model}).model.options == options


def test_a_recipe_that_names_no_backbone_has_the_default_one(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("model: {options: {patch: 8}}\n")
    assert recipes.resolve(file).model.options == {"patch": 8}
    assert recipes.resolve(file, {"model": {"backbone": "vit/b16"}}).model.options == {}
    assert recipes.resolve(file, {"model": {"head": "token_label"}}).model.options == {"patch": 8}


def test_a_variant_that_is_none_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r'no backbone "vit/b17".*did you mean "vit/b'):
        recipes.resolve("classification", {"model": {"backbone": "vit/b17"}})


def test_what_became_otherwise_is_said():
    def notes(name, **sections):
        return recipes.traced(name, sections)[1].notes

    assert notes("classification") == ()
    assert notes("classification", training={"epochs": 3}) == ()
    assert notes("classification/fine_tune", model={"backbone": "vit/b16"}) == ()  # there was nothing to go
    small = notes("classification", model={"backbone": "vit/b16"})
    assert small[0].endswith("its patch 4, width 128, depth 6, heads 4 go with it")
    assert small[1].endswith("32 x 32 pixels; vit/b16 was published at 224 x 224 (--preprocessing.size 224)")
    assert len(notes("classification", model={"backbone": "vit/b16"}, preprocessing={"size": 48})) == 1
    clips = notes("video_classification", model={"backbone": "timesformer/b"})
    assert "16 frames of 64 x 64 pixels; timesformer/b was published at 8 frames of 224 x 224" in clips[1]
    (kept,) = notes("pretraining/mae_b16_in1k", model={"backbone": "vit/l16"})
    assert kept == "backbone vit/l16 in place of the recipe's vit/b16; its position sincos_2d stays"
    (headed,) = notes("semantic_segmentation", model={"head": "setr"})
    assert headed.startswith("head setr in place of the recipe's semantic_fpn; its channels_pyramid 64")
    assert all("\n" not in note for note in (*small, *clips, kept, headed))


ANCHORS = (
    "model: {backbone: pvt/nano, options: {depths: [1, 1]}, head: faster_rcnn, head_options: {anchor_sizes: [8, 16]}}"
)


def test_lists_of_levels_go_where_the_levels_are_others(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text(ANCHORS + "\n")
    for model, wanted in (
        ({"backbone": "pvt/v2_b0"}, {}),
        ({"backbone": "swin/t"}, {}),
        ({"backbone": "pvt/nano"}, {"anchor_sizes": [8, 16]}),
        ({"backbone": "swin/t", "head_options": {"anchor_sizes": [4]}}, {"anchor_sizes": [4]}),
    ):
        recipe, origin = recipes.traced(file, {"model": model})
        assert recipe.model.head_options == wanted
        assert any("its anchor_sizes [8, 16] go with it" in note for note in origin.notes) == (
            model["backbone"] != "pvt/nano"
        )


@pytest.mark.parametrize("name", ["detection", "detection/digits", "instance_segmentation"])
@pytest.mark.parametrize("backbone", ["vit/b16", "swin/t", "volo/d1", "cross_vit/9", "pvt/v1_s", "resnet/18"])
def test_detectors_are_built_above_any_backbone(name, backbone):
    preparation.check_model(recipes.resolve(name, {"model": {"backbone": backbone}}))


def test_a_recipe_is_called_by_its_name_or_its_file(tmp_path):
    (tmp_path / "recipe.yaml").write_text(OWN)
    assert recipes.traced("detection")[1].name == "detection/small"
    assert recipes.traced(tmp_path)[1].name == str(tmp_path / "recipe.yaml")
    assert recipes.traced(Recipe())[1].name == "settings given in Python"
