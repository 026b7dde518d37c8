"""Several processes that train one model: the steps of one process, equal bits after a stop, and one end for all."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import kills
import pytest
import tiny
import torch

from patchform.training import checkpoint
from patchform.weights import files

PAIR = 2
MASKED_DINO = {
    "task": "pretraining",
    "model": {"head": "dino", "head_options": {"outputs": 64, "hidden": 32, "bottleneck": 16, "masked": 1.0}},
    "augmentation": {"views": 2, "local_views": 1, "local_size": 16},
}


def pair(wish, failpoint="", mutants=(None, None)):
    """Two children that know of one another, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(PAIR):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PAIR, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        mutant = {"mutant": mutants[rank]} if mutants[rank] else {}
        started.append(kills.start(wish | mutant, failpoint, {name: str(value) for name, value in place.items()}))
    return started


def finished(processes):
    """Exit codes and what was said."""
    codes, said = zip(*(kills.finish(process) for process in processes), strict=True)
    return codes, said


def losses(folder):
    return [float.fromhex(line["loss"]) for line in kills.log(folder)]


@pytest.fixture(scope="module")
def runs(pictures, tmp_path_factory):
    """A folder for runs, and how to ask for one."""
    folder = tmp_path_factory.mktemp("several")
    return lambda name, **wish: {"path": str(pictures), "runs": str(folder), "name": name, **wish}


def folder_of(wish):
    return Path(wish["runs"]) / wish["name"]


@pytest.mark.parametrize("batch", [67, 199])  # 200 pictures: 67 + 67 + 66, and 199 + 1, of which one process has none
def test_two_processes_take_the_steps_of_one(runs, batch):
    sections = {"training": {"batch_size": batch, "ema": 0.9}, "optimizer": {"clip": 1.0}}
    alone = runs(f"alone{batch}", sections=sections)
    assert kills.finish(kills.start(alone))[0] == 0
    both = runs(f"both{batch}", sections=sections)
    codes, said = finished(pair(both))
    assert codes == (0, 0), said
    assert "to learn from" in said[0]
    assert said[1] == ""
    one, two = losses(folder_of(alone)), losses(folder_of(both))
    assert len(one) == 2 * -(-200 // batch)
    assert two == pytest.approx(one, rel=2e-5)
    assert (folder_of(both) / "metrics.csv").read_text().count("\n") == 3
    deaf = runs(f"deaf{batch}", sections=sections)  # the control: gradients that are not added up
    finished(pair(deaf, mutants=("deaf", "deaf")))
    assert losses(folder_of(deaf)) != pytest.approx(one, rel=2e-5)


def test_two_processes_normalise_together(runs):
    """Where `model.norms` is synchronised they take the steps of one; where it is not, they say so."""
    sections = {"training": {"batch_size": 50, "epochs": 1}}
    found = {}
    for norms, start in (("learn", lambda wish: [kills.start(wish)]), ("synchronised", pair), ("apart", pair)):
        model = {"backbone": "resnet/nano", "norms": "synchronised" if norms == "synchronised" else "learn"}
        wish = runs(f"norms {norms}", sections=sections | {"model": model})
        codes, said = finished(start(wish))
        assert set(codes) == {0}, said
        assert ("the statistics of a process's share" in said[0]) == (norms == "apart")
        found[norms] = losses(folder_of(wish)), files.read_tensors(folder_of(wish) / "model.safetensors")
    assert found["synchronised"][0] == pytest.approx(found["learn"][0], rel=1e-4)
    running = [name for name in found["learn"][1] if "running" in name]
    for name in running:
        torch.testing.assert_close(found["synchronised"][1][name], found["learn"][1][name], rtol=1e-3, atol=1e-4)
    assert found["apart"][0] != pytest.approx(found["learn"][0], rel=1e-4)  # control


@pytest.mark.slow
@pytest.mark.parametrize("method", ["everything", "dino", "batch statistics"])
def test_killed_and_resumed_they_end_with_the_same_bits(runs, method):
    sections = {
        "everything": tiny.EVERYTHING,
        "dino": MASKED_DINO,
        "batch statistics": {"model": {"backbone": "resnet/nano"}, "training": {"ema": 0.9}},
    }[method]
    whole = runs(f"whole {method}", sections=sections)
    codes, said = finished(pair(whole))
    assert codes == (0, 0), said
    cut = runs(f"cut {method}", sections=sections)
    processes = pair(cut)
    assert kills.kill_after(processes[0], folder_of(cut), 10)
    codes, said = finished(processes[1:])  # notices, and does not wait
    assert codes == (7,)
    assert "another process of this run ended" in said[0]
    codes, said = finished(pair(cut | {"resume": True}))
    assert codes == (0, 0), said
    assert kills.outcome(folder_of(cut)) == kills.outcome(folder_of(whole))
    if method == "everything":
        alone = kills.finish(kills.start(cut | {"resume": True}))[1]
        assert "resuming with processes 1, was 2" in alone


@pytest.mark.slow
def test_a_signal_to_one_stops_all_and_is_saved(runs):
    whole = runs("unstopped", sections=tiny.EVERYTHING)
    assert finished(pair(whole))[0] == (0, 0)
    cut = runs("stopped", sections=tiny.EVERYTHING)
    processes = pair(cut)
    while len(kills.log(folder_of(cut))) < 4:
        assert processes[0].poll() is None
        time.sleep(0.01)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert finished(processes)[0] == (143, 143)
    saved = checkpoint.newest(folder_of(cut) / "checkpoints")[0]
    assert saved.name == f"step-{kills.log(folder_of(cut))[-1]['step']:08d}"
    assert finished(pair(cut | {"resume": True}))[0] == (0, 0)
    assert kills.outcome(folder_of(cut)) == kills.outcome(folder_of(whole))


@pytest.mark.slow
def test_what_one_cannot_read_stops_all_and_is_saved(runs):
    wish = runs("unreadable")
    codes, said = finished(pair(wish, mutants=(None, "unreadable")))
    assert codes == (3, 3)
    assert said[0].endswith("PeerError: another process of this run failed; see what it says\n")
    assert "DataError: the picture is damaged" in said[1]
    saved = checkpoint.newest(folder_of(wish) / "checkpoints")[0]
    assert json.loads((saved / checkpoint.STATE).read_text())["counters"]["step"] == 5
    codes, said = finished(pair(runs("unreadable")))  # the name is taken now
    assert codes == (5, 5), said


def test_half_of_a_place_is_refused(runs):
    code, said = kills.finish(kills.start(runs("lost"), place={"WORLD_SIZE": "2"}))
    assert (code, said) == (
        2,
        "UsageError: WORLD_SIZE is set and RANK is not; start it with torchrun, or unset WORLD_SIZE\n",
    )


def test_two_processes_skip_what_is_beyond_float16_together(runs):
    """One decision for both: the gradient is added up before it is looked at."""
    sections = {"training": {"precision": "float16", "epochs": 1, "batch_size": 40}}
    wish, alone = (runs(name, sections=sections, mutant="large_scale") for name in ("together", "by one"))
    codes, said = finished(pair(wish, mutants=("large_scale", "large_scale")))
    assert codes == (0, 0), said
    code, one = kills.finish(kills.start(alone))
    assert code == 0, one
    assert said[0].count("was skipped") == one.count("was skipped") >= 2
    assert said[1].count("was skipped") == 0  # it is not heard
    assert losses(folder_of(wish)) == pytest.approx(losses(folder_of(alone)), rel=2e-3)
