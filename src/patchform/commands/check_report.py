"""What `data check` says: lines for people, and a page with pictures of the faults."""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from patchform import system

if TYPE_CHECKING:
    from patchform.doctor import Diagnosis


def lines(diagnosis: Diagnosis) -> Iterator[str]:
    """Lines for people: what there is, what is wrong with it, and the verdict."""
    from patchform.data.faults import KINDS

    listings = {part.name: part.listing for part in diagnosis.parts}
    counts = ", ".join(f"{len(listing)} {listing.thing}s in {name}" for name, listing in listings.items() if listing)
    classes = next((listing.classes for listing in listings.values() if listing), ())
    yield f"{diagnosis.task}: {counts or 'nothing could be listed'}, {len(classes)} classes"
    yield from (f"{part.name}: {line}" for part in diagnosis.parts for line in part.summary)
    yield from (f"note: {part.name}: {note}" for part in diagnosis.parts for note in part.notes)
    for kind, number, first in diagnosis.by_kind():
        about = KINDS[kind]
        word = "hint" if about.hint else "FAULT" if about.fatal else "mended"
        yield f"{word}: {about.counted(number)} ({kind}); {about.remedy}"
        for name, fault in first:
            yield f"    {name}: {fault.where}" + (f": {fault.what}" if fault.what else "")
        if number > len(first):
            yield f"    and {number - len(first)} more"
    after = "" if diagnosis.fatal else f"; to train: {_training(diagnosis)}"
    yield _verdict(diagnosis) + after


def _training(diagnosis: Diagnosis) -> str:
    return system.joined(["patchform", "train", diagnosis.task, "--data", str(diagnosis.path)])


def _verdict(diagnosis: Diagnosis) -> str:
    faults = f"{diagnosis.fatal} faults" if diagnosis.fatal else "clean: no faults"
    return f"{faults}, {diagnosis.hints} hints"


def write_page(diagnosis: Diagnosis, folder: Path) -> None:
    """A page of the diagnosis, and the pictures on it as files beside."""
    from patchform import doctor, drawing
    from patchform.data.faults import KINDS

    figures: dict[str, list[str]] = {}
    for number, (part, fault, picture) in enumerate(doctor.draw_faults(diagnosis), 1):
        name = f"{fault.kind}-{number}.png"
        drawing.save(drawing.to_png_bytes(picture), folder / name)
        caption = html.escape(f"{part}: {fault.where}: {fault.what}")
        figures.setdefault(fault.kind, []).append(f'<img src="{name}" alt="{caption}" style="max-width: 32rem">')
    body = [f"<h1>{html.escape(diagnosis.path.name)}: {_verdict(diagnosis)}</h1>"]
    for kind, count, first in diagnosis.by_kind():
        rows = "".join(f"<li>{html.escape(f'{part}: {fault.where}: {fault.what}')}</li>" for part, fault in first)
        body.append(f"<h2>{KINDS[kind].counted(count)}</h2><p>{KINDS[kind].remedy}</p><ul>{rows}</ul>")
        body += figures.get(kind, [])
    page = "\n".join(['<!doctype html><html lang="en"><meta charset="utf-8">', *body, "</html>\n"])
    (folder / "index.html").write_text(page, encoding="utf-8", errors="replace")
