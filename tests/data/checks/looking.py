"""What checks find in listings and folders, as (kind, where) rows."""

from patchform.data.checks.base import Subject
from patchform.data.faults import Faults
from patchform.data.listing import Item, Listing
from patchform.doctor import diagnose
from patchform.settings import DataSettings


def found(checks, listing, numbers=(), training=True):
    """The faults that some checks note."""
    faults = Faults()
    for check in checks:
        check.look(Subject(listing, tuple(numbers), training), faults)
    return list(faults)


def of_names(root, names):
    """A listing of these classes without items."""
    return Listing(classes=tuple(names), items=(), root=root)


def of_files(root, names, paths):
    """A listing of class folders: the first part of a path is its class."""
    items = [Item(root / path, (names.index(path.split("/")[0]),)) for path in paths]
    return Listing(classes=tuple(names), items=tuple(items), root=root)


def kinds(root, task=None, part="train", **settings):
    """Kinds of what the doctor finds in a part, with their numbers."""
    diagnosis = diagnose(DataSettings(path=str(root), **settings), task=task)
    return {
        kind: number for each in diagnosis.parts if each.name == part for kind, number in each.faults.counts.items()
    }
