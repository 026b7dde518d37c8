"""Every parameter that wants a gradient gets one, under every head: DistributedDataParallel waits for all of them."""

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from patchform import lookup
from patchform.heads.base import Head
from patchform.model import build_backbone, build_model
from patchform.records import Batch, Bitmaps, Instances, Label, Preprocessing, Regions
from patchform.settings import Recipe
from patchform.tasks.base import find_task
from patchform.training.freezing import Freezing

NANO = [
    f"{family}/{variant}"
    for family in lookup.names("backbones")
    for variant in lookup.module("backbones", family).VARIANTS
    if "nano" in variant
]
IMAGES = [name for name in NANO if build_backbone(name).frames is None]
SIZE = (64, 64)
BOX = torch.tensor([[4.0, 4, 40, 40]])
MASK = Bitmaps(torch.ones(36 * 36, dtype=torch.bool), BOX.long(), SIZE)
NO_MASK = Bitmaps(MASK.bits[:0], MASK.boxes[:0], SIZE)
TARGETS = {
    "classification": (Label(torch.tensor([0])), Label(torch.tensor([1]))),
    "video_classification": (Label(torch.tensor([0])), Label(torch.tensor([1]))),
    "semantic_segmentation": (Regions(torch.zeros(SIZE).long()), Regions(torch.full(SIZE, 255))),
    "detection": (Instances(BOX, torch.tensor([0])), Instances(BOX[:0], torch.tensor([]).long())),
    "instance_segmentation": (
        Instances(BOX, torch.tensor([0]), masks=MASK),
        Instances(BOX[:0], torch.tensor([]).long(), masks=NO_MASK),
    ),
}
"""By task: something to learn, and nothing of a kind that heads may leave parts of themselves out for."""
HEADS = {
    task: [name for name in lookup.names("heads") if task in lookup.the_class("heads", name, Head).tasks]
    for task in TARGETS
}
PAIRS = [(task, head) for task, heads in HEADS.items() for head in heads]
SMALL = {"channels_inside": 16}
DETR = {**SMALL, "queries": 4, "transformer": {"depths": (1, 1), "heads": 2, "hidden": 16}}
RCNN = {**SMALL, "proposals": {"kept": (50, 20)}, "boxes": {"width": 32, "samples": 16}}
OPTIONS = {
    **{"setr": SMALL, "upernet": SMALL, "semantic_fpn": {**SMALL, "channels_pyramid": 16}, "segmenter": SMALL},
    **{"detr": DETR, "detr_masks": DETR, "retinanet": SMALL, "faster_rcnn": RCNN, "mask_rcnn": RCNN},
}
SAMPLED = [  # every head on three backbones, every backbone under a dense head and a detector
    *((*pair, name) for pair in PAIRS for name in ("swin/nano", "cross_vit/nano")),
    *((*pair, IMAGES[number % len(IMAGES)]) for number, pair in enumerate(PAIRS)),
    *(("semantic_segmentation", HEADS["semantic_segmentation"][n % 4], name) for n, name in enumerate(IMAGES)),
    *(("detection", HEADS["detection"][n % 3], name) for n, name in enumerate(IMAGES)),
    *(("video_classification", "linear", name) for name in NANO if name not in IMAGES),
]


def whole(task, head, backbone):
    torch.manual_seed(0)
    frames = find_task(task).frames and (build_backbone(backbone).frames or 2)
    return build_model(
        task,
        backbone=backbone,
        head=head,
        classes=["a", "b"],
        preprocessing=Preprocessing(size=SIZE, frames=frames),
        head_options=OPTIONS.get(head, {}),
    ).train()


def batch_of(model, task, target):
    clip = (model.preprocessing.frames,) if model.preprocessing.frames else ()
    images = torch.rand(2, *clip, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    return Batch(images, (target,) * 2, ("x",) * 2, (SIZE,) * 2)


def without_gradient(model, batch):
    model.zero_grad(set_to_none=True)
    torch.stack([loss.sum for loss in model(batch).values()]).sum().backward()
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]


@pytest.mark.parametrize(("task", "head", "backbone"), dict.fromkeys(SAMPLED))
def test_every_parameter_that_wants_a_gradient_gets_one(task, head, backbone):
    model = whole(task, head, backbone)
    for target in TARGETS[task]:
        assert without_gradient(model, batch_of(model, task, target)) == []
    idle = {id(parameter) for parameter in model.backbone.parameters_beyond_maps()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert id(parameter) not in idle or not model.head.reads_maps_alone or not parameter.grad.any(), name


@pytest.mark.parametrize("backbone", IMAGES)
def test_no_map_comes_from_what_is_beyond_maps(backbone):
    built = build_backbone(backbone)
    images, idle = torch.rand(2, 3, *SIZE), built.parameters_beyond_maps()
    sum(map_.square().sum() for map_ in built(images).maps).backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in idle)
    learning = {id(parameter) for parameter in built.parameters() if parameter.grad is not None}
    built.zero_grad(set_to_none=True)
    features = built(images)
    (features.summary.square().sum() + features.tokens.square().sum()).backward()
    assert all(parameter.grad is not None for parameter in idle)
    assert learning | {id(parameter) for parameter in idle} >= {id(parameter) for parameter in built.parameters()}


@pytest.mark.filterwarnings("ignore:Grad strides do not match")  # of PyTorch, on speed
def test_distributed_data_parallel_takes_more_than_one_step():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        for task, head, backbone in (
            ("detection", "retinanet", "swin/nano"),
            ("semantic_segmentation", "setr", "cross_vit/nano"),
            ("classification", "linear", "vit/nano"),
        ):
            model = whole(task, head, backbone)
            parallel = DistributedDataParallel(model)
            for target in (*TARGETS[task], *TARGETS[task]):
                losses = parallel(batch_of(model, task, target))
                torch.stack([loss.sum for loss in losses.values()]).sum().backward()
        model = whole("detection", "retinanet", "swin/nano")
        model.backbone.beyond_maps = ()  # control: a norm that waits for its gradient stops it
        parallel, batch = DistributedDataParallel(model), batch_of(model, "detection", TARGETS["detection"][0])
        torch.stack([loss.sum for loss in parallel(batch).values()]).sum().backward()
        with pytest.raises(RuntimeError, match="Expected to have finished reduction"):
            parallel(batch)
    finally:
        torch.distributed.destroy_process_group()


def test_a_run_leaves_what_cannot_learn_as_it_is():
    model = whole("detection", "retinanet", "volo/nano")
    Freezing(model, Recipe(task="detection"), 1)
    still = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[1] for name in still} == {"class_token", "class_blocks", "norm"}
    assert without_gradient(model, batch_of(model, "detection", TARGETS["detection"][0])) == []
    linear = whole("classification", "linear", "volo/nano")
    Freezing(linear, Recipe(), 1)
    assert all(parameter.requires_grad for parameter in linear.parameters())
