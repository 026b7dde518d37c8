"""A teacher: each kind against a plain loop, parts and shares against the whole, and runs that learn from one."""

import dataclasses
import shutil

import pytest
import tiny
import torch
from torch.nn import functional as F

from patchform import lookup
from patchform.data.collate import split
from patchform.data.token_mixing import TokenMixing
from patchform.errors import ModelFileError, UsageError
from patchform.model import build_backbone, build_model, load, save
from patchform.records import Batch, Features, Label, Preprocessing
from patchform.settings import AugmentationSettings, LossSettings, ModelSettings, Recipe, TeacherSettings
from patchform.training import loop, step, teacher
from patchform.training.distillation import distilled
from patchform.weights import files

SIDE, COUNT, CLASSES = 64, 5, ("a", "b", "c", "d")
ORDER = [2, 0, 3, 1]
"""Of each class its number among the teacher's."""
MEAN, STD = (0.3, 0.5, 0.6), (0.2, 0.3, 0.25)


def shaken(model, seed=0):
    """Every parameter and running statistic at random."""
    draw = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and "var" in name:
            tensor.copy_(torch.rand(tensor.shape, generator=draw) + 0.5)
        elif tensor.is_floating_point():
            spread = 0.3 if tensor.ndim < 2 else tensor[0].numel() ** -0.5 * (1 + 7 * ("head" in name))
            tensor.copy_(torch.randn(tensor.shape, generator=draw) * spread + (tensor.ndim < 2) * 0.5)
    return model


def teacher_in(folder, *, backbone="resnet/nano", head="linear", size=(64, 96), classes=None, seed=0, **options):
    """A run folder of a model with another size, other statistics, and another order of classes."""
    names = tuple(CLASSES[ORDER.index(number)] for number in range(4)) if classes is None else classes
    made = build_model(
        "classification",
        backbone=backbone,
        head=head,
        classes=names,
        preprocessing=Preprocessing(size=size, mean=MEAN, std=STD),
        backbone_options=options,
    )
    save(shaken(made, seed), folder)
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return teacher_in(tmp_path_factory.mktemp("teacher") / "run")


def student(head="linear", backbone="vit/nano", seed=1, **options):
    made = build_model(
        "classification",
        backbone=backbone,
        head=head,
        classes=CLASSES,
        preprocessing=Preprocessing(size=(SIDE, SIDE)),
        head_options=options,
    )
    return shaken(made, seed).train()


def learning(source, kind, *, of=None, **settings):
    """A student and its teacher."""
    model = of or student("token_label" if kind == "token_labels" else "linear")
    losses = LossSettings(teacher=TeacherSettings(model=source, kind=kind, **settings))
    names = ModelSettings(backbone=model.architecture.backbone, head=model.architecture.head)
    return distilled(model, Recipe(loss=losses, model=names, preprocessing=model.preprocessing))


def batch_of(count=COUNT, side=SIDE):
    """Pictures of a few large squares: answers differ from picture to picture, and from cell to cell."""
    squares = torch.randint(256, (count, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    images = squares.repeat_interleave(side // 4, 2).repeat_interleave(side // 4, 3)
    labels = tuple(Label(torch.tensor([number % 4])) for number in range(count))
    return Batch(images, labels, ("",) * count, ((side, side),) * count)


def plain_features(source, images, size=(64, 96)):
    """The teacher by hand: its own pixels, its own statistics."""
    model = load(source)
    pixels = F.interpolate(
        images, size, mode="bicubic" if model.preprocessing.interpolation == "bicubic" else "bilinear", antialias=True
    )
    mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (MEAN, STD))
    features = model.backbone((pixels / 255 - mean) / std)
    return model, features


# --------------------------------------------------------------------------------------------------- a plain loop


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_logits_are_hintons_divergence(source, temperature):
    made, batch = learning(source, "logits", temperature=temperature, weight=0.7, own=0.4), batch_of()
    losses = made(batch)
    model, features = plain_features(source, batch.images)
    theirs = model.head(features)[:, ORDER] / temperature
    own = made.student.head(made.student.features(batch)) / temperature
    wanted = F.kl_div(own.log_softmax(1), theirs.softmax(1), reduction="batchmean") * temperature**2
    assert losses["teacher"].mean.item() == pytest.approx(0.7 * wanted.item(), rel=1e-6)
    truth = F.cross_entropy(own * temperature, torch.arange(COUNT) % 4)
    assert losses["loss"].mean.item() == pytest.approx(0.4 * truth.item(), rel=1e-6)
    # controls: classes in the teacher's order, another temperature, no factor of T^2
    mixed_up = F.kl_div(own.log_softmax(1), (model.head(features) / temperature).softmax(1), reduction="batchmean")
    other = made.term.__class__(ORDER, temperature + 0.5)
    seen = made.teacher.look(batch)
    of_student = teacher.Seen(made.student.head, made.student.features(batch), own * temperature)
    assert abs(mixed_up * temperature**2 - wanted) > 1e-2
    assert abs(other(of_student, seen).mean() - wanted) > 1e-3
    assert temperature == 1 or abs(wanted / temperature**2 - wanted) > 1e-2


@torch.no_grad()
def test_labels_are_the_teachers_best_classes(source):
    made, batch = learning(source, "labels"), batch_of()
    model, features = plain_features(source, batch.images)
    best = model.head(features).argmax(1)
    named = torch.tensor([CLASSES.index(model.classes[number]) for number in best.tolist()])
    own = made.student.head(made.student.features(batch))
    assert made(batch)["teacher"].mean.item() == pytest.approx(F.cross_entropy(own, named).item(), rel=1e-6)
    assert abs(F.cross_entropy(own, best) - F.cross_entropy(own, named)) > 1e-3  # control


def resized(made, batch, features):
    """The student's tokens on the teacher's grid, through the linear layer."""
    seen = made.student.features(batch)
    tokens = seen.tokens.transpose(1, 2).unflatten(2, seen.maps[-1].shape[-2:])
    layer = made.term.project
    projected = F.conv2d(tokens, layer.weight[..., None, None], layer.bias)
    return F.interpolate(projected, features.maps[-1].shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def test_tokens_are_compared_by_cosine_on_the_teachers_grid(source):
    made, batch = learning(source, "tokens"), batch_of()
    _, features = plain_features(source, batch.images)
    theirs = features.tokens.transpose(1, 2).unflatten(2, features.maps[-1].shape[-2:])
    own = resized(made, batch, features)
    assert own.shape[-2:] != (16, 16)
    cosine = F.cosine_similarity(own.flatten(2), theirs.flatten(2), dim=1).mean()
    assert made(batch)["teacher"].mean.item() == pytest.approx(1 - cosine.item(), rel=1e-6)
    turned = F.cosine_similarity(own.flip(-1).flatten(2), theirs.flatten(2), dim=1).mean()
    assert abs(turned - cosine) > 1e-4  # control


@torch.no_grad()
def test_features_are_whitened_and_compared_by_smooth_l1(source):
    made, batch = learning(source, "features"), batch_of()
    _, features = plain_features(source, batch.images)
    white = F.layer_norm(features.tokens, features.tokens.shape[-1:])
    own = resized(made, batch, features).flatten(2).transpose(1, 2)
    wanted = F.smooth_l1_loss(own, white, beta=2.0)
    assert made(batch)["teacher"].mean.item() == pytest.approx(wanted.item(), rel=1e-6)
    assert abs(F.smooth_l1_loss(own, features.tokens, beta=2.0) - wanted) > 1e-2  # control


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_token_labels_are_what_the_teacher_says_of_each_cell(source, temperature):
    made, batch = learning(source, "token_labels", temperature=temperature), batch_of()
    losses = made(batch)
    model, features = plain_features(source, batch.images)
    scores = (model.head.classifier(features.tokens)[..., ORDER] / temperature).softmax(2)
    scores = scores.transpose(1, 2).unflatten(2, features.maps[-1].shape[-2:])
    raw = made.student.head(own := made.student.features(batch))
    wanted = F.interpolate(scores, own.maps[-1].shape[-2:], mode="bilinear", align_corners=False).flatten(2)
    auxiliary = 0.5 * F.cross_entropy(raw.tokens.transpose(1, 2), wanted)
    assert losses["auxiliary"].mean.item() == pytest.approx(auxiliary.item(), rel=1e-6)
    assert losses["loss"].mean.item() == pytest.approx(F.cross_entropy(raw.summary, torch.arange(COUNT) % 4).item())
    assert set(losses) == {"loss", "auxiliary"}
    flipped = 0.5 * F.cross_entropy(raw.tokens.transpose(1, 2), wanted.flip(2))
    alone = made.student.head.loss(raw, batch.targets)["auxiliary"].mean
    assert min(abs(flipped - auxiliary), abs(alone - auxiliary)) > 1e-4 * auxiliary  # controls


@torch.no_grad()
def test_images_learn_a_share_of_what_the_teacher_says_of_the_crop(source):
    """By the area that is exchanged, as the authors of token labelling and of Dual-ViT have it (share of 1)."""
    made = learning(source, "token_labels", image=0.75)
    mixing = TokenMixing(AugmentationSettings(mix_token=1.0), 4, made.student.backbone.strides[-1], 0.0)
    batch = mixing.mix(batch_of(4), torch.Generator().manual_seed(3))
    model, features = plain_features(source, batch.images)
    grid = features.maps[-1].shape[-2:]
    scores = model.head.classifier(features.tokens)[..., ORDER].softmax(2).transpose(1, 2).unflatten(2, grid)
    raw = made.student.head(own := made.student.features(batch))
    rows, columns = own.maps[-1].shape[-2:]
    said = F.interpolate(scores, (rows, columns), mode="bilinear", align_corners=False).mean((2, 3))
    wanted = 0.75 * said + 0.25 * torch.eye(4)
    top, left, bottom, right = batch.exchanged
    share = (bottom - top) * (right - left) / (rows * columns)
    mixed = (1 - share) * wanted + share * wanted[[1, 0, 3, 2]]
    found = made(batch)["loss"].mean.item()
    assert found == pytest.approx(F.cross_entropy(raw.summary, mixed).item(), rel=1e-6)
    assert abs(F.cross_entropy(raw.summary, wanted).item() / found - 1) > 1e-4  # control


def test_a_flipped_picture_has_flipped_token_labels(tmp_path):
    folder = teacher_in(tmp_path / "run", backbone="vit/nano", size=(SIDE, SIDE), summary="mean")
    made, batch = learning(folder, "token_labels"), batch_of()
    blind = made.teacher.model.backbone  # from here on it knows no left and right
    with torch.no_grad():
        kernels = blind.patches.proj.weight.unflatten(1, (3, blind.patch, blind.patch))
        kernels.copy_((kernels + kernels.flip(-1)) / 2)
        blind.position.table.zero_()
    features = made.student.features(batch)
    flipped = batch._replace(images=batch.images.flip(-1))
    one, other = (made.term.targets(b, made.teacher.look(b), features) for b in (batch, flipped))
    grid = features.maps[-1].shape[-2:]
    for label, mirrored in zip(one, other):
        assert label.tokens.shape == (4, *grid)
        torch.testing.assert_close(label.tokens.sum(0), torch.ones(grid))
        torch.testing.assert_close(label.tokens.flip(-1), mirrored.tokens, rtol=0, atol=1e-5)
        assert not torch.allclose(label.tokens, mirrored.tokens, atol=1e-3)  # control


def grid_of(size, stride):
    cells = [-(-side // stride) for side in size]
    return Features((torch.zeros(1, 1, *cells),), (stride,), size)


@pytest.mark.parametrize(("size", "stride"), [((64, 64), 16), ((70, 50), 16), ((33, 47), 14)])
@pytest.mark.parametrize(("size_to", "stride_to"), [((64, 64), 16), ((70, 50), 14), ((224, 160), 32), ((90, 31), 8)])
def test_cells_are_laid_over_those_of_another_size(size, stride, size_to, stride_to):
    """What grows evenly over the picture is met at its true value between the outermost centres."""
    source, target = grid_of(size, stride), grid_of(size_to, stride_to)
    for axis in (0, 1):
        rows = torch.arange(source.maps[0].shape[axis + 2]).add(0.5) * stride / size[axis]  # shares of the picture
        wanted = torch.arange(target.maps[0].shape[axis + 2]).add(0.5) * stride_to / size_to[axis]
        cells = (rows[:, None] if axis == 0 else rows).expand(source.maps[0].shape[2:])[None, None]
        found = teacher.laid_over(cells, source, target)[0, 0]
        assert found.shape == target.maps[0].shape[2:]
        found = found[:, 0] if axis == 0 else found[0]
        torch.testing.assert_close(found, wanted.clamp(rows[0], rows[-1]), rtol=0, atol=1e-6)


def test_equal_grids_change_nothing():
    cells = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    same = grid_of((64, 64), 16)
    torch.testing.assert_close(teacher.laid_over(cells, same, same), cells, rtol=0, atol=1e-6)


# ------------------------------------------------------------------------------------------------ parts and shares

KINDS = ("logits", "labels", "tokens", "features", "token_labels")


def flat(model):
    return torch.cat([one.grad.flatten() for one in model.parameters() if one.grad is not None])


def gradient(model, parts, **options):
    model.zero_grad()
    loss = step.gradients(model, parts, **options).loss
    return loss, flat(model)


def apart(one, other):
    return ((one - other).double().norm() / one.double().norm()).item()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_and_shares_make_the_whole(source, kind):
    made, batch = learning(source, kind, **({} if kind == "token_labels" else {"weight": 0.6, "own": 0.3})), batch_of()
    if kind == "token_labels":
        mixing = TokenMixing(AugmentationSettings(mix_token=1.0), 4, made.student.backbone.strides[-1], 0.1)
        batch = mixing.mix(batch, torch.Generator().manual_seed(3))
        assert batch.exchanged is not None
    loss, whole = gradient(made, [batch])
    parted_loss, parted = gradient(made, list(split(batch, 2)))
    assert parted_loss == pytest.approx(loss, rel=1e-6)
    assert apart(whole, parted) < 1e-5
    shares = list(split(batch, 2))
    counts = sum(torch.stack(list(made.counts(share.targets).values())) for share in shares)
    total = torch.zeros_like(whole)
    for share in shares:
        heard = [counts]

        def reduce(tensors, heard=heard):
            if heard:
                tensors[0].copy_(heard.pop())

        total += gradient(made, [share], reduce=reduce)[1]
    assert apart(whole, total) < 1e-5


def test_padding_counts_for_nothing(source):
    """A picture in a padded batch is as far from the teacher as it is alone."""
    made = learning(source, "tokens", of=student(backbone="resnet/nano").eval())
    made.teacher.size = None
    batch = batch_of(2)
    padding = torch.zeros(2, SIDE, SIDE, dtype=torch.bool)
    padding[0, 32:] = True
    both = made(batch._replace(padding=padding))["teacher"].sum
    first = made(batch_of(1)._replace(images=batch.images[:1, :, :32]))["teacher"].sum
    second = made(batch._replace(images=batch.images[1:], targets=batch.targets[1:]))["teacher"].sum
    assert both.item() == pytest.approx((first + second).item(), rel=0.05)  # convolutions see the zeros of padding
    whole = made(batch)["teacher"].sum
    assert abs(whole - both) > 1e-4


# ------------------------------------------------------------------------------------------------ what stays outside


def test_the_teacher_is_no_part_of_anything(source):
    made, batch = learning(source, "features"), batch_of()
    before = files.digest(made.teacher.model.state_dict())
    own = {id(parameter) for part in (made.student, made.term) for parameter in part.parameters()}
    assert {id(parameter) for parameter in made.parameters()} == own
    assert {key.partition(".")[0] for key in made.state_dict()} == {"student", "term"}
    mover = torch.optim.SGD(made.parameters(), lr=0.1)
    made.train()
    step.step(made, [batch], optimizer=mover)
    assert files.digest(made.teacher.model.state_dict()) == before == made.teacher.digest
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in made.teacher.model.parameters()
    )
    assert not any(module.training for module in made.teacher.model.modules())


@pytest.mark.parametrize(
    ("kind", "changed", "said"),
    [
        ("logits", {"classes": ("a", "b", "c")}, "does not know 'd'"),
        ("token_labels", {"classes": ("a", "b", "c", "d", "e")}, "it has 5 classes"),
        ("token_labels", {"backbone": "vit/nano", "size": (64, 64)}, "does not see the mean of its tokens"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_one_line(tmp_path, kind, changed, said):
    with pytest.raises(UsageError, match=said) as error:
        learning(teacher_in(tmp_path / "run", **changed), kind)
    assert "\n" not in str(error.value)
    if "classes" in changed:
        assert learning(str(tmp_path / "run"), "tokens").term.project.out_features


IMAGES = [name for name in lookup.names("backbones") if build_backbone(f"{name}/nano").frames is None]


@torch.no_grad()
@pytest.mark.parametrize("family", IMAGES)
def test_every_backbone_teaches_its_tokens_and_their_classes_or_refuses(tmp_path, family):
    folder = teacher_in(tmp_path / "run", backbone=f"{family}/nano", size=(SIDE, SIDE))
    batch, model = batch_of(2), load(folder)
    made = learning(folder, "features", of=student("linear", "volo/nano"))
    assert made(batch)["teacher"].mean.isfinite()
    features = model.features(batch)
    same = features.tokens.shape[2] == features.summary.shape[1]
    if same and torch.allclose(features.tokens.mean(1), features.summary, rtol=1e-4, atol=1e-4):
        made = learning(folder, "token_labels", of=student("token_label", "volo/nano"))
        assert made(batch)["auxiliary"].mean.isfinite()
    else:
        with pytest.raises(UsageError, match=r"no logits of tokens|says nothing of one"):
            learning(folder, "token_labels", of=student("token_label", "volo/nano"))


def test_students_that_cannot_learn_are_refused(source, tmp_path):
    with pytest.raises(UsageError, match=r"set model\.head to token_label"):
        learning(source, "token_labels", of=student("linear"))
    with pytest.raises(UsageError, match="several labels"):
        learning(source, "logits", of=student("linear", labels="multi"))
    with pytest.raises(UsageError, match="no teacher is there"):
        learning(str(tmp_path / "none"), "logits")
    grey = build_model(
        "classification", backbone="vit/nano", head="linear", classes=CLASSES, preprocessing=Preprocessing(channels=1)
    )
    with pytest.raises(UsageError, match="3 channels and the student 1"):
        learning(source, "tokens", of=grey)
    dense = build_model("semantic_segmentation", backbone="resnet/nano", head="semantic_fpn", classes=CLASSES)
    with pytest.raises(UsageError, match="no logits of whole images"):
        learning(source, "logits", of=dense)
    dino = build_model("pretraining", backbone="vit/nano", head="dino", classes=(), head_options={"outputs": 8})
    with pytest.raises(UsageError, match="teacher of its own"):
        learning(source, "tokens", of=dino)
    with pytest.raises(UsageError, match="there is no teacher"):
        learning(None, "features", own=0.0)
    kept = dataclasses.replace(student().preprocessing, resize="keep")
    whole = build_model("classification", backbone="vit/nano", head="linear", classes=CLASSES, preprocessing=kept)
    assert learning(source, "tokens", of=whole).teacher.size is None
    with pytest.raises(UsageError, match="pictures of several sizes"):
        learning(source, "tokens", of=whole, size=(64, 64))


def test_a_published_name_is_opened_as_pretrained_does(source, monkeypatch):
    asked = []

    def pretrained(name, *, classes=None):
        asked.append((name, classes))
        return load(source)

    monkeypatch.setattr(teacher, "pretrained", pretrained)
    learning("swin/t.ms_in1k", "logits")
    learning("vit/b16.mae", "tokens")
    assert asked == [("swin/t.ms_in1k", None), ("vit/b16.mae", teacher.UNNAMED)]


# -------------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    return tiny.pictures(tmp_path_factory.mktemp("scans"), 40)


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """A teacher of the classes of the scans."""
    return teacher_in(tmp_path_factory.mktemp("known") / "run", classes=tuple("vbha"), size=(32, 32))


def run(scans, runs, name, source, *, kind="tokens", weight=1.0, own=1.0, resume=False, **sections):
    sections["loss"] = {"teacher": TeacherSettings(model=source, kind=kind, weight=weight, own=own)}
    sections["training"] = {"micro_batch": 12, "ema": 0.9} | sections.get("training", {})
    return loop.train(tiny.recipe(scans, runs, name, **sections), resume=resume, progress=False)


def test_a_distilled_run_resumes_to_the_same_bits(scans, known, tmp_path):
    whole = run(scans, tmp_path, "whole", known, training={"epochs": 2})
    run(scans, tmp_path, "parts", known, training={"epochs": 1}, schedule={"name": "constant"})
    parts = run(scans, tmp_path, "parts", known, training={"epochs": 2}, schedule={"name": "constant"}, resume=True)
    same = run(scans, tmp_path, "same", known, training={"epochs": 2}, schedule={"name": "constant"})
    for one, other in zip(parts.model.state_dict().values(), same.model.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    newest = [sorted((tmp_path / name / "checkpoints").glob("step-*"))[-1] for name in ("parts", "same")]
    beside = [files.read_tensors(folder / "beside.safetensors") for folder in newest]
    assert all(torch.equal(beside[0][key], beside[1][key]) for key in beside[0])
    moments = [files.read_tensors(folder / "optimizer.safetensors") for folder in newest]
    assert any(key.startswith("beside.") for key in moments[0])
    assert all(torch.equal(moments[0][key], moments[1][key]) for key in moments[1])
    assert set(load(tmp_path / "whole").state_dict()) == set(whole.model.state_dict())
    assert not any("project" in key for key in whole.model.state_dict())


def test_a_resume_with_another_teacher_is_refused(scans, known, tmp_path):
    run(scans, tmp_path, "first", known, training={"epochs": 1})
    other = teacher_in(tmp_path / "other", classes=tuple("vbha"), size=(32, 32), seed=5)
    for source, kind in ((other, "tokens"), (known, "features"), (None, "tokens")):
        with pytest.raises(ModelFileError, match="another run: teacher differ"):
            run(scans, tmp_path, "first", source, kind=kind, training={"epochs": 2}, resume=True)
    moved = shutil.copytree(known, tmp_path / "moved")
    assert run(scans, tmp_path, "first", str(moved), training={"epochs": 2}, resume=True).step == 4


def test_a_teacher_of_no_weight_changes_no_bit(scans, known, tmp_path):
    alone = run(scans, tmp_path, "alone", None, training={"epochs": 1}, model={"drop_path": 0.2})
    beside = run(scans, tmp_path, "beside", known, weight=0.0, training={"epochs": 1}, model={"drop_path": 0.2})
    heeded = run(scans, tmp_path, "heeded", known, training={"epochs": 1}, model={"drop_path": 0.2})
    states = [list(one.model.state_dict().values()) for one in (alone, beside, heeded)]
    assert all(torch.equal(one, other) for one, other in zip(states[0], states[1]))
    assert not all(torch.equal(one, other) for one, other in zip(states[0], states[2]))  # control


def test_a_run_says_who_teaches(scans, known, tmp_path):
    run(scans, tmp_path, "one", known, training={"epochs": 1})
    text = (tmp_path / "one" / "summary.txt").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("teacher")]
    digest = files.digest(load(known).state_dict())[:12]
    assert line.startswith("teacher     tokens, weight 1 beside 1, through a linear layer of ")
    assert line.endswith(
        f"; {known}: resnet/nano under linear, 15,560 parameters that stay, at 32 x 32 pixels; {digest}"
    )
    with pytest.raises(ModelFileError, match="no teacher is there"):
        run(scans / "no data are read before", tmp_path, "two", str(tmp_path / "nobody"))


def test_a_backbone_learns_from_another_without_labels(scans, known, tmp_path):
    before = torch.get_rng_state()
    made = run(
        scans,
        tmp_path,
        "looked",
        known,
        task="pretraining",
        kind="features",
        own=0.0,
        model={"head": "masked_patches"},
        training={"epochs": 1, "ema": 0.0},
    )
    torch.set_rng_state(before)
    start = build_model(
        "pretraining", backbone="vit/nano", head="masked_patches", classes=(), preprocessing=made.model.preprocessing
    )
    assert set(start.state_dict()) == set(made.model.state_dict())
    rows = (tmp_path / "looked" / "steps.jsonl").read_text().splitlines()
    assert len(rows) == 2
    assert dataclasses.asdict(made.model.architecture)["head"] == "masked_patches"


def test_dual_vit_learns_token_labels_with_mixed_tokens(scans, known, tmp_path):
    made = run(
        scans,
        tmp_path,
        "dual",
        known,
        kind="token_labels",
        preprocessing={"size": (64, 64)},
        model={"backbone": "dual_vit/nano", "head": "token_label"},
        augmentation={"mix_token": 1.0},
        training={"epochs": 1},
    )
    assert made.step == 2
