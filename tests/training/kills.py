"""The kill-and-resume protocol: real SIGKILLs by logged step, and equal bits at the end."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from patchform.training import checkpoint
from patchform.weights import files

PARTS = ("model", "average", "model-apart", "average-apart", "optimizer", "random", "scaler")
FAILPOINTS = (
    "temporary-made", "half-written", "before-fsync", "before-rename", "after-rename",
    "prune", "before-best", "before-log",
)  # fmt: skip
"""Places in the code where a process may die by its own hand."""


def start(wish, failpoint="", place=None):
    environment = os.environ | {"PATCHFORM_FAILPOINT": failpoint, "OMP_NUM_THREADS": "1"} | (place or {})
    command = [sys.executable, str(Path(__file__).with_name("child.py")), json.dumps(wish)]
    return subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


def finish(process, within=120):
    """Exit code and what it said."""
    said = process.communicate(timeout=within)[1]
    return process.returncode, said


def kill(process, number=signal.SIGKILL):
    os.killpg(process.pid, number)
    return finish(process)


def log(folder):
    """Steps and losses of a run so far; half a line does not count."""
    try:
        text = (folder / "steps.jsonl").read_text()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def kill_after(process, folder, step, pause=0.0):
    """Kill when a step is logged; False if the run was over before."""
    while process.poll() is None:
        lines = log(folder)
        if lines and lines[-1]["step"] >= step:
            time.sleep(pause)
            if process.poll() is None:
                kill(process)
                return True
        time.sleep(0.001)
    finish(process)
    return False


def outcome(folder):
    """Hashes of all that a finished run holds: tensors and generators of its last checkpoint, log, best model."""
    last, notes = checkpoint.newest(folder / "checkpoints")
    assert not notes, notes
    found = {name: tensors_hash(last / f"{name}.safetensors") for name in PARTS}
    state = files.read_json(last / checkpoint.STATE)
    found["random"] += short(json.dumps(state["random"]))
    found["counters"] = json.dumps(state["counters"])
    found["steps"] = short((folder / "steps.jsonl").read_text())
    rows = (folder / "metrics.csv").read_text().splitlines()
    found["metrics"] = short("\n".join(row.rsplit(",", 2)[0] for row in rows))  # without seconds and speed
    found["saved"] = tensors_hash(folder / "model.safetensors")
    found["stale"] = str(len(list(folder.rglob(f"{files.TEMPORARY}*"))))
    return found


def tensors_hash(path):
    if not path.exists():
        return "none"
    text = hashlib.sha256()
    for name, tensor in sorted(files.read_tensors(path).items()):
        text.update(name.encode())
        text.update(tensor.contiguous().flatten().view(-1).numpy().tobytes())
    return text.hexdigest()[:12]


def short(text):
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def trial(wish, points, dice, *, step_time=0.02):
    """Run with a kill after each of the logged steps `points`; the number of kills that landed and the outcome."""
    folder = Path(wish["runs"]) / wish["name"]
    landed, before = 0, {}
    for number, step in enumerate(points):
        process = start(wish | {"resume": number > 0})
        landed += kill_after(process, folder, step, dice.uniform(0, step_time))
        for line in log(folder):
            assert wish.get("mutant") or before.setdefault(line["step"], line) == line, f"step {line['step']} differs"
    code, said = finish(start(wish | {"resume": True}))
    assert code == 0, said
    return landed, outcome(folder)


def differing(one, other):
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
