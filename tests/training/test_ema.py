"""The moving average against its definition."""

import torch

from patchform.model import build_model
from patchform.records import Preprocessing
from patchform.training import ema


def test_the_memory_begins_short_and_ends_as_it_is_set():
    decays = [ema.decay_at(step, 0.99) for step in range(2000)]
    assert decays[:3] == [1 / 10, 2 / 11, 3 / 12]
    assert decays == sorted(decays)
    assert decays[889] == 890 / 899 < 0.99 == decays[890] == decays[-1]
    assert [ema.decay_at(step, 0.15) for step in range(3)] == [0.1, 0.15, 0.15]
    assert ema.decay_at(5, 0.0) == 0.0


def test_a_short_run_ends_with_what_it_learnt_and_not_with_what_it_began_as():
    """Weights that go from 0 to 1 in 30 steps: of the beginning nothing is left, of the way the last part."""
    warmed = plain = 0.0
    for step in range(30):
        weight = (step + 1) / 30
        decay = ema.decay_at(step, 0.99)
        warmed, plain = decay * warmed + (1 - decay) * weight, 0.99 * plain + 0.01 * weight
    assert plain < 0.2
    assert 0.85 < warmed < 1


def test_the_average_is_the_sum_of_its_definition_and_leaves_the_model_alone():
    torch.manual_seed(0)
    size = Preprocessing(size=(32, 32))
    model = build_model("classification", backbone="vit/nano", head="linear", classes="ab", preprocessing=size).double()
    model.register_buffer("running", torch.zeros(1, dtype=torch.float64))
    average = ema.average_of(model)
    assert not average.training
    assert not any(parameter.requires_grad for parameter in average.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    states = [[parameter.detach().clone() for parameter in model.parameters()]]
    for step in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
            model.running += 1.5
        states.append([parameter.detach().clone() for parameter in model.parameters()])
        ema.update(average, model, 0.9)
        assert average.running.item() == 1.5 * (step + 1)
    weights = [0.9**5] + [0.1 * 0.9 ** (5 - step) for step in range(1, 6)]
    for index, parameter in enumerate(average.parameters()):
        expected = sum(weight * state[index] for weight, state in zip(weights, states))
        torch.testing.assert_close(parameter, expected, rtol=1e-12, atol=1e-12)
    for parameter, state in zip(model.parameters(), states[-1]):
        assert torch.equal(parameter, state)
