"""Files that describe a data set of YOLO's lines: data.yaml, in which names stay the text that is written.

path: .                    # followed where it stays inside the folder of the file, and nowhere else
train: images/train
val: images/val
names: [no, yes, 1e3]      # three texts: YAML's own reading would be False, True and 1000.0
kpt_shape: [17, 3]         # lines are a box and so many key points
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from patchform.data.faults import Faults
from patchform.data.listed_names import exists, is_inside, near_path
from patchform.data.listing import is_hidden, quoted
from patchform.data.text_files import read_text
from patchform.errors import DataError

USUAL = ("data.yaml", "data.yml", "dataset.yaml")
"""Names of such files."""
SUFFIXES = (".yaml", ".yml")
_KEYS = frozenset(("names", "train", "val", "test", "nc"))
_NOTHING = ("", "~", "null", "Null", "NULL")
_LARGEST = 1 << 22
"""Bytes of a file of another name that is looked into."""


class _Texts(yaml.SafeLoader):
    """Takes plain scalars as they are written: what is a number is known by who asks."""

    yaml_implicit_resolvers = {
        letter: [(tag, pattern) for tag, pattern in resolvers if tag == "tag:yaml.org,2002:merge"]
        for letter, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Raises ConstructorError for a key that is there twice, of which the last one would count."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise yaml.constructor.ConstructorError(problem=f'the key "{twice}" a second time')
        return super().construct_mapping(node, deep)


class Keypoints(NamedTuple):
    """What follows the box in a line of key points."""

    number: int
    values: int
    """Of each: 2 for x, y, 3 with how well it is seen."""

    @property
    def total(self) -> int:
        """Numbers beside class and box."""
        return self.number * self.values


class DataYaml(NamedTuple):
    """A file and what is in it: texts, lists of such, and tables of such by texts."""

    file: Path
    content: dict[str, Any]

    def names(self) -> tuple[str, ...] | None:
        """Names of the classes in the order of their numbers; None where there are none. Raises DataError."""
        names = self.content.get("names")
        if not names or names in _NOTHING:
            return None
        if isinstance(names, dict):
            numbers = {int(key): name for key, name in names.items() if key.isascii() and key.isdigit()}
            if sorted(numbers) != list(range(len(names))):
                raise DataError("names are not numbered from 0 without gaps", where=self.file)
            names = [numbers[number] for number in range(len(names))]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError("names are no list of names", where=self.file, remedy="write names: [cat, dog]")
        if "" in names:
            raise DataError(f"class number {names.index('')} has no name", where=self.file, remedy="write one")
        return tuple(names)

    def check_number(self, faults: Faults) -> None:
        """Note an `nc` that is not the number of names."""
        number, names = self.content.get("nc"), self.names()
        if number is not None and names is not None and number != str(len(names)):
            faults.add("names-count", self.file.name, f"nc {number}, {len(names)} names")

    def keypoints(self) -> Keypoints | None:
        """What `kpt_shape` says. Raises DataError."""
        shape = self.content.get("kpt_shape")
        if shape is None or shape in _NOTHING:
            return None
        numbers = [int(one) for one in shape if isinstance(one, str) and one.isascii() and one.isdigit()]
        if not isinstance(shape, list) or len(numbers) != 2 or numbers[0] < 1 or numbers[1] not in (2, 3):
            raise DataError("kpt_shape is not two whole numbers", where=self.file, remedy="write kpt_shape: [17, 3]")
        return Keypoints(*numbers)

    def part(self, key: str) -> Path | None:
        """Where a part lies: below `path` if that is inside the folder of the file, else below that folder.

        Raises:
            DataError: several places, one outside of the folder, or one that is not there.
        """
        value = self.content.get(key)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if value is None or value == [] or value in _NOTHING:
            return None
        if not isinstance(value, str):
            raise DataError(f"{key} is several places", where=self.file, remedy="list the pictures in one text file")
        folder, value = self.file.parent, value.replace("\\", "/")
        base = self._base()
        homes = [*([folder / base] if base else []), folder]
        # exports of Roboflow write "../train/images" for train/images beside the file
        names = [value] if is_inside(value) else [value.removeprefix("../")] * value.startswith("../")
        if Path(value).is_absolute() and Path(value).is_relative_to(folder.absolute()):
            names = [Path(value).relative_to(folder.absolute()).as_posix()]
        names = [name for name in names if is_inside(name)]
        if not names:
            what = f'{key} leads out of its folder: "{value[:80]}"'
            raise DataError(what, where=self.file, remedy=self._instead(value))
        for candidate in (home / name for home in homes for name in names):
            if exists(candidate):
                return candidate
        near = next((other for home in homes for name in names if (other := near_path(home, name))), None)
        what, remedy = f'no such {key}: "{value[:80]}"', f"looked in {quoted(homes)}"
        remedy += f'; there is "{near}"' if near else ""
        if base is None:
            what += f", and {self._refused()}"
            remedy += f"; {self._instead(value)}"
        raise DataError(what, where=self.file, remedy=remedy)

    def notes(self) -> tuple[str, ...]:
        """What is not followed."""
        return (self._refused(),) if self._base() is None else ()

    def _base(self) -> str | None:
        """`path` relative to the folder of the file; "" for that folder, None for what leads out of it."""
        base, folder = self.content.get("path"), self.file.parent.absolute()
        if not isinstance(base, str) or base in _NOTHING:
            return ""
        if base.startswith("~") or ":" in base.split("/")[0]:
            return None  # a home, or a drive
        whole = Path(posixpath.normpath((folder / base.replace("\\", "/")).as_posix()))
        for root in (folder, folder.resolve()):
            if whole.is_relative_to(root):
                inside = whole.relative_to(root).as_posix()
                return "" if inside == "." else inside
        return None

    def _refused(self) -> str:
        return f'path "{str(self.content["path"])[:80]}" leads out of its folder and is not followed'

    def _instead(self, value: str) -> str:
        base = str(self.content.get("path", "")).replace("\\", "/") if self._base() is None else ""
        folder = posixpath.normpath((self.file.parent / base / value).as_posix())[:160]
        what = (
            f"put {self.file.name} beside the pictures, with relative paths, or set data.path to the folder of pictures"
        )
        return f"{what}, {folder}"


def read_yaml(file: Path) -> DataYaml:
    """What a file says. Raises DataError."""
    try:
        loader = _Texts(read_text(file))
        try:
            content = loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"not YAML ({str(error).splitlines()[0][:80]})", where=file) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise DataError("no keys", where=file, remedy="write names, train and val")
    return DataYaml(file, content)


def describes(path: Path) -> bool:
    """Whether it is such a file, by what it speaks of, or cannot be read."""
    try:
        return is_yaml(path) and not _KEYS.isdisjoint(read_yaml(path).content)
    except DataError:
        return True  # whoever reads it says why not


def is_yaml(path: Path) -> bool:
    """Whether it is a file whose name ends so."""
    return path.suffix.lower() in SUFFIXES and path.is_file()


def find_yaml(folder: Path, *, usual: bool = False) -> Path | None:
    """The file that describes what is in a folder: of a usual name, or else the only one with names of classes.

    Args:
        folder: where it is looked for.
        usual: no other names.

    Raises:
        DataError: several.
    """
    file = next((folder / name for name in USUAL if (folder / name).is_file()), None)
    if file is not None or usual or not folder.is_dir():
        return file
    others = [entry for entry in sorted(folder.iterdir()) if is_yaml(entry) and not is_hidden(entry.name)]
    described = [entry for entry in others if _has_names(entry)]
    if len(described) > 1:
        what = f"{len(described)} files that name classes: {quoted([file.name for file in described])}"
        raise DataError(what, where=folder, remedy="set data.path to one of them")
    return described[0] if described else None


def _has_names(file: Path) -> bool:
    try:
        return file.stat().st_size <= _LARGEST and "names" in read_yaml(file).content
    except (DataError, OSError):
        return False


def above(path: Path, most: int) -> Sequence[Path]:
    """A path and so many folders above it."""
    return (path, *path.absolute().parents)[: most + 1]
