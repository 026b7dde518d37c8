"""At the end of a run: its page, and pictures that it was validated on, to the loggers that have a place for them."""

from __future__ import annotations

import dataclasses
import tempfile
from typing import TYPE_CHECKING

from patchform.commands import terminal

if TYPE_CHECKING:
    from collections.abc import Callable

    from patchform.training.loop import Run


def hand_over(finished: Run, say: Callable[[str], None]) -> None:
    """Give them both; weights are not sent. What hinders that is said: the run has ended.

    Args:
        finished: with its page.
        say: called with who gets it.
    """
    from patchform.loggers import base
    from patchform.report import PAGE, write_pictures
    from patchform.training.preparation import plain
    from patchform.training.recipe_files import flat

    recipe, folder = finished.recipe, finished.folder
    if not (takers := base.wanted(recipe.training.loggers)):
        return
    if elsewhere := [name for name in takers if name != "tensorboard"]:  # which may take its time
        say(f"giving the page and a few pictures to {', '.join(elsewhere)}")
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
