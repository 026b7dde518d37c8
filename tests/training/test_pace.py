"""How long a run will take, with a clock of the test's own; and what it says meanwhile, in a pipe and on a terminal."""

import io
import re
import sys

import pytest

from patchform.commands import terminal
from patchform.training import progress
from patchform.training.pace import Pace, Work, in_words
from patchform.training.progress import Reporter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (640, "10 min"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds, words):
    assert in_words(seconds) == words


def test_validations_that_are_due_are_counted():
    work = Work(steps=10, steps_per_validation=4, samples=5)
    assert [work.validations(step) for step in (0, 3, 4, 8, 9, 10)] == [0, 0, 1, 2, 2, 3]  # one at the end
    assert Work(8, 4, 5).validations(8) == 2


def test_what_is_left_is_what_steps_and_validations_took():
    clock, work = Clock(), Work(steps=8, steps_per_validation=4, samples=30)
    pace = Pace(0, work, clock)
    assert pace.left() is None
    clock.now = 100.0  # the first step makes what later ones find there
    pace.step(1, 10)
    for step in (2, 3, 4):
        clock.now += 2.0
        pace.step(step, 10)
    assert pace.left() == pytest.approx(4 * 2 + 2 * (2 / 10 * 30 / 3))  # a forward pass is a third of a step
    clock.now += 5.0
    pace.validating(15)  # half of it in 5 seconds
    assert pace.left() == pytest.approx(4 * 2 + 1.5 * 10)
    clock.now += 7.0
    pace.validating(30)
    pace.validated(4)
    assert pace.left() == pytest.approx(4 * 2 + 12)
    for step in (5, 6, 7, 8):
        clock.now += 2.0
        pace.step(step, 10)
    assert pace.left() == pytest.approx(12)  # the last validation
    pace.validated(8)
    assert pace.left() == 0


def test_a_run_that_goes_on_counts_what_is_left_of_it():
    clock = Clock()
    pace = Pace(4, Work(8, 4, 0), clock)
    for step in (5, 6):
        clock.now += 3.0
        pace.step(step, 1)
    assert pace.left() == pytest.approx(2 * 3)


def test_a_pipe_gets_a_line_after_a_while_and_then_every_half_a_minute(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress.time, "monotonic", clock)
    with Reporter(shown=True) as reporter:
        clock.now = 40.0
        reporter.looking("to learn from", 500, 900)
        reporter.looking("to learn from", 501, 900)
        reporter.begin(0, Work(100, 50, 20))
        for step in range(1, 81):  # one a second
            clock.now += 1.0
            reporter.step(step, epoch=1, loss=0.5, images=4)
            if step == 50:
                clock.now += 60.0
                reporter.validating(20)
                reporter.epoch(1, step, {"top1": 0.25})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "looking at the files to learn from: 500 of 900"
    assert [" ".join(line.split()[:4]) for line in lines[1:]] == [
        "epoch 1 step 5/100", "epoch 1 step 35/100", "validating 20 of 20", "epoch 1 step 50/100",
        "epoch 1 step 80/100",
    ]  # fmt: skip
    assert all(re.search(r"  \d+ s left$", line) for line in lines[1:]), lines
    assert "  top1 0.25  " in lines[4]


def test_a_bar_is_drawn_and_what_is_said_meanwhile_is_printable(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(variable, raising=False)
    with terminal.printable_streams(), Reporter(shown=True) as reporter:  # as the command line has it
        reporter.begin(0, Work(1000, 500, 100))
        reporter.step(123, epoch=12, loss=0.1234, images=64)
        reporter.note("a\x1b[31mb")
    text = screen.getvalue()
    assert "\\x1b[31mb" in text  # what was to steer the terminal
    assert text.count("\\x1b") == text.count("\\x1b[31mb")  # and the bar is no text about itself
    shown = [re.sub("\x1b\\[[0-9;?]*[A-Za-z]", "", part) for part in re.split("[\r\n]", text)]
    bars = [part for part in shown if "step 123/1000" in part]
    assert bars
    assert all(len(bar) <= 80 and "━" in bar for bar in bars)
