"""Every recipe of the package, at every size that it offers: read, built at full size, and stepped once as a nano.

A new file is tested by being there. A line "#   --model.backbone family/size ..." of its comment offers another size,
or another course of the same.
"""

import dataclasses
import re

import pytest
import torch
from losses import gradients

from patchform import lookup
from patchform.commands import recipes
from patchform.data.collate import collate
from patchform.data.detection_transforms import training_objects
from patchform.data.loader import generator
from patchform.data.multi_crop import MultiCrop
from patchform.data.segmentation_transforms import training_scene
from patchform.data.transforms import Mixing, training_transform
from patchform.model import build_model
from patchform.records import Bitmaps, Instances, Label, Regions, Sample
from patchform.tasks.base import find_task
from patchform.training import optimizer, preparation, schedule

SIDE, IMAGES, FRAMES = 64, 2, 5
CLASSES = {
    "semantic_segmentation": {"cityscapes": 19, "pascal_context": 60, "ade20k": 150},
    "classification": {"imagenet": 1000},
    "detection": {"coco": 80},
    "instance_segmentation": {"coco": 80},
    "video_classification": {"k400": 400},
    "pretraining": {},
}
"""Of the data that the last word of a name, or two, tells."""
PUBLISHED = {
    "upernet_swin": {"swin/t": 60, "swin/s": 81, "swin/b": 121},
    "upernet_twins_svt": {"twins/svt_s": 54.4, "twins/svt_b": 88.5, "twins/svt_l": 133},
    "upernet_twins_pcpvt": {"twins/pcpvt_s": 54.6, "twins/pcpvt_b": 74.3, "twins/pcpvt_l": 91.5},
    "semantic_fpn_twins_svt": {"twins/svt_s": 28.3, "twins/svt_b": 60.4, "twins/svt_l": 103.7},
    "semantic_fpn_twins_pcpvt": {"twins/pcpvt_s": 28.4, "twins/pcpvt_b": 48.1, "twins/pcpvt_l": 65.3},
    "semantic_fpn_pvt_v2": {
        **{"pvt/v2_b0": 7.6, "pvt/v2_b1": 17.8, "pvt/v2_b2": 29.1},
        **{"pvt/v2_b3": 49.0, "pvt/v2_b4": 66.3, "pvt/v2_b5": 85.7},
    },
    "segmenter_vit": {"vit/l16": 334},
    "detr_r50": {"resnet/50": 41, "resnet/101": 60},
    "retinanet_pvt": {"pvt/v1_ti": 23.0, "pvt/v1_s": 34.2, "pvt/v1_m": 53.9, "pvt/v1_l": 71.1},
    "mask_rcnn_pvt": {"pvt/v1_ti": 32.9, "pvt/v1_s": 44.1, "pvt/v1_m": 63.9, "pvt/v1_l": 81.0},
    "retinanet_pvt_v2": {
        **{"pvt/v2_b0": 13.0, "pvt/v2_b1": 23.8, "pvt/v2_b2_li": 32.3, "pvt/v2_b2": 35.1},
        **{"pvt/v2_b3": 55.0, "pvt/v2_b4": 72.3, "pvt/v2_b5": 91.7},
    },
    "mask_rcnn_pvt_v2": {
        **{"pvt/v2_b0": 23.5, "pvt/v2_b1": 33.7, "pvt/v2_b2_li": 42.2, "pvt/v2_b2": 45.0},
        **{"pvt/v2_b3": 64.9, "pvt/v2_b4": 82.2, "pvt/v2_b5": 101.6},
    },
    "retinanet_swin": {"swin/t": 38.5},
    "mask_rcnn_swin": {"swin/t": 48, "swin/s": 69},
    "retinanet_region_vit": {
        **{"region_vit/s": 40.8, "region_vit/s_w14": 41.5, "region_vit/s_w14_peg": 41.6},
        **{"region_vit/b": 83.4, "region_vit/b_w14": 84.4, "region_vit/b_w14_peg": 84.5},
    },
    "mask_rcnn_region_vit": {
        **{"region_vit/s": 50.1, "region_vit/s_w14": 50.9, "region_vit/s_w14_peg": 50.9},
        **{"region_vit/b": 92.2, "region_vit/b_w14": 93.2, "region_vit/b_w14_peg": 93.2},
    },
    "mask_rcnn_vit_det": {"vit_det/b": 111, "vit_det/l": 331},
    "dual_vit_imagenet": {"dual_vit/s": 25.1, "dual_vit/b": 42.6, "dual_vit/l": 73.0},
    "volo_imagenet": {"volo/d1": 27, "volo/d2": 59, "volo/d3": 86},
    "timesformer_b": {"timesformer/b": 121.4, "timesformer/b_space": 85.9, "timesformer/b_joint": 85.9},
}
"""Millions of parameters of the whole model as the papers have them; Twins counts a classifier of 1000 classes too."""
NANO_HEADS = {
    "detr": {"channels_inside": 16, "transformer": {"hidden": 16, "depths": [1, 2]}},
    "retinanet": {"channels_inside": 16},
    "faster_rcnn": {"channels_inside": 16, "boxes": {"width": 16}},
    "mask_rcnn": {"channels_inside": 16, "boxes": {"width": 16}, "masks": {"channels": 16}},
    "mae": {"width": 16, "depth": 1, "heads": 4},
    "dino": {"outputs": 64, "hidden": 32, "bottleneck": 16},
}


def offers(name):
    """Flags of each size that a recipe offers, its own first."""
    text = (recipes.PACKAGED / f"{name}.yaml").read_text()
    for line in ("", *re.findall(r"^#   (--model\.backbone .+)$", text, re.MULTILINE)):
        words = line.split()
        yield {key.removeprefix("--"): value for key, value in zip(words[::2], words[1::2], strict=True)}


OFFERED = [(name, flags) for name in recipes.packaged() for flags in offers(name)]


def stem_of(name):
    return re.sub("_(ade20k|coco|k400)$", "", name.partition("/")[2])


def classes_of(recipe, name):
    known = CLASSES[recipe.task]
    return next((number for word, number in known.items() if name.endswith(word)), 3)


def build(recipe, *, classes):
    options = dict(recipe.model.options)
    if recipe.model.drop_path is not None:
        options["drop_path"] = recipe.model.drop_path
    return build_model(
        recipe.task,
        backbone=recipe.model.backbone,
        head=recipe.model.head,
        classes=[f"class {number}" for number in range(classes)],
        preprocessing=recipe.preprocessing,
        backbone_options=options,
        head_options=recipe.model.head_options,
    )


@pytest.mark.parametrize(
    ("name", "flags"), [pytest.param(*offer, id=" ".join((offer[0], *offer[1].values()))) for offer in OFFERED]
)
def test_a_recipe_builds_at_full_size(name, flags):
    recipe = recipes.resolve(name, recipes.nested(flags))
    assert recipe.task == name.partition("/")[0]
    preparation.refuse_nonsense(recipe)
    assert max(recipe.schedule.milestones, default=0) < recipe.training.epochs
    with torch.device("meta"):
        model = build(recipe, classes=classes_of(recipe, name))
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    assert 0.05 < millions < 1000
    known = PUBLISHED.get(stem_of(name), {})
    assert millions == pytest.approx(known.get(recipe.model.backbone, millions), rel=0.025)


def test_what_papers_count_is_offered():
    """No row of the table is passed by."""
    offered = {
        (
            stem_of(name),
            flags.get("model.backbone", recipes.read(recipes.PACKAGED / f"{name}.yaml")["model"]["backbone"]),
        )
        for name, flags in OFFERED
    }
    for stem, sizes in PUBLISHED.items():
        assert {(stem, backbone) for backbone in sizes} <= offered


# ---------------------------------------------------------------------------------------------------------- as a nano


def nano(recipe):
    """The recipe with the backbone of the same class that has "nano" in its name, of at most SIDE pixels and FRAMES.

    Maps from blocks by number become those of as many blocks. Heads have no more than 16 channels. Lengths of the
    shorter side keep their share of the longest.
    """
    family = recipe.model.backbone.partition("/")[0]
    module, full = lookup.backbone(recipe.model.backbone)
    small = next(row for row, variant in module.VARIANTS.items() if "nano" in row and variant.build is full.build)
    options, top = dict(recipe.model.options), dict(recipe.model.head_options)
    options.pop("image_size", None)
    if "maps_from" in options:
        depth = len(options["maps_from"])
        options |= {"depth": depth, "maps_from": list(range(1, depth + 1))}
    top |= {key: min(value, 16) for key, value in top.items() if key.startswith("channels_")}
    for key, value in NANO_HEADS.get(recipe.model.head, {}).items():
        top[key] = top.get(key, {}) | value if isinstance(value, dict) else value
    full = recipe.preprocessing.size
    side, sizes = min(SIDE, *full), tuple(size * SIDE // max(full) for size in recipe.augmentation.sizes)
    return dataclasses.replace(
        recipe,
        preprocessing=dataclasses.replace(
            recipe.preprocessing, size=(side, side), frames=min(FRAMES, recipe.preprocessing.frames)
        ),
        augmentation=dataclasses.replace(recipe.augmentation, sizes=sizes),
        model=dataclasses.replace(recipe.model, backbone=f"{family}/{small}", options=options, head_options=top),
    )


def a_target(task, classes):
    """What a picture shows; one pixel, or a corner, of which nothing is known."""
    draw = torch.Generator().manual_seed(0)
    if task in ("classification", "video_classification"):
        return Label(torch.tensor([classes - 1]))
    if task == "pretraining":
        return Label(torch.empty(0, dtype=torch.int64))
    if task == "semantic_segmentation":
        mask = torch.randint(classes, (8, 8), generator=draw).repeat_interleave(8, 0).repeat_interleave(8, 1)
        mask[0, 0] = 255
        return Regions(mask.byte())
    boxes = torch.tensor([[4, 6, 30, 40], [20, 10, 60, 50]])
    sides = boxes[:, 2:] - boxes[:, :2]
    bits = torch.rand(int(sides.prod(1).sum()), generator=draw) < 0.8
    masks = Bitmaps(bits, boxes, (SIDE, SIDE)) if task == "instance_segmentation" else None
    return Instances(boxes.float(), torch.tensor([0, classes - 1]), masks=masks)


def no_other():
    raise AssertionError("no recipe of the package takes parts of other pictures")


def a_batch(recipe, model, classes):
    """Samples that went through the recipe's augmentation, mixed as it says."""
    draw, preprocessing = torch.Generator().manual_seed(0), model.preprocessing
    target, samples = a_target(recipe.task, classes), []
    torch.manual_seed(0)
    for _ in range(IMAGES):
        clip = (preprocessing.frames,) if preprocessing.frames else ()
        image = torch.randint(256, (*clip, 3, SIDE, SIDE), generator=draw).byte()
        image, shown, views = image[..., : recipe.preprocessing.channels, :, :], target, None
        if recipe.augmentation.views > 1:
            image, views = MultiCrop(preprocessing, recipe.augmentation)(image)
        elif recipe.task in ("classification", "video_classification", "pretraining"):
            image = training_transform(preprocessing, recipe.augmentation)(image)
        elif recipe.task == "semantic_segmentation":
            image, shown = training_scene(preprocessing, recipe.augmentation)(image, target)
        else:
            image, shown = training_objects(preprocessing, recipe.augmentation)(image, target, no_other)
        samples.append(Sample(image, shown, "", (SIDE, SIDE), views))
    batch = Mixing(recipe.augmentation, classes).mix(collate(samples), generator(0, "mix", 0))
    mixing = find_task(recipe.task).token_mixing(recipe.augmentation, classes, model.trained.strides[-1], 0.0)
    return mixing.mix(batch, generator(0, "mix tokens", 0))


@pytest.mark.parametrize("name", recipes.packaged())
def test_a_recipe_takes_a_step_as_a_nano(name):
    recipe = nano(recipes.resolve(name))
    torch.manual_seed(0)
    model = build(recipe, classes=3).train()
    batch = a_batch(recipe, model, classes=3)
    before = {key: tensor.clone() for key, tensor in model.named_parameters()}
    mover = optimizer.build(model, recipe.optimizer)
    steps = 10 * recipe.training.epochs
    rates = [schedule.multiplier(recipe.schedule, step, schedule.RunLength(10, steps)) for step in range(steps)]
    drops = recipe.schedule.gamma ** len(recipe.schedule.milestones)
    assert max(rates) == pytest.approx(1, abs=0.02)
    assert rates[-1] == pytest.approx(drops if recipe.schedule.name == "steps" else recipe.schedule.floor)
    optimizer.set_rate(mover, recipe.optimizer.lr)
    course = recipe.training
    precision = "bfloat16" if course.precision == "auto" else course.precision  # as where there are units for it
    loss, norm = gradients(model, batch, part=course.micro_batch, precision=precision, pixels=course.pixels_at_once)
    assert 0 < loss < 1000
    assert 0 < norm < float("inf")
    mover.step()
    model.after_step(0)
    moved = {key for key, tensor in model.named_parameters() if not torch.equal(tensor, before[key])}
    assert {"backbone", "head"} == {key.partition(".")[0] for key in moved}
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    if recipe.augmentation.views > 1:
        batch = batch._replace(images=batch.images[:, 0], views=None)
    found = model.eval().predict(batch._replace(targets=()))
    assert len(found) == IMAGES
