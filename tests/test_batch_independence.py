"""An answer is that of its picture: it does not depend on which others are in the batch, how many, or in what order."""

import pytest
import torch
from reference import randomise

from patchform.data.collate import by_size, collate
from patchform.evaluation import evaluate
from patchform.inference import MultiScale, MultiView, SlicedObjects
from patchform.model import Model, build_model
from patchform.prediction import Predictor
from patchform.records import Bitmaps, Instances, Label, Preprocessing, Regions, Sample, tensors_of
from patchform.tasks.base import find_task

SIZES = [(64, 64), (50, 75), (64, 64), (75, 50), (33, 96), (50, 75), (41, 43)]
SMALL = {"channels_inside": 32, "norm": "layer"}
DETR = {**SMALL, "queries": 10, "transformer": {"depths": (1, 2), "heads": 4, "hidden": 32}}
REGIONS = {
    **SMALL,
    "proposals": {"kept": (200, 100)},
    "boxes": {"width": 32, "samples": 32},
    "score_threshold": 0.0,
}
MASKS = {**REGIONS, "masks": {"convolutions": 1, "channels": 16}}
MODELS = {
    "retinanet on pvt": ("detection", "pvt", "retinanet", {**SMALL, "form": {"convolutions": 1}}),
    "retinanet on pvt v2": ("detection", "pvt", "retinanet", {"channels_inside": 32, "form": {"norm": "group"}}),
    "faster_rcnn on swin": ("detection", "swin", "faster_rcnn", REGIONS),
    "faster_rcnn on vit": ("detection", "vit", "faster_rcnn", {**REGIONS, "neck": "simple"}),
    "mask_rcnn on resnet": ("instance_segmentation", "resnet", "mask_rcnn", MASKS),
    "detr on resnet": ("detection", "resnet", "detr", DETR),
    "detr_masks on twins": ("instance_segmentation", "twins", "detr_masks", DETR),
    "semantic_fpn on pvt": ("semantic_segmentation", "pvt", "semantic_fpn", {"channels_inside": 16}),
    "upernet on swin": ("semantic_segmentation", "swin", "upernet", {"channels_inside": 16}),
    "setr on vit": ("semantic_segmentation", "vit", "setr", {"channels_inside": 16}),
    "segmenter on volo": ("semantic_segmentation", "volo", "segmenter", {"channels_inside": 16}),
    "linear on swin": ("classification", "swin", "linear", {}),
    "linear on axial": ("classification", "axial", "linear", {}),
}


def built(task, backbone, head, options, **preparation):
    torch.manual_seed(0)
    model = build_model(
        task,
        backbone=f"{backbone}/nano",
        head=head,
        classes=tuple("abc"),
        preprocessing=Preprocessing(**{"size": (64, 64), "resize": "native", **preparation}),
        head_options=options,
    )
    return randomise(model, scale=0.1).eval()


def pictures(sizes=SIZES, channels=3):
    draw = torch.Generator().manual_seed(0)
    return [torch.randint(256, (channels, *size), dtype=torch.uint8, generator=draw) for size in sizes]


def samples(images):
    return [Sample(image, None, "", (image.shape[-2] + 3, image.shape[-1])) for image in images]


def same(one, two, tolerance=1e-5):
    """Whether two answers are equal but for rounding: 1e-5 of a score, a hundredth of a pixel of a box."""
    if isinstance(one, Instances):
        if len(one.boxes) != len(two.boxes) or not torch.equal(one.classes, two.classes):
            return False
        near = torch.allclose(one.boxes, two.boxes, rtol=0, atol=1000 * tolerance)
        return near and torch.allclose(one.scores, two.scores, rtol=0, atol=tolerance)
    return one.scores.shape == two.scores.shape and torch.allclose(one.scores, two.scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", list(MODELS))
def test_answers_do_not_depend_on_company(name):
    model, given = built(*MODELS[name]), samples(pictures())
    alone = [model.predict(collate([sample]))[0] for sample in given]
    for order in ([0, 1, 2, 3, 4, 5, 6], [6, 4, 1, 0], [3, 3, 2]):
        together = model.predict(collate([given[index] for index in order]))
        assert all(same(answer, alone[index]) for answer, index in zip(together, order, strict=True))
    batch = collate(given)
    with torch.no_grad():
        padded = model.head.decode(model.head(model.features(batch)), batch.sizes)
    control = [same(answer, expected) for answer, expected in zip(padded, alone, strict=True)]
    assert not all(control), "padding in the model would have changed nothing: the test says nothing"


@pytest.mark.parametrize("infer", [MultiScale((0.75, 1.25)), MultiScale((1.0,), mirrored=True)], ids=repr)
def test_neither_at_several_scales(infer):
    model, given = built(*MODELS["semantic_fpn on pvt"]), samples(pictures())
    together = infer(model, collate(given))
    assert all(same(answer, infer(model, collate([sample]))[0]) for answer, sample in zip(together, given, strict=True))


def test_neither_slice_by_slice():
    model, images = (
        built(*MODELS["retinanet on pvt"]).double(),
        pictures([(90, 70), (64, 120)]),
    )  # no two as good as equal
    given = [Sample(image, None, "", tuple(image.shape[-2:])) for image in images]
    ways = [SlicedObjects((48, 48), (30, 34), at_once=at_once) for at_once in (1, 3, 16)]
    first, *others = [way(model, collate(given)) for way in ways]
    first_alone = [ways[0](model, collate([sample]))[0] for sample in given]
    for answers in (first_alone, *others):
        assert all(same(*both) for both in zip(first, answers, strict=True))


def test_neither_of_clips():
    torch.manual_seed(0)
    model = build_model(
        "video_classification",
        backbone="pvt/nano",
        head="linear",
        classes=tuple("abc"),
        preprocessing=Preprocessing(size=(32, 32), resize="native", frames=2),
    )
    model = randomise(model, scale=0.1).eval()
    draw = torch.Generator().manual_seed(0)
    clips = [torch.randint(256, (8, 3, *size), dtype=torch.uint8, generator=draw) for size in ((32, 48), (40, 32))]
    for infer in (Model.predict, MultiView(clips=2, crops=2, at_once=3)):
        given = samples([clip[:2] for clip in clips] if infer is Model.predict else clips)
        alone = [infer(model, collate([sample]))[0] for sample in given]
        assert all(same(*both) for both in zip(infer(model, collate(given)), alone, strict=True))


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_predictor_says_the_same_for_any_batch_size(batch_size):
    predictor = Predictor(built(*MODELS["faster_rcnn on swin"], resize="fit"), device="cpu", threshold=0.0)
    images = pictures()
    expected = [next(predictor.predict(image)).target for image in images]
    answers = [prediction.target for prediction in predictor.predict(images, batch_size=batch_size)]
    assert all(same(*both) for both in zip(answers, expected, strict=True))


def test_images_of_each_size_go_together_and_come_back_in_order():
    given = [
        Sample(image, Label(torch.tensor([index])), str(index), (index, 1)) for index, image in enumerate(pictures())
    ]
    asked = []

    def answer(batch):
        assert batch.padding is None
        asked.append(tuple(batch.images.shape))
        classes = [int(target.classes) for target in batch.targets]
        return [(name, size[0], number) for name, size, number in zip(batch.names, batch.sizes, classes, strict=True)]

    batch = collate(given)
    assert by_size(batch, answer) == [(str(index), index, index) for index in range(len(given))]
    assert asked == [(2, 3, 64, 64), (2, 3, 50, 75), (1, 3, 75, 50), (1, 3, 33, 96), (1, 3, 41, 43)]
    images = []
    by_size(batch, lambda part: images.extend(part.images) or [None] * len(part.images))
    order = [0, 2, 1, 5, 3, 4, 6]
    assert all(torch.equal(shown, given[index].image) for shown, index in zip(images, order, strict=True))
    with pytest.raises(ValueError, match="argument 2 is"):  # an answer too few is never another picture's
        by_size(batch, lambda part: [None])


def test_one_size_is_one_batch():
    batch = collate(samples(pictures([(8, 8)] * 3)))
    assert by_size(batch, lambda part: [part is batch] * 3) == [True] * 3


def test_dense_answers_have_the_size_of_their_picture():
    model, given = built(*MODELS["setr on vit"]), samples(pictures())
    for answer, sample in zip(model.predict(collate(given)), given, strict=True):
        assert isinstance(answer, Regions)
        assert {tuple(tensor.shape[-2:]) for tensor in tensors_of(answer)} == {tuple(sample.size)}


def truths(task, sizes):
    """A target for each picture, in its own pixels."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for height, width in sizes:
        if task == "semantic_segmentation":
            found.append(Regions(torch.randint(3, (height, width), generator=draw)))
        elif task in ("detection", "instance_segmentation"):
            low = (torch.rand(4, 2, generator=draw) * torch.tensor([width, height]) / 2).long()
            boxes = torch.cat([low, low + torch.tensor([width // 3, height // 3])], 1)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
            bitmaps = Bitmaps(torch.ones(int(areas.sum()), dtype=torch.bool), boxes, (height, width))
            classes = torch.randint(3, (4,), generator=draw)
            found.append(Instances(boxes.float(), classes, masks=bitmaps))
        else:
            found.append(Label(torch.randint(3, (1,), generator=draw)))
    return found


NUMBERS = {
    name: MODELS[name]
    for name in (
        "linear on swin",
        "semantic_fpn on pvt",
        "faster_rcnn on swin",
        "detr on resnet",
        "mask_rcnn on resnet",
    )
}
NUMBERS["multi-label"] = ("classification", "pvt", "linear", {"labels": "multi"})


@pytest.mark.parametrize("name", list(NUMBERS))
def test_numbers_do_not_depend_on_batches(name):
    """Each picture counts once, in batches of any size, a short last one too, and in any order."""
    task_name, *rest = NUMBERS[name]
    model = built(task_name, *rest)
    task = find_task(task_name).of(model.head)
    sizes = [size for size in SIZES for _ in range(2)][:13]
    images = pictures(sizes)
    given = [
        Sample(image, truth, str(number), size)
        for number, (image, truth, size) in enumerate(zip(images, truths(task_name, sizes), sizes, strict=True))
    ]

    def numbers(batch_size, order, ask=Model.predict):
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        batches = [collate([given[index] for index in part]) for part in parts]
        scores = evaluate(model, batches, task, infer=ask, metric=task.full_metric(model.classes))
        assert scores.samples == 13
        return {number: value for number, value in scores.numbers.items() if value is not None}

    def together(model, batch):
        with torch.no_grad():
            return model.head.decode(model.head(model.features(batch)), batch.sizes)

    in_order = list(range(13))
    expected = numbers(1, in_order)
    assert len(expected) > 1
    for batch_size, order in ((4, in_order), (16, in_order), (5, in_order[::-1])):
        assert numbers(batch_size, order) == pytest.approx(expected, abs=1e-5, rel=1e-5)
    if name != "multi-label":  # control; of few pictures a mean over ranks may well not change
        assert numbers(16, in_order, together) != pytest.approx(expected, abs=1e-5, rel=1e-5)
