import math

import pytest
import torch
from scipy.optimize import minimize_scalar

from patchform.errors import DivergedError
from patchform.metrics.calibration import (
    BESIDE,
    SAMPLE,
    Calibration,
    PixelCalibration,
    best_temperature,
    expected_calibration_error,
)
from patchform.records import Label, Regions


def by_definition(confidence, correct, bins=15):
    """Equation 3 of Guo et al., one image at a time."""
    members = [[] for _ in range(bins)]
    for value, right in zip(confidence, correct):
        index = next(i for i in range(bins) if value <= (i + 1) / bins + BESIDE or i + 1 == bins)
        members[index].append((value, right))
    error = 0.0
    for bin_ in filter(None, members):
        accuracy = sum(right for _, right in bin_) / len(bin_)
        average = sum(value for value, _ in bin_) / len(bin_)
        error += len(bin_) / len(confidence) * abs(accuracy - average)
    return error


def data(images=400, classes=5, *, seed=0, heat=1.0):
    """Logits whose labels are drawn from softmax(logits): calibrated at heat 1, over-confident above it."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, classes, generator=draw) * 2
    truth = torch.multinomial(logits.softmax(1), 1, generator=draw)[:, 0]
    return logits * heat, truth


@pytest.mark.parametrize("seed", range(4))
def test_error_equals_the_definition(seed):
    logits, truth = data(seed=seed)
    confidence, guess = logits.softmax(1).double().max(1)
    wanted = by_definition(confidence.tolist(), (guess == truth).tolist())
    assert expected_calibration_error(confidence, guess == truth) == pytest.approx(wanted, abs=1e-12)
    assert abs(wanted - by_definition(confidence.tolist(), (guess == truth).tolist(), bins=3)) > 1e-4  # control


def test_values_on_the_edges_of_bins():
    confidence = torch.tensor([0.0, 1 / 15, 2 / 15, 0.2, 0.4, 0.6, 1.0, 1.0], dtype=torch.float64)
    correct = torch.tensor([0, 1, 0, 1, 0, 1, 1, 0], dtype=torch.bool)
    wanted = by_definition(confidence.tolist(), correct.tolist())
    assert expected_calibration_error(confidence, correct) == pytest.approx(wanted, abs=1e-12)


def test_rounding_around_an_edge_changes_nothing():
    """A model of three classes that knows nothing: all confidences are a third, but for rounding."""
    right, steady = torch.arange(300) % 3 == 0, torch.full((300,), 1 / 3)
    moved = steady + torch.where(right, 1e-6, -1e-6)
    assert expected_calibration_error(moved, right) == pytest.approx(
        expected_calibration_error(steady, right), abs=1e-6
    )
    apart = steady + torch.where(right, 1e-4, -1e-4)
    assert expected_calibration_error(apart, right) > 0.4  # control: in two bins


def test_known_errors():
    sure, right = torch.ones(10), torch.ones(10, dtype=torch.bool)
    assert expected_calibration_error(sure, right) == 0
    assert expected_calibration_error(sure, ~right) == 1
    assert expected_calibration_error(sure[:0], right[:0]) is None


@pytest.mark.parametrize("heat", [0.3, 1.0, 3.0])
def test_temperature_is_the_minimum_of_the_log_loss(heat):
    logits, truth = data(heat=heat)
    wanted = minimize_scalar(
        lambda log_t: torch.nn.functional.cross_entropy(logits.double() / math.exp(log_t), truth).item(),
        bounds=(-4, 4),
        method="bounded",
        options={"xatol": 1e-8},
    ).x
    found = best_temperature(logits, truth)
    assert found == pytest.approx(math.exp(wanted), rel=1e-4)
    assert found == pytest.approx(heat, rel=0.15)  # the labels were drawn at this heat
    assert best_temperature(logits.log_softmax(1), truth) == pytest.approx(found, rel=1e-4)  # log p serves as well


def test_temperature_at_its_bounds():
    truth = torch.arange(5)
    assert best_temperature(torch.eye(5), truth) == pytest.approx(0.05, rel=1e-6)  # always right: as cold as may be
    assert best_temperature(torch.eye(5), (truth + 1) % 5) == pytest.approx(20, rel=1e-6)
    assert best_temperature(torch.zeros(0, 5), truth[:0]) is None


def test_metric_finds_and_mends_over_confidence():
    logits, truth = data(2000, heat=3.0)
    metric = Calibration()
    for rows, labels in zip(logits.softmax(1).split(64), truth.split(64)):
        metric.update([Label(row.argmax(0, keepdim=True), row) for row in rows], [Label(one[None]) for one in labels])
    scores = metric.compute()
    confidence, guess = logits.softmax(1).max(1)
    assert scores.numbers["ece"] == pytest.approx(expected_calibration_error(confidence, guess == truth), abs=1e-9)
    assert scores.numbers["temperature"] == pytest.approx(3, rel=0.1)
    assert scores.numbers["ece_after"] < 0.25 * scores.numbers["ece"]
    assert sum(row[2] for row in scores.tables["reliability"].values) == 2000
    assert scores.best is None


def regions(seed, size=(40, 50), classes=3):
    """Pixels whose scores are true probabilities, but for a temperature of 2."""
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.randn(classes, *size, generator=generator) * 2).softmax(0)
    truth = torch.multinomial(scores.flatten(1).T, 1, generator=generator).view(size)
    return Regions(scores.argmax(0), (scores.log() * 2).softmax(0)), Regions(truth.to(torch.uint8))


def test_pixels_are_sampled_and_judged_as_images_are():
    pairs = [regions(seed) for seed in range(20)]
    pairs[3][1].classes[:] = 255
    pairs[4][1].classes[:39] = 255
    metric, again, every = PixelCalibration(), PixelCalibration(), Calibration()
    metric.update([guess for guess, _ in pairs], [truth for _, truth in pairs])
    for guess, truth in reversed(pairs):
        again.update([guess], [truth])
        scores = guess.scores.flatten(1).T
        counted = (truth.classes.flatten() != 255).nonzero()[:, 0].tolist()
        every.update(
            [Label(scores[i].argmax()[None], scores[i]) for i in counted],
            [Label(truth.classes.flatten()[i].long()[None]) for i in counted],
        )
    found, whole = metric.compute(), every.compute()
    assert found.samples == 19 * SAMPLE
    assert found.numbers == pytest.approx(again.compute().numbers)
    assert found.numbers["temperature"] == pytest.approx(2, rel=0.05)
    for name, value in whole.numbers.items():
        assert found.numbers[name] == pytest.approx(value, abs=0.02 if name != "temperature" else 0.1)
    assert found.numbers["ece"] > 3 * found.numbers["ece_after"]
    assert found.tables["reliability"].columns[2] == "pixels"


def test_pixels_without_scores_do_not_count_and_none_are_none():
    guess, truth = regions(0)
    metric = PixelCalibration()
    metric.update([guess._replace(scores=None)], [truth])
    metric.update([guess], [Regions(truth.classes * 0 + 255)])
    assert metric.compute().numbers == {"ece": None, "temperature": None, "ece_after": None}
    with pytest.raises(DivergedError):
        PixelCalibration().update([guess._replace(scores=guess.scores * torch.nan)], [truth])
