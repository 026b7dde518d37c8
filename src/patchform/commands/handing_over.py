"""At the end of a run: its page, and pictures that it was validated on, to the loggers that have a place for them."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import TYPE_CHECKING

from patchform.commands import terminal

if TYPE_CHECKING:
    from patchform.training.loop import Run


def hand_over(finished: Run) -> None:
    """Give them what is there; weights are not sent. What hinders that is said: the run has ended.

    Args:
        finished: with its page, where that could be written.
    """
    from patchform.loggers import base
    from patchform.report import PAGE, write_pictures
    from patchform.training.preparation import plain
    from patchform.training.recipe_files import flat

    recipe, folder = finished.recipe, finished.folder
    if not (folder / PAGE).is_file() or not base.wanted(recipe.training.loggers):
        return
    settings = dict(flat(plain(dataclasses.asdict(recipe))))
    with tempfile.TemporaryDirectory() as place:
        try:
            base.hand_over(
                recipe.training.loggers,
                base.LoggedRun(folder.name, folder, settings, finished.step),
                pictures=write_pictures(folder, finished.data.splits.validation, place),
                files=[folder / PAGE],
                say=terminal.say,
            )
        except Exception as error:
            terminal.say(f"the loggers have not got the page ({' '.join(str(error).split())})")
