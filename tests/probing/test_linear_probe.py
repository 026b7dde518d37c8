"""The linear probe against its definition, scikit-learn's optimum, and the model that it is put into."""

import pytest
import torch
from reference import randomise
from torch.nn import functional as F

from patchform.data.collate import collate
from patchform.errors import DataError, UsageError
from patchform.model import build_model, load, save
from patchform.probing.frozen import Frozen
from patchform.probing.linear import DECAYS, Probe, fit
from patchform.records import Label, Preprocessing, Sample

CLASSES = ("a", "b", "c", "d")


def made(count=200, width=12, seed=0, noise=1.5):
    """Features of very unequal scales, that overlap, one of them constant."""
    draw = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, width, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(4, (count,), generator=draw)
    features = centres[labels] + noise * torch.randn(count, width, generator=draw)
    features = features * torch.logspace(-2, 2, width) + torch.linspace(-5, 50, width)
    features[:, 3] = 7.3
    return Frozen(features, labels, tuple(f"{index}.png" for index in range(count)))


def standardised(train, summaries):
    x, mean = train.summaries.double(), train.summaries.double().mean(0)
    std = (x - mean).square().mean(0).sqrt()
    std[3] = 1
    return (summaries.double() - mean) / std, mean, std


def objective(train, weight, bias, decay):
    """For coefficients of standardised features."""
    z, _, _ = standardised(train, train.summaries)
    return F.cross_entropy(z @ weight.T + bias, train.labels) + decay / 2 * weight.square().sum()


def unfolded(train, probe):
    """The coefficients for standardised features, from those for plain ones."""
    _, mean, std = standardised(train, train.summaries)
    return probe.weight.double() * std, probe.bias.double() + probe.weight.double() @ mean


@pytest.mark.parametrize("decay", [1.0, 0.03, 1e-3])
def test_it_is_the_optimum_of_its_definition(decay):
    train = made()
    weight, bias = (part.requires_grad_() for part in unfolded(train, fit(train, CLASSES, decays=(decay,))))
    value = objective(train, weight, bias, decay)
    slopes = torch.autograd.grad(value, (weight, bias))
    assert max(slope.abs().max() for slope in slopes) < 1e-5  # 1e-6 asked for, and the rounding of float32
    with torch.no_grad():
        for seed in range(5):
            step = 0.01 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).double()
            assert objective(train, weight + step, bias, decay) > value
    assert max(
        slope.abs().max() for slope in torch.autograd.grad(objective(train, weight, bias, 2 * decay), weight)
    ) > (1e-3 * decay)  # control


@pytest.mark.parametrize("decay", [1.0, 0.03, 1e-3])
def test_scikit_learn_finds_the_same(decay):
    models = pytest.importorskip("sklearn.linear_model")
    train, test = made(), made(seed=1)
    z, _, _ = standardised(train, train.summaries)
    other = models.LogisticRegression(C=1 / (decay * len(train.labels)), tol=1e-8, max_iter=10_000).fit(z, train.labels)
    theirs = objective(train, torch.tensor(other.coef_), torch.tensor(other.intercept_), decay)
    probe = fit(train, CLASSES, decays=(decay,))
    ours = objective(train, *unfolded(train, probe), decay)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    scores = torch.tensor(other.predict_proba(standardised(train, test.summaries)[0])).float()
    # a slope of 1e-6 where the curvature is at least 1e-3: coefficients are right to 1e-3
    torch.testing.assert_close(probe.scores(test.summaries), scores, rtol=0, atol=1e-3)
    weaker = fit(train, CLASSES, decays=(decay * 0.5,))  # control: another decay is another optimum
    assert objective(train, *unfolded(train, weaker), decay).item() != pytest.approx(theirs.item(), rel=1e-6)
    assert (weaker.scores(test.summaries) - scores).abs().max() > 1e-2


def test_blocks_change_nothing(monkeypatch):
    train = made()
    whole = fit(train, CLASSES, decays=(0.01,))
    monkeypatch.setattr("patchform.probing.linear.ELEMENTS", 12 * 17)
    parts = fit(train, CLASSES, decays=(0.01,))
    torch.testing.assert_close(parts.scores(train.summaries), whole.scores(train.summaries), rtol=0, atol=1e-4)


def test_equal_calls_give_equal_bits_and_draw_nothing():
    state = torch.get_rng_state()
    first, second = fit(made(), CLASSES), fit(made(), CLASSES)
    assert torch.equal(first.weight, second.weight)
    assert torch.equal(first.bias, second.bias)
    assert first[2:] == second[2:]
    assert torch.equal(torch.get_rng_state(), state)


def test_the_decay_is_chosen_on_what_is_held_out():
    noisy, clear = fit(made(60, noise=6.0), CLASSES), fit(made(600, noise=0.3), CLASSES)
    for probe in (noisy, clear):
        assert tuple(one.decay for one in probe.tried) == DECAYS
        best = max(one.top1 for one in probe.tried)
        assert probe.decay in {one.decay for one in probe.tried if one.top1 == best}
    assert noisy.decay > clear.decay  # little and noisy data want a strong one
    assert fit(made(), CLASSES, decays=(0.1,)).tried == ()
    # the chosen probe is fitted to all pictures
    again = fit(made(60, noise=6.0), CLASSES, decays=(noisy.decay,))
    torch.testing.assert_close(again.scores(made().summaries), noisy.scores(made().summaries), rtol=0, atol=1e-4)


def test_a_class_without_a_picture_is_never_chosen():
    train = made()
    probe = fit(train, (*CLASSES, "never"), decays=(1e-3,))
    assert probe.scores(train.summaries)[:, 4].max() < 1e-3
    wanted = fit(train, CLASSES, decays=(1e-3,)).scores(train.summaries)
    torch.testing.assert_close(probe.scores(train.summaries)[:, :4], wanted, rtol=0, atol=1e-3)


OPTIONS = {"linear": {"hidden": 9, "temperature": 3.0, "dropout": 0.5}, "setr": {}}


@pytest.mark.parametrize(("task", "head"), [("classification", "linear"), ("semantic_segmentation", "setr")])
def test_a_model_that_holds_it_says_the_same(task, head, tmp_path):
    model = randomise(
        build_model(
            task,
            backbone="vit/nano",
            head=head,
            classes=("x", "y"),
            preprocessing=Preprocessing(size=(32, 32)),
            head_options=OPTIONS[head],
        )
    ).eval()
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(256, (40, 3, 32, 32), generator=draw, dtype=torch.uint8)
    batch = collate([Sample(image, Label(torch.tensor([0])), "", (32, 32)) for image in images])
    with torch.no_grad():
        summaries = model.features(batch).summary
    train = Frozen(summaries, torch.randint(4, (40,), generator=draw), tuple(map(str, range(40))))
    probe = fit(train, CLASSES, decays=(0.01,))
    save(probe.into(model), tmp_path / "probe")
    found = load(tmp_path / "probe")
    assert found.classes == CLASSES
    scores = torch.stack([label.scores for label in found.predict(batch)])
    torch.testing.assert_close(scores, probe.scores(summaries), rtol=0, atol=1e-4)
    assert (scores - scores.roll(1, 0)).abs().max() > 0.1  # control
    assert (model.classes, model.architecture.head) == (("x", "y"), head)  # the model itself is as it was


def test_what_is_refused():
    model = build_model("classification", backbone="vit/nano", head="linear", classes=("x",))
    with pytest.raises(UsageError, match="not a probe of this model"):
        fit(made(), CLASSES, decays=(0.1,)).into(model)
    tokens = Probe(torch.zeros(2, 48), torch.zeros(2), ("a", "b"), 0.1, output="tokens")
    with pytest.raises(UsageError, match="not a probe of this model's summary"):
        tokens.into(model)
    for decays in ((), (0.0,), (0.1, -1.0), (float("inf"),)):
        with pytest.raises(UsageError, match="positive"):
            fit(made(), CLASSES, decays=decays)
    lonely = Frozen(torch.randn(4, 3), torch.arange(4), tuple("wxyz"))
    with pytest.raises(DataError, match="hold some out"):
        fit(lonely, CLASSES)
    assert fit(lonely, CLASSES, decays=(0.1,)).scores(lonely.summaries).argmax(1).tolist() == [0, 1, 2, 3]
