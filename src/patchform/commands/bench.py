"""How fast a trained model is: in torch, compiled, and as exported files, side by side."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from patchform.commands import early_checks, inference_options, terminal
from patchform.errors import ModelFileError, UsageError, unheard
from patchform.schema import Range, number

if TYPE_CHECKING:
    from patchform.bench.comparison import Row
    from patchform.bench.contestants import Contestant
    from patchform.bench.machine import Machine
    from patchform.descriptions import Preprocessing

EXAMPLE = "patchform bench runs/first --threads 2"
SECONDS, PATIENCE = 3.0, number(float, Range(above=0, most=3600))
NOTE = "tensors in, outputs out: reading and resizing pictures is not counted"


class Comparison(NamedTuple):
    """What `bench` found."""

    rows: tuple[Row, ...]
    size: tuple[int, int]
    """(height, width) of the input, pixels."""
    frames: int
    """Of a clip; 0: pictures."""
    machine: Machine

    def as_json(self) -> dict[str, Any]:
        """Plain values; seconds."""
        return {
            "size": list(self.size),
            "frames": self.frames,
            "machine": self.machine._asdict(),
            "note": NOTE,
            "rows": [row.as_json() for row in self.rows],
        }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `bench` takes."""
    what = (
        "run folders, with the exported files in them, and exported files; the first is what others are compared with"
    )
    parser.add_argument("targets", metavar="RUN|FILE", nargs="+", help=what)
    parser.add_argument("--size", metavar="HxW", help="input in pixels (default: what the first one was trained with)")
    batch = "pictures at once, for pictures a second (default: the best of 1, 8 and 32)"
    parser.add_argument("--batch", type=inference_options.IMAGES, metavar="N", help=batch)
    threads = "of each (default: as many as torch takes)"
    parser.add_argument("--threads", type=inference_options.IMAGES, metavar="N", help=threads)
    seconds = f"for each contestant and batch, after three calls that warm it up (default: {SECONDS:g})"
    parser.add_argument("--seconds", type=PATIENCE, default=SECONDS, metavar="S", help=seconds)
    skip = "leave out contestants whose names have this in them, such as compiled"
    parser.add_argument("--skip", metavar="WORD", action="append", default=[], help=skip)
    trust = "run .pt2 files too, whose opening can run code of their author"
    parser.add_argument("--trust", action="store_true", help=trust)


def run(arguments: argparse.Namespace) -> int:
    """Print a table, or JSON."""
    for target in arguments.targets:
        early_checks.trained(target)
    if arguments.size is not None:
        inference_options.picture_size(arguments.size)
    console = terminal.stderr_console()
    with terminal.progress_bars(console) as progress:
        found = bench(
            *arguments.targets,
            size=arguments.size,
            batch=arguments.batch,
            threads=arguments.threads,
            seconds=arguments.seconds,
            skip=arguments.skip,
            trust=arguments.trust,
            progress=progress,
            say=terminal.above(console),
        )
    if arguments.json:
        print(json.dumps(found.as_json(), allow_nan=False))
        return 0
    _print(found)
    return 0


def bench(
    *targets: str | Path,
    size: str | tuple[int, int] | None = None,
    batch: int | None = None,
    threads: int | None = None,
    seconds: float = SECONDS,
    skip: Sequence[str] = (),
    trust: bool = False,
    **report: Any,
) -> Comparison:
    """Time models and files side by side: in turns, in one process, with the same threads and the same inputs.

    Args:
        targets: run folders, which bring the files in them, and files, which bring the model of the run folder that
            they lie in.
        size: (height, width) of the input, or "224x224"; default: that of the first target's preprocessing.
        batch: pictures at once; default: the best of 1, 8 and 32.
        threads: of each; default: as many as torch takes.
        seconds: for each contestant and batch.
        skip: leave out contestants whose names have one of these in them.
        trust: run .pt2 files too, whose opening can run code of their author.
        report: `progress`, called with what is done, how much, of how much; `say`, called with remarks, sentences.

    Raises:
        UsageError: no target, or none that takes part.
        ModelFileError: a run or a file that is damaged.
    """
    import torch

    from patchform.bench.comparison import BATCHES, compare, random_inputs
    from patchform.bench.machine import machine

    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        contestants, preprocessing = _contestants([Path(target) for target in targets], trust, report.get("say"))
        contestants = [one for one in contestants if not any(word in one.name for word in skip)]
        if not contestants:
            raise UsageError("nobody takes part", remedy="leave out less")
        shown = inference_options.picture_size(size) if isinstance(size, str) else size or preprocessing.size

        def inputs(number: int) -> Any:
            return random_inputs(preprocessing, shown, number)

        batches = BATCHES if batch is None else (batch,)
        rows = compare(contestants, batches, inputs, seconds, progress=report.get("progress"))
        return Comparison(tuple(rows), shown, preprocessing.frames, machine(torch.get_num_threads()))
    finally:
        torch.set_num_threads(before)


def _contestants(
    targets: Sequence[Path], trust: bool, say: Callable[[str], None] | None
) -> tuple[list[Contestant], Preprocessing]:
    """All who take part, and what pictures the first target is for. A file is named once."""
    import torch

    from patchform.bench.contestants import Compiled, Eager, of_file
    from patchform.model import Model, load
    from patchform.runtime.opening import describe, is_exported

    found: list[Contestant] = []
    models: dict[Path, Model] = {}
    seen: set[Path] = set()
    first: Preprocessing | None = None
    threads = torch.get_num_threads()
    several = len({(target if target.is_dir() else target.parent).resolve() for target in targets}) > 1
    for target in targets:
        folder = target.parent if is_exported(target) else target
        files = [target] if folder != target else _files(folder, trust)
        if is_exported(target):
            first = first or describe(target).preprocessing
        prefix = f"{folder.name}/" if several else ""
        own: list[Contestant] = []
        if folder.resolve() not in models and (folder == target or _is_run(folder)):
            model = models[folder.resolve()] = load(folder, say=say or unheard)
            first = first or model.preprocessing
            own += [Eager(model, f"{prefix}eager")]
            own += [Compiled(model, f"{prefix}compiled")] if folder == target else []
        fresh = [path for path in files if path.resolve() not in seen]
        seen.update(path.resolve() for path in fresh)
        exported = [one for path in fresh for one in of_file(path, threads=threads, trust=trust, prefix=prefix)]
        found += [*own, *exported] if folder == target else [*exported, *own]
    if first is None:
        raise UsageError("nothing to time", remedy="name a run folder or an exported file")
    return found, first


def _files(folder: Path, trust: bool) -> list[Path]:
    """Exported files in a run folder."""
    suffixes = (".onnx", ".xml", *((".pt2",) if trust else ()))
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes) if folder.is_dir() else []


def _is_run(folder: Path) -> bool:
    from patchform.weights.stopped import find_model

    try:
        find_model(folder)
    except ModelFileError:
        return False
    return True


def _print(found: Comparison) -> None:
    from rich.console import Console
    from rich.table import Table

    of = f"{found.size[0]} x {found.size[1]} pixels" + f", {found.frames} frames" * (found.frames > 0)
    table = Table("", "one: ms", "9 of 10 within", "times as fast", "a second", "at once", "MB", title=of)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in found.rows:
        latency, ratio, best = row.latency, row.ratio, row.best
        table.add_row(
            row.name,
            "-" if latency is None else f"{1e3 * latency.median:.2f}",
            "-" if latency is None else f"{1e3 * latency.p90:.2f}",
            "-" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f})",
            "-" if best is None else f"{best[1]:.1f}",
            "-" if best is None else str(best[0]),
            "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 140, markup=False).print(table)
    for row in found.rows:
        for reason in row.skipped:
            print(f"{row.name}: left out, {reason}")
    print("\n".join(found.machine.lines()))
    print(f"times as fast: as the first, round by round, with quartiles; {NOTE}")
