"""An exported file is proved, and what was found is kept beside it: FILE.check.json."""

from __future__ import annotations

import json
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from patchform import __version__
from patchform.data.listing import Listing
from patchform.errors import ModelFileError
from patchform.export.check import CheckOptions, Proof, check
from patchform.export.numbers import Trial
from patchform.model import Model
from patchform.runtime.file_model import FileModel
from patchform.runtime.opening import DEFAULT, open_model
from patchform.runtime.sessions import RuntimeOptions
from patchform.weights import files

SUFFIX = ".check.json"
"""What the name of the report has more than that of the file."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was proved of a file, with what, and where."""

    file: Path
    model: FileModel
    proof: Proof
    data: str
    """The root of the pictures."""
    left_out: int
    """Pictures that were not looked at, beyond those that were asked for."""
    seconds: float

    @property
    def parts(self) -> list[Path]:
        """The file, and what belongs to it beside it."""
        return parts_of(self.file)

    def as_json(self) -> dict[str, Any]:
        """Plain values, without NaN or infinity."""
        proof, said = self.proof, self.model.description
        record = {
            "file": self.file.name,
            "proved": proof.proved,
            "faults": proof.faults,
            "warnings": proof.warnings,
            "bytes": sum(part.stat().st_size for part in self.parts),
            "sha256": {part.name: files.sha256_of(part) for part in self.parts},
            "dtype": said.dtype,
            "patchform": __version__,
            "runtime": self.runtime,
            "threads": self.model.session.threads,
            "processor": processor(),
            "data": self.data,
            "pictures": proof.pictures,
            "left_out": self.left_out,
            "metric": proof.metric,
            "before": proof.before,
            "after": proof.after,
            "control": _trial(Trial("deviation of pixels one per cent off", proof.control, 0, "")),
            "sizes": [_trial(trial) for trial in proof.trials],
            "answers": None if proof.path is None else _trial(proof.path),
            "images": None if proof.images is None else _trial(proof.images),
            "seconds": round(self.seconds, 1),
        }
        finite: dict[str, Any] = _finite(record)
        return finite

    @property
    def runtime(self) -> str:
        """Name and version, such as "onnxruntime (cpu) 1.32.0"."""
        name = self.model.session.name
        package = sys.modules.get(name.split()[0].lower())
        return f"{name} {getattr(package, '__version__', '')}".strip()

    def lines(self) -> list[str]:
        """A short table."""
        proof, said = self.proof, self.model.description
        size = sum(part.stat().st_size for part in self.parts) / 1e6
        rows = [
            ("file", f"{self.file}, {size:.1f} MB, {said.dtype}"),
            ("runtime", f"{self.runtime}, {self.model.session.threads} threads, on {processor()}"),
            ("pictures", f"{self.data or 'none'}" + f", {self.left_out} left out" * (self.left_out > 0)),
        ]
        if proof.trials:
            shapes = dict.fromkeys(trial.shape.split(" x ", 1)[1] for trial in proof.trials)
            batches = dict.fromkeys(trial.shape.split(" x ", 1)[0] for trial in proof.trials)
            rows += [("sizes", f"{' '.join(shapes)}, in batches of {' and '.join(batches)}")]
            rows += [("", _sentence(_whole(proof.trials)))]
        rows += [("predict", f"{trial.shape}: {_sentence(trial)}") for trial in (proof.path,) if trial is not None]
        rows += [("all", _sentence(trial)) for trial in (proof.images,) if trial is not None]
        rows += [("control", f"{_sentence(Trial('', proof.control, 0, ''))}, were pixels scaled by 1.01")]
        if proof.metric:
            rows += [(proof.metric, f"{_points(proof.before[proof.metric])} -> {_points(proof.after[proof.metric])}")]
        rows += [("warning", warning) for warning in proof.warnings]
        rows += [("fault", fault) for fault in proof.faults]
        rows += [("", f"{'proved' if proof.proved else 'not proved'} in {self.seconds:.0f} s")]
        width = max(len(name) for name, _ in rows)
        return [f"{name:{width}}  {text}" for name, text in rows]


def prove(
    file: Path,
    model: Model,
    listing: Listing | None,
    options: CheckOptions,
    *,
    left_out: int = 0,
    runtime: RuntimeOptions = DEFAULT,
) -> Report:
    """Check a file against the model that it was exported from, and write the report beside it.

    Args:
        file: exported.
        model: of its run folder, loaded.
        listing: labelled pictures (`export.pictures`); None: there are none, and nothing is proved but numbers.
        options: of the check.
        left_out: how many more pictures there are.
        runtime: what runs the file.

    Raises:
        ModelFileError: the file cannot be opened, or is of another model than the folder.
        DataError: a picture that cannot be read.
        ResourceError: the report cannot be written.
    """
    began = time.perf_counter()
    opened = open_model(file, runtime)
    if not isinstance(opened, FileModel):
        raise ModelFileError("a run folder proves itself", where=file, remedy="name an exported file")
    if opened.description.weights != files.digest(model.state_dict()):
        remedy = "name the run that it was exported from: --run RUN"
        raise ModelFileError("it was exported from other weights than those of this run", where=file, remedy=remedy)
    proof = check(opened, model, listing, options)
    report = Report(
        file=file,
        model=opened,
        proof=proof,
        data="" if listing is None else str(listing.root),
        left_out=left_out,
        seconds=time.perf_counter() - began,
    )
    files.replace_text(report_path(file), json.dumps(report.as_json(), indent=1, allow_nan=False) + "\n")
    return report


def report_path(file: Path) -> Path:
    """Where the report on a file lies."""
    return file.with_name(file.name + SUFFIX)


def parts_of(file: Path) -> list[Path]:
    """A file, and those beside it that belong to it: weights of large ONNX files, the .bin of an .xml."""
    beside = (file.with_name(f"{file.name}.data"), file.with_suffix(".bin"))
    belongs = {".onnx": beside[:1], ".xml": beside[1:]}
    return [file, *(part for part in belongs.get(file.suffix.lower(), ()) if part.exists())]


def refuse(report: Report) -> None:
    """Raise ModelFileError for a file that is not what its model is."""
    if report.proof.faults:
        remedy = "try another --dtype, or allow more: --allow POINTS" if report.proof.lost else "please report it"
        raise ModelFileError(report.proof.faults[0], where=report.file.name, remedy=remedy)


def processor() -> str:
    """Its name, and the widest instructions that torch takes."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return f"{name}, {torch.backends.cpu.get_cpu_capability()}"


def _trial(trial: Trial) -> dict[str, Any]:
    found = trial.agreement
    decisions = {name: count._asdict() for name, count in found.decisions.items()}
    return {"shape": trial.shape, "apart": dict(found.apart), "decisions": decisions, "tied": trial.tied}


def _whole(trials: list[Trial]) -> Trial:
    whole = trials[0]
    for trial in trials[1:]:
        whole = Trial("", whole.agreement | trial.agreement, whole.tied + trial.tied, whole.fault or trial.fault)
    return whole


def _sentence(trial: Trial) -> str:
    """Such as "scores 1.1e-07 apart; 0 of 40 images decided otherwise"."""
    numbers = ", ".join(f"{name} {value:.1e}" for name, value in trial.agreement.apart.items())
    decisions = "; ".join(
        f"{count.different} of {count.all} {name} decided otherwise"
        for name, count in trial.agreement.decisions.items()
        if count.all
    )
    tied = f"{trial.tied} of them hang on rounding" if trial.tied else ""
    return "; ".join(part for part in (f"{numbers} apart" if numbers else "", decisions, tied) if part) or "nothing"


def _points(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.2f}"


def _finite(value: Any) -> Any:
    """JSON knows no infinity."""
    if isinstance(value, float) and abs(value) == float("inf"):
        return str(value)
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return [_finite(part) for part in value] if isinstance(value, list) else value
