"""A folder of class folders of videos: `clips/waving/1.mp4`. The name of a folder is the name of its class.

A folder of pictures inside a class folder is a video too, and they are its frames: `clips/waving/1/frame-001.jpg`.
Pictures in the class folder itself, and beside videos, are ignored.
"""

from __future__ import annotations

from pathlib import Path

from patchform.data.class_folders import has_folders, read_folders
from patchform.data.faults import Faults
from patchform.data.formats.base import CLASS_FOLDERS, Format
from patchform.data.listing import SUFFIXES, VIDEO_SUFFIXES, VIDEOS, Listing, first_suffix
from patchform.settings import DataSettings


class VideoFolder(Format):
    """A folder of class folders of videos: `clips/waving/1.mp4`. The name of a folder is the name of its class."""

    tasks = ("video_classification",)
    layout = "a folder of class folders of videos"
    certainty = CLASS_FOLDERS

    def recognises(self, path: Path) -> bool:
        """Whether `path` is a folder with at least one folder that could be a class."""
        return has_folders(path)

    def is_meant(self, path: Path) -> bool:
        """Whether a folder holds videos: GIFs, and folders of pictures, may be meant otherwise."""
        first = first_suffix(path, (*SUFFIXES, *VIDEO_SUFFIXES))
        return first is not None and first not in SUFFIXES

    def read(self, path: Path, settings: DataSettings, classes: tuple[str, ...] | None, faults: Faults) -> Listing:
        """List the videos of all class folders, in deeper folders too. Arguments and errors as of `read_folders`."""
        return read_folders(path, settings, classes, VIDEOS)
