"""The attentive probe: torch's attention, equal bits, and a task that no mean solves."""

import pytest
import torch
from torch import nn

from patchform.errors import DataError, DivergedError
from patchform.probing import attentive, linear
from patchform.probing.frozen import Frozen, scored


@pytest.mark.parametrize("heads", [1, 3])
def test_it_is_multi_head_attention_of_one_query(heads):
    torch.manual_seed(0)
    own = attentive.Attentive(24, 5, heads).double()
    for parameter in own.parameters():
        nn.init.normal_(parameter)
    theirs = nn.MultiheadAttention(24, heads, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([torch.eye(24), own.key.weight, own.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([torch.zeros(24), torch.randn(24), own.value.bias]))  # of keys: no matter
        theirs.out_proj.weight.copy_(torch.eye(24))
        theirs.out_proj.bias.zero_()
    tokens = torch.randn(4, 7, 24, dtype=torch.float64)
    x = own.norm(tokens)
    found = theirs(own.query.expand(4, 1, 24), x, x)[0][:, 0]
    torch.testing.assert_close(own(tokens), own.classifier(found), rtol=1e-10, atol=1e-10)
    assert (own(tokens) - own(tokens.flip(0))).abs().max() > 0.1  # the control


def needles(count, seed):
    """One of twelve tokens points one way, and the sign of its last number is the class; the others are louder."""
    numbers = torch.Generator().manual_seed(seed)
    tokens = torch.randn(count, 12, 16, generator=numbers)
    labels = torch.randint(2, (count,), generator=numbers)
    places = torch.randint(12, (count,), generator=numbers)
    rows = torch.arange(count)
    tokens[:, :, 0] = 0.0
    tokens[rows, places, 0] = 6.0
    tokens[rows, places, -1] = 2.0 * labels - 1
    return Frozen(tokens, labels, tuple(map(str, range(count))), "sequence")


def test_it_finds_what_a_mean_does_not():
    train, test = needles(600, 0), needles(200, 1)
    state = torch.get_rng_state()
    seen = []
    probe = attentive.fit(train, "ab", progress=lambda *done: seen.append(done))
    assert torch.equal(torch.get_rng_state(), state)
    assert seen[-1] == (attentive.EPOCHS, attentive.EPOCHS)
    top1 = scored(probe.scores, test, "ab").numbers["top1"]
    means = [part._replace(summaries=part.summaries.mean(1)) for part in (train, test)]
    control = scored(linear.fit(means[0], "ab").scores, means[1], "ab").numbers["top1"]
    assert top1 > 0.95
    assert control < 0.8
    again = attentive.fit(train, "ab")
    assert torch.equal(probe.scores(test.summaries), again.scores(test.summaries))
    other = attentive.fit(train, "ab", seed=1)
    assert not torch.equal(probe.scores(test.summaries), other.scores(test.summaries))


def test_what_is_refused():
    train = needles(8, 0)
    with pytest.raises(DataError, match="these features are no tokens"):
        attentive.fit(train._replace(summaries=train.summaries.mean(1)), "ab")
    with pytest.raises(DivergedError, match="is not finite"):
        attentive.fit(train._replace(summaries=train.summaries * float("inf")), "ab")
