"""The linear head against torch's own losses, and whole batches against their parts."""

import itertools
import math

import pytest
import torch
from losses import means
from reference import randomise
from torch.nn import functional as F

from patchform.errors import DataError, UsageError
from patchform.heads.linear import Linear
from patchform.records import FeatureInfo, Features, Label

CLASSES, WIDTH = 7, 12
FEATURES = FeatureInfo((WIDTH,), (1,), WIDTH)
WEIGHTS = [0.3, 1.0, 2.5, 0.7, 1.1, 4.0, 0.2]


def head(**options):
    torch.manual_seed(0)
    built = Linear(FEATURES, classes=CLASSES, **options)
    torch.nn.init.normal_(built.classifier.weight)
    torch.nn.init.normal_(built.classifier.bias)
    return built


def features(images=10, seed=1):
    return Features((), (), (1, 1), summary=torch.randn(images, WIDTH, generator=torch.Generator().manual_seed(seed)))


def hard(images=10, seed=2):
    return torch.randint(CLASSES, (images,), generator=torch.Generator().manual_seed(seed))


def targets_of(kind, images=10, seed=2):
    draw = torch.Generator().manual_seed(seed)
    if kind == "soft":
        mixed = torch.rand(images, CLASSES, generator=draw).softmax(1)
        return [Label(row.argmax(0, keepdim=True), row) for row in mixed]
    if kind == "many":
        present = torch.rand(images, CLASSES, generator=draw) > 0.6
        present[0] = False  # an image with no class at all
        return [Label(row.nonzero().flatten()) for row in present]
    return [Label(row) for row in hard(images, seed)[:, None]]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_single_label_loss_is_torchs_cross_entropy(smoothing, weights):
    built = head(smoothing=smoothing, class_weights=weights)
    raw = built(features())
    wanted = F.cross_entropy(
        raw, hard(), weight=None if weights is None else torch.tensor(weights), label_smoothing=smoothing
    )
    torch.testing.assert_close(means(built.loss(raw, targets_of("hard")))["loss"], wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(means(built.loss(raw, targets_of("hard", seed=3)))["loss"], wanted, rtol=1e-3)  # control


def test_soft_target_loss_is_torchs_cross_entropy():
    built = head(smoothing=0.1)
    raw, targets = built(features()), targets_of("soft")
    wanted = F.cross_entropy(raw, torch.stack([target.scores for target in targets]), label_smoothing=0.1)
    torch.testing.assert_close(means(built.loss(raw, targets))["loss"], wanted, rtol=1e-6, atol=1e-6)


def test_a_hard_target_is_a_soft_target_of_ones_and_zeros():
    built = head(smoothing=0.2, class_weights=WEIGHTS)
    raw, targets = built(features()), targets_of("hard")
    soft = [Label(target.classes, F.one_hot(target.classes[0], CLASSES).float()) for target in targets]
    torch.testing.assert_close(means(built.loss(raw, targets)), means(built.loss(raw, soft)), rtol=0, atol=1e-6)
    torch.testing.assert_close(built.counts(targets), built.counts(soft))


def test_multi_label_loss_is_torchs_binary_cross_entropy():
    targets = targets_of("many")
    present = torch.stack([torch.zeros(CLASSES).index_fill(0, target.classes, 1.0) for target in targets])
    plain, weighted = head(labels="multi"), head(labels="multi", class_weights=WEIGHTS, smoothing=0.1)
    raw = plain(features())
    wanted = F.binary_cross_entropy_with_logits(raw, present)
    torch.testing.assert_close(means(plain.loss(raw, targets))["loss"], wanted, rtol=1e-6, atol=1e-6)
    weights = torch.tensor(WEIGHTS)
    each = F.binary_cross_entropy_with_logits(raw, present * 0.9 + 0.05, reduction="none")
    wanted = (each * weights).sum() / weights.sum() / len(raw)
    torch.testing.assert_close(means(weighted.loss(raw, targets))["loss"], wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("labels", "kind", "weights", "smoothing"),
    [
        *itertools.product(["single"], ["hard", "soft"], [None, WEIGHTS], [0.0, 0.1]),
        *itertools.product(["multi"], ["many", "soft"], [None, WEIGHTS], [0.0, 0.1]),
    ],
)
def test_micro_batches_weighted_by_count_are_the_whole_batch(labels, kind, weights, smoothing):
    built = head(labels=labels, class_weights=weights, smoothing=smoothing)
    rows, targets = features().summary, targets_of(kind)

    def gradient_of(parts):
        built.zero_grad()
        whole = built.counts(targets)["loss"]
        for part in parts:
            raw = built(Features((), (), (1, 1), summary=rows[part]))
            (built.loss(raw, targets[part])["loss"].sum / whole).backward()
        return [parameter.grad.clone() for parameter in built.parameters()]

    parts = [slice(0, 4), slice(4, 8), slice(8, 10)]  # the last one is short
    torch.testing.assert_close(gradient_of(parts), gradient_of([slice(0, 10)]), rtol=1e-6, atol=1e-6)


def test_decode_single():
    built = head(temperature=2.0)
    raw = built(features())
    predictions = built.decode(raw, [(1, 1)] * len(raw))
    scores = torch.stack([prediction.scores for prediction in predictions])
    torch.testing.assert_close(scores, torch.softmax(raw / 2, 1))
    assert torch.equal(torch.cat([prediction.classes for prediction in predictions]), raw.argmax(1))


def test_decode_multi_keeps_what_is_above_one_half():
    built = head(labels="multi")
    raw = torch.full((3, CLASSES), -1.0)
    raw[0, [1, 4]], raw[2, 6] = 3.0, 0.1
    predictions = built.decode(raw, [(1, 1)] * 3)
    assert [prediction.classes.tolist() for prediction in predictions] == [[1, 4], [], [6]]
    torch.testing.assert_close(predictions[0].scores, raw[0].sigmoid())


def test_decode_of_a_perfect_output_is_the_target():
    for labels, kind in (("single", "hard"), ("multi", "many")):
        built, targets = head(labels=labels), targets_of(kind)
        raw = torch.stack([torch.full((CLASSES,), -9.0).index_fill(0, target.classes, 9.0) for target in targets])
        for prediction, target in zip(built.decode(raw, [(1, 1)] * len(raw)), targets):
            assert torch.equal(prediction.classes, target.classes)
        assert means(built.loss(raw, targets))["loss"] < 1e-3


def test_loss_starts_near_chance_and_falls_on_one_batch():
    torch.manual_seed(0)
    built, batch, targets = Linear(FEATURES, classes=CLASSES, hidden=16), features(), targets_of("hard")
    optimizer = torch.optim.SGD(built.parameters(), lr=1.0)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = means(built.loss(built(batch), targets))["loss"]
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(CLASSES), abs=0.02)
    assert losses[-1] < 0.3 * losses[0]


def test_the_summary_has_a_gradient_at_the_first_step():
    summary = features().summary.requires_grad_()
    built = Linear(FEATURES, classes=CLASSES)
    means(built.loss(built(Features((), (), (1, 1), summary=summary)), targets_of("hard")))["loss"].backward()
    assert summary.grad.abs().min() > 0


def test_parameter_names_and_hidden_layer():
    built = head(hidden=5, class_weights=WEIGHTS)
    assert set(built.state_dict()) == {"pre_logits.weight", "pre_logits.bias", "classifier.weight", "classifier.bias"}
    batch = features()
    hidden = torch.tanh(F.linear(batch.summary, built.pre_logits.weight, built.pre_logits.bias))
    torch.testing.assert_close(built(batch), F.linear(hidden, built.classifier.weight, built.classifier.bias))


def test_bfloat16_logits_give_a_float32_loss():
    built = head()
    assert means(built.loss(built(features()).bfloat16(), targets_of("hard")))["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 1.0},
        {"smoothing": -0.1},
        {"labels": "both"},
        {"temperature": 0.0},
        {"class_weights": [1.0]},
        {"class_weights": [0.0] * CLASSES},
        {"class_weights": [math.nan] * CLASSES},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(UsageError):
        Linear(FEATURES, classes=CLASSES, **options)


def test_targets_that_do_not_fit_are_refused():
    built = head()
    with pytest.raises(DataError, match="exactly one class"):
        built.loss(built(features()), targets_of("many"))
    with pytest.raises(UsageError, match="hard and soft"):
        built.loss(built(features()), [*targets_of("hard", 5), *targets_of("soft", 5)])
    with pytest.raises(UsageError, match="summary"):
        built(Features((), (), (1, 1)))


def test_parts_are_classified_one_by_one_and_averaged():
    built = randomise(Linear(FEATURES, classes=CLASSES, parts=(5, 7)))
    summary = features().summary
    first, second = built.classifier.parts
    wanted = (first(summary[:, :5]) + second(summary[:, 5:])) / 2
    torch.testing.assert_close(built(features()), wanted)
    with pytest.raises(UsageError, match="parts of"):
        Linear(FEATURES, classes=CLASSES, parts=(5, 6))
