import torch
from torch import nn

from patchform.layers.drop import DropPath, linear_rates


class Counting(nn.Module):
    """A branch that notes how many samples it sees."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(4, 4), []

    def forward(self, x, mask=None):
        self.seen.append(len(x))
        return self.linear(x)


def test_dropped_samples_cost_nothing_and_keep_their_value():
    torch.manual_seed(0)
    branch, drop = Counting(), DropPath(0.5).train()
    x = torch.randn(64, 3, 4)
    y = drop(x, branch)
    unchanged = (y == x).all(dim=(1, 2))
    assert branch.seen == [int((~unchanged).sum())]
    assert 16 < branch.seen[0] < 48
    torch.testing.assert_close(y[~unchanged], x[~unchanged] + 2 * branch.linear(x[~unchanged]))


def test_the_mean_over_many_draws_is_the_whole_branch():
    torch.manual_seed(0)
    branch, drop, x = Counting(), DropPath(0.3).train(), torch.randn(1, 4)
    with torch.no_grad():
        mean = torch.stack([drop(x, branch) for _ in range(4000)]).mean(0)
        expected = x + branch.linear(x)
    assert (mean - expected).abs().max() < 0.05
    with torch.no_grad():  # control: without the scale the mean is elsewhere
        assert (expected - (x + 0.7 * branch.linear(x))).abs().max() > 0.05


def test_evaluation_and_rate_zero_leave_nothing_out():
    branch, x = Counting(), torch.randn(5, 4)
    for drop in (DropPath(0.9).eval(), DropPath(0.0).train()):
        assert torch.equal(drop(x, branch), x + branch.linear(x))


def test_all_dropped_still_gives_every_parameter_a_gradient():
    torch.manual_seed(0)
    branch, drop, x = Counting(), DropPath(0.999999).train(), torch.randn(3, 4, requires_grad=True)
    y = drop(x, branch)
    assert torch.equal(y, x)
    y.sum().backward()
    assert branch.linear.weight.grad.abs().max() == 0
    assert torch.equal(x.grad, torch.ones_like(x))


def test_what_lies_beside_is_chosen_alike():
    torch.manual_seed(0)
    x, beside = torch.arange(20.0)[:, None], torch.arange(20.0)[:, None]
    seen = []

    def branch(part, extra, nothing):
        assert nothing is None
        seen.append(torch.equal(part, extra))
        return part

    DropPath(0.5).train()(x, branch, beside, None)
    assert seen == [True]


def test_rates_rise_linearly():
    assert linear_rates(0.2, 3) == [0.0, 0.1, 0.2]
    assert linear_rates(0.2, 1) == [0.0]


def test_a_branch_that_is_computed_for_all():
    torch.manual_seed(0)
    shortcut, branch = torch.randn(64, 3), torch.randn(64, 3)
    wanted = shortcut + branch
    assert torch.equal(DropPath(0.5).eval().add(shortcut, branch.clone()), wanted)
    assert DropPath().add(shortcut.double(), branch).dtype == torch.float64
    kept = DropPath(0.5).add(shortcut, branch) - shortcut  # in training
    dropped = kept.eq(0).all(1)
    assert 0 < dropped.sum() < 64
    torch.testing.assert_close(kept[~dropped], 2 * branch[~dropped])
