"""Kill training runs with SIGKILL, resume them, and compare every bit with runs that nobody stopped.

    python benchmarks/kill_and_resume.py [--trials 10] [--mutants]

For 0 and for 2 loader processes: a reference run made twice, then trials of three kills each: by logged step, the last
one within a few steps of a resume, and one inside a checkpoint's write. A trial counts only if all three landed.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "training"))

import kills
import tiny

from patchform.weights import files

OPTIONS = {**tiny.EVERYTHING, "training": tiny.EVERYTHING["training"] | {"epochs": 6}}  # 42 steps, saved every 3


def in_the_write(process, folder):
    """Kill while a temporary folder of a checkpoint is there."""
    while process.poll() is None:
        if len(kills.log(folder)) > 8 and list((folder / "checkpoints").glob(f"{files.TEMPORARY}*")):
            kills.kill(process)
            return True
    kills.finish(process)
    return False


def trial(wish, dice):
    """Three kills; whether all landed, and the outcome."""
    folder = Path(wish["runs"]) / wish["name"]
    first = dice.randrange(4, 20)
    landed = kills.kill_after(kills.start(wish), folder, first, dice.uniform(0, 0.02))
    resume = wish | {"resume": True}
    landed += kills.kill_after(kills.start(resume), folder, first + dice.randrange(1, 4), dice.uniform(0, 0.02))
    landed += in_the_write(kills.start(resume), folder)
    code, said = kills.finish(kills.start(resume))
    if code:
        sys.exit(f"could not resume: {said}")
    return landed == 3, kills.outcome(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--mutants", action="store_true", help="also run resumes that forget something")
    wanted = parser.parse_args()
    dice, began = random.Random(0), time.perf_counter()
    with tempfile.TemporaryDirectory() as place:
        pictures = str(tiny.pictures(Path(place) / "pictures"))
        references = []
        for workers in (0, 2):
            sections = {**OPTIONS, "data": OPTIONS["data"] | {"workers": workers}}
            wish = {"path": pictures, "runs": place, "sections": sections}
            for name in ("once", "again"):
                code, said = kills.finish(kills.start(wish | {"name": f"{name}-{workers}"}))
                if code:
                    sys.exit(said)
                references.append(kills.outcome(Path(place) / f"{name}-{workers}"))
            for name, value in references[-1].items():
                print(f"  {name:10} {value}")
            equal = counted = 0
            while counted < wanted.trials:
                landed, outcome = trial(wish | {"name": f"trial-{workers}-{counted}-{dice.random()}"}, dice)
                counted, equal = counted + landed, equal + (landed and outcome == references[-1])
                if landed and outcome != references[-1]:
                    print("  differing:", ", ".join(kills.differing(outcome, references[-1])))
            print(f"{workers} workers: {equal} of {counted} equal, three kills each", flush=True)
        same = all(reference == references[0] for reference in references)
        print(f"undisturbed runs: {'equal' if same else 'DIFFERENT'} (2 of each number of workers)")
        for mutant in ("no_rng", "no_ema", "no_optimizer", "no_schedule", "restart_epoch") if wanted.mutants else ():
            sections = {"path": pictures, "runs": place, "sections": OPTIONS, "name": mutant, "mutant": mutant}
            _, outcome = kills.trial(sections, [11], dice)
            print(f"{mutant}: differs in {', '.join(kills.differing(outcome, references[0])) or 'NOTHING'}", flush=True)
    print(f"{time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
