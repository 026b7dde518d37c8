"""Steps in float16: the loss is scaled, what is beyond the range is skipped and counted, nothing else is excused."""

import math

import kills
import pytest
import tiny
import torch
from losses import gradients

from patchform.errors import DivergedError
from patchform.model import build_model
from patchform.records import Batch, Label
from patchform.training import loop, scaling, step
from patchform.training.scaling import LossScaling

NUMBER = 6


def model_of(seed=0):
    torch.manual_seed(seed)
    return build_model("classification", backbone="vit/nano", head="linear", classes=["a", "b"]).train()


def batch_of(value=1.0):
    torch.manual_seed(1)
    labels = tuple(Label(torch.tensor([index % 2])) for index in range(NUMBER))
    return Batch(torch.rand(NUMBER, 3, 32, 32) * value, labels, ("x",) * NUMBER, ((32, 32),) * NUMBER)


def take(model, scaler, batch=None, lr=0.1):
    mover = torch.optim.SGD(model.parameters(), lr=lr)
    return step.step(model, [batch or batch_of()], optimizer=mover, precision="float16", scaler=scaler, clip=1.0)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_a_step_is_that_of_float32_as_far_as_float16_goes(monkeypatch):
    monkeypatch.setattr(scaling, "FIRST_SCALE", 128.0)
    exact, half = model_of(), model_of()
    before = weights(exact)
    plain = step.step(exact, [batch_of()], optimizer=torch.optim.SGD(exact.parameters(), lr=0.1), clip=1.0)
    scaler = LossScaling("cpu", "float16")
    result = take(half, scaler)
    assert result.finite
    assert scaler.skipped == 0
    assert result.norm == pytest.approx(plain.norm, rel=0.05)  # not 128 times as much
    moved, wanted = weights(half) - before, weights(exact) - before
    assert 0 < (moved - wanted).norm() < 0.1 * wanted.norm()
    assert not torch.equal(moved, wanted)


def test_a_gradient_beyond_the_range_moves_nothing_and_is_scaled_less(monkeypatch):
    monkeypatch.setattr(scaling, "FIRST_SCALE", 2.0**24)
    model, scaler = model_of(), LossScaling("cpu", "float16")
    before = weights(model)
    scales = []
    while True:
        result = take(model, scaler)
        scales.append(scaler.get_scale())
        assert math.isfinite(result.loss)
        if result.finite:
            break
        assert torch.equal(weights(model), before)
    assert scaler.skipped == len(scales) - 1 >= 3
    assert scales[:-1] == [2.0 ** (23 - number) for number in range(len(scales) - 1)]
    assert scales[-1] == scales[-2]
    assert not torch.equal(weights(model), before)


def test_a_loss_that_is_not_finite_is_no_matter_of_scale():
    model, scaler = model_of(), LossScaling("cpu", "float16")
    before, scale = weights(model), scaler.get_scale()
    assert not take(model, scaler, batch_of(float("nan"))).finite
    assert (scaler.skipped, scaler.get_scale()) == (0, scale)
    assert torch.equal(weights(model), before)


def test_a_gradient_that_is_not_finite_unscaled_is_a_divergence(monkeypatch):
    monkeypatch.setattr(scaling, "FIRST_SCALE", 1.0)
    model, scaler = model_of(), LossScaling("cpu", "float16")
    model.head.classifier.weight.register_hook(lambda gradient: gradient * float("inf"))
    assert not take(model, scaler).finite
    assert (scaler.skipped, scaler.get_scale()) == (0, 1.0)


def test_other_precisions_are_not_scaled():
    for precision in ("float32", "bfloat16"):
        scaler = LossScaling("cpu", precision)
        assert (scaler.get_scale(), scaler.tensors()) == (1.0, {})
    model, plain = model_of(), gradients(model_of(), batch_of())
    assert step.gradients(model, [batch_of()], scaler=LossScaling("cpu", "float32")) == plain


def test_what_is_kept_goes_on():
    scaler, model = LossScaling("cpu", "float16"), model_of()
    for _ in range(4):
        take(model, scaler)
    kept = {name: tensor.clone() for name, tensor in scaler.tensors().items()}
    other = LossScaling("cpu", "float16")
    other.load_tensors(kept)
    assert other.tensors() == kept
    assert other.skipped == scaler.skipped
    take(model_of(), scaler)
    take(model_of(), other)
    assert other.tensors() == scaler.tensors() != kept
    new = LossScaling("cpu", "float16")
    new.load_tensors({})  # of a run that was of another precision before
    assert new.get_scale() == scaling.FIRST_SCALE


def test_a_run_says_what_it_skips_and_resumes_to_the_same_bits(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scaling, "FIRST_SCALE", 2.0**25)
    sections = {"training": {"precision": "float16", "ema": 0.9}}
    whole = loop.train(tiny.recipe(pictures, tmp_path, "whole", **sections), progress=False)
    said = capsys.readouterr().err
    assert "step 1 was skipped, its gradient is beyond float16 (1 so far); losses are scaled by 1.67772e+07" in said
    skipped = said.count("was skipped")
    assert 3 <= skipped < 14
    recipe = tiny.recipe(pictures, tmp_path, "cut", **sections)
    passes = []

    def failpoint(name):
        passes.extend([1] * (name == "before-log"))
        if len(passes) == 5:  # two steps after a save, in the midst of those that are skipped
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(loop, "failpoint", failpoint)
        with pytest.raises(KeyboardInterrupt):
            loop.train(recipe, progress=False)
    capsys.readouterr()
    loop.train(recipe, resume=True, progress=False)
    assert "step 4 was skipped, its gradient is beyond float16 (4 so far)" in capsys.readouterr().err
    outcome = kills.outcome(tmp_path / "cut")
    assert outcome["scaler"] != "none"
    assert outcome == kills.outcome(whole.folder)


def test_a_run_that_only_skips_has_diverged(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(scaling, "LEAST_SCALE", 2.0**22)
    monkeypatch.setattr(scaling, "FIRST_SCALE", 2.0**25)
    monkeypatch.setattr(step, "LEAST_SCALE", 2.0**22)
    with pytest.raises(DivergedError, match="at step 4 "):
        loop.train(tiny.recipe(pictures, tmp_path, training={"precision": "float16"}), progress=False)
