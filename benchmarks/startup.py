"""How long the command line takes to answer: processor and wall seconds of whole processes, the best of several.

python benchmarks/startup.py            # about half a minute on a quiet core
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

LINES = (
    "--help", "trian", "train clasification", "train classification --optimzer.lr 1", "evaluate nowhere",
    "predict nowhere x.jpg", "train classification --data nowhere", "train classification --model resnet50 --data .",
    "models resnet50", "models swin/t", "models", "recipes", "completion words -- train classification/",
)  # fmt: skip


def seconds(line: str, folder: str) -> tuple[float, float]:
    """Processor and wall seconds of one process."""
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "patchform", *line.split()], capture_output=True, cwd=folder, check=False)
    wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--skip", action="append", default=[], metavar="LINE", help="leave out a line")
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    print("| patchform ... | processor s | wall s |\n|---|--:|--:|")
    with tempfile.TemporaryDirectory() as folder:
        for line in LINES:
            if line not in arguments.skip:
                rounds = [seconds(line, folder) for _ in range(arguments.rounds)]
                processor, wall = (min(each) for each in zip(*rounds))
                print(f"| {line} | {processor:.2f} | {wall:.2f} |", flush=True)


if __name__ == "__main__":
    main()
