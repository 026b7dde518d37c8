"""The registry: a file name is an entry. "swin/t" -> module `backbones/swin.py`, row `VARIANTS["t"]`.

The registry is closed: a name from a recipe or a model file can only select a file of this package, or of a folder that
the user named (`--plugin DIR`, `patchform.add_plugin`). A file that is opened never causes an import.
"""

from __future__ import annotations

import difflib
import fnmatch
import importlib
import importlib.abc
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, TypeVar, Unpack, get_args, get_origin, get_type_hints

from patchform import foreign_names, model_table, schema
from patchform.descriptions import Published, Variant, WeightsFile
from patchform.errors import UsageError
from patchform.schema import Range

OF_A_TRAINING = ("losses", "augmentations", "optimizers", "schedules")
"""Kinds of which plug-ins alone have files (`own_parts`)."""
KINDS = (
    *("backbones", "published", "heads", "pretraining", "tasks", "data/formats", "inspect", "loggers"),
    *OF_A_TRAINING,
)
T = TypeVar("T")
NOT_OPTIONS = ("self", "architecture", "features", "classes", "backbone", "preprocessing")
"""Of a constructor, what the rest of the model says."""
LARGEST_OPTION = 1_000_000
_FILES_OF_WEIGHTS = (".safetensors", ".npz", ".json", ".bin", ".pt", ".pth", ".ckpt")
_HOME = Path(__file__).parent
_plugins: list[Path] = []


def add_plugin(folder: str | Path) -> None:
    """Make the files of `folder` available as if they lay in the package.

    Args:
        folder: mirrors the package: `folder/backbones/my_net.py` becomes the family "my_net". **Its code is executed.**

    Raises:
        UsageError: there is no such folder, or it holds none of the known kinds.
    """
    path = Path(folder).resolve()
    if not any((path / kind).is_dir() for kind in KINDS):
        raise UsageError("not a plug-in folder", where=folder, remedy=f"it needs one of {', '.join(KINDS)} inside")
    if path not in _plugins:
        _plugins.append(path)
        _files.cache_clear()


def plugins() -> tuple[Path, ...]:
    """The plug-in folders that were added."""
    return tuple(_plugins)


@cache
def _files(kind: str) -> dict[str, Path]:
    return {
        path.stem: path
        for root in (*reversed(_plugins), _HOME)  # the package wins over a plug-in of the same name
        for path in sorted((root / kind).glob("*.py"))
        if not path.stem.startswith("_") and path.stem != "base"
    }


def names(kind: str) -> list[str]:
    """Entries of one kind ("backbones", "heads", ...), sorted."""
    return sorted(_files(kind))


def module(kind: str, name: str) -> ModuleType:
    """The module of one entry. Raises UsageError with the nearest name when there is none."""
    files = _files(kind)
    if name not in files:
        raise no_such(kind.removesuffix("s").rpartition("/")[2], name, files)
    return importlib.import_module(_dotted(kind, name))


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the files of plug-ins, so that one may import another as if they lay in the package."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Of patchform.<kind>.<name>; None for anything else, and for files of the package."""
        if fullname.removeprefix("patchform.") in OF_A_TRAINING:
            return ModuleSpec(fullname, None, is_package=True)
        folder, _, name = fullname.removeprefix("patchform.").rpartition(".")
        kind = folder.replace(".", "/")
        file = _files(kind).get(name) if kind in KINDS else None
        return importlib.util.spec_from_file_location(fullname, file) if file else None


sys.meta_path.append(_Finder())  # asked last: the package's own files are found before


def _dotted(kind: str, name: str) -> str:
    return f"patchform.{kind.replace('/', '.')}.{name}"


class Plugins:
    """The plug-in folders of this process: a worker that unpickles it finds what it then imports, as here."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, tuple(_plugins)


def _restored(*folders: Path) -> Plugins:
    for folder in folders:
        add_plugin(folder)
    return Plugins()


def the_class(kind: str, name: str, base: type[T]) -> type[T]:
    """The one public subclass of `base` that the entry's file defines."""
    entry = module(kind, name)
    classes = [
        value
        for key, value in vars(entry).items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value.__module__ == entry.__name__
        and not key.startswith("_")
    ]
    if len(classes) != 1:
        raise UsageError(f"{len(classes)} public {base.__name__} classes, expected one", where=f"{kind}/{name}.py")
    return classes[0]


def backbones(pattern: str = "*") -> list[str]:
    """Names of all backbone variants that match a shell pattern, family by family in the order of their tables."""
    return list(_rows("backbones", pattern, lambda family: module("backbones", family).VARIANTS))


def backbone_names(pattern: str = "*") -> list[str]:
    """As `backbones`, and families of the package that are in `model_table` are not imported."""
    listed: dict[str, list[str]] = {}
    for name in model_table.rows():
        family, _, size = name.partition("/")
        listed.setdefault(family, []).append(size)

    def table(family: str) -> Mapping[str, Any]:
        sizes = listed.get(family) if _is_packaged("backbones", family) else None
        return module("backbones", family).VARIANTS if sizes is None else dict.fromkeys(sizes)

    return list(_rows("backbones", pattern, table))


def backbone(name: str) -> tuple[ModuleType, Variant]:
    """Module and row of "family/size". Raises UsageError with the nearest name when there is none."""
    check_backbone(name)
    family, _, size = name.partition("/")
    entry = module("backbones", family)
    if size not in entry.VARIANTS:
        raise no_backbone(name)
    return entry, entry.VARIANTS[size]


def check_backbone(name: str) -> None:
    """Raise UsageError for a name that no backbone has, without importing any; see `_may_have`."""
    family, _, size = name.partition("/")
    if family not in _files("backbones") or not (name in model_table.rows() or _may_have("backbones", family, size)):
        raise no_backbone(name)


def no_backbone(name: str) -> UsageError:
    """The error for a backbone that is not there: with the one that is meant, by the words of others too."""
    what, known = f'no backbone "{name}"', backbone_names()
    if meant := foreign_names.backbone(name, known, model_table.weights_places()):
        also = f', or with published weights "{meant.weights}"' if meant.weights else ""
        return UsageError(what, remedy=f'did you mean "{meant.backbone}"{also}?')
    if called := foreign_names.absent(name):
        return UsageError(what, remedy=f"{called} is not here; patchform models lists what there is")
    families = sorted({other.partition("/")[0] for other in known})
    if not (family := difflib.get_close_matches(name.partition("/")[0], families, n=1, cutoff=0.6)):
        return UsageError(what, remedy=f"there are: {', '.join(families)} (patchform models)")
    own = [other for other in known if other.startswith(f"{family[0]}/")]
    near = difflib.get_close_matches(f"{family[0]}/{name.partition('/')[2]}", own, n=1, cutoff=0.6)
    listed = f"there are: {', '.join(own[:12])}{' ...' * (len(own) > 12)}"
    return UsageError(what, remedy=f'did you mean "{near[0]}"?' if near else listed)


def _is_packaged(kind: str, name: str) -> bool:
    """Whether the entry is a file of the package itself."""
    return (file := _files(kind).get(name)) is not None and file.is_relative_to(_HOME)


def _may_have(kind: str, family: str, row: str) -> bool:
    """Whether a family may have a row that is not in `model_table`, where it is not imported to be asked: it is of a
    plug-in, or the text of its file has the name, as that of a row that is new does.
    """
    if imported := sys.modules.get(_dotted(kind, family)):
        rows = imported.VARIANTS if kind == "backbones" else {file.tag for file in published(family).weights}
        return row in rows
    if not _is_packaged(kind, family) or family not in model_table.families():
        return True
    return bool(row) and f'"{row}"' in _files(kind)[family].read_text(encoding="utf-8")


def published(family: str) -> Published:
    """Layouts, scores and files of a backbone family: the file of its name in `published/`, empty without one."""
    entry = module("published", family) if family in _files("published") else None
    return Published(
        layouts=getattr(entry, "LAYOUTS", {}),
        scores=getattr(entry, "SCORES", ()),
        weights=getattr(entry, "WEIGHTS", ()),
        computes=getattr(entry, "COMPUTES", {}),
        differs=getattr(entry, "DIFFERS", {}),
        option_hints=getattr(entry, "OPTION_HINTS", ()),
        init_layouts=getattr(entry, "INIT_LAYOUTS", {}),
    )


def layout_options(build: Any, family: str, layout: str) -> dict[str, Any]:
    """Options with which the code computes whose names a layout has, as far as a class of the family takes them."""
    accepted = _options(build)
    options: Mapping[str, Any] = published(family).computes.get(layout, {})
    return {option: value for option, value in options.items() if option in accepted}


def weights_files(pattern: str = "*") -> dict[str, WeightsFile]:
    """Published files whose name, family/variant.tag, or variant matches a shell pattern; "swin" means "swin/*"."""

    def table(family: str) -> dict[str, WeightsFile]:
        return {f"{row.variant}.{row.tag}": row for row in published(family).weights}

    by_name = _rows("published", pattern, table)
    return by_name | (_rows("published", f"{pattern}.*", table) if "/" in pattern else {})


def _rows(kind: str, pattern: str, table: Callable[[str], Mapping[str, T]]) -> dict[str, T]:
    """Rows of the families' tables by "family/name", where that matches the pattern."""
    families = [family for family in names(kind) if fnmatch.fnmatch(family, pattern.split("/")[0])]
    rows = {f"{family}/{name}": row for family in families for name, row in table(family).items()}
    return {
        name: row for name, row in rows.items() if fnmatch.fnmatch(name, pattern if "/" in pattern else f"{pattern}/*")
    }


def is_weights_name(name: str) -> bool:
    """Whether a name is meant as family/variant.tag: such a family exists, and it does not end like a file."""
    family, slash, rest = name.partition("/")
    return bool(slash) and "." in rest and not rest.endswith(_FILES_OF_WEIGHTS) and family in _files("published")


def weights_file(name: str) -> WeightsFile:
    """The published file of a name. Raises UsageError with the nearest name when there is none."""
    check_weights_name(name)
    rows = weights_files(f"{name.partition('/')[0]}/*")
    if name not in rows:
        raise no_such("published weights", name, rows)
    return rows[name]


def check_weights_name(name: str) -> None:
    """Raise UsageError for a name that no published file has, without importing any family; see `_may_have`."""
    family, places, tag = name.partition("/")[0], model_table.weights_places(), name.partition(".")[2]
    if name not in places and not (family in _files("published") and _may_have("published", family, tag)):
        raise no_such("published weights", name, [own for own in places if own.startswith(f"{family}/")] or places)


def check_options(build: Any, options: Mapping[str, Any], *, of: str, usual: Mapping[str, Any] | None = None) -> None:
    """Raise UsageError for an option that a constructor does not take, the nearest named, or that is of another type.

    A whole number is at least 1, or as low as the option is by default; or its annotation has a `Range`.

    Args:
        build: a class.
        options: arguments of it.
        of: whose they are, in words.
        usual: what it is given by default.
    """
    accepted = _options(build)
    for option, value in options.items():
        if option not in accepted:
            raise no_such(f"option of {of}", option, accepted)
        hint, default = accepted[option]
        default = (usual or {}).get(option, default)
        lowest = min(1, default) if type(default) is int else 1
        bound = Range(least=lowest if hint in (int, int | None) else -LARGEST_OPTION, most=LARGEST_OPTION)
        try:
            if schema.plain(hint):
                has_range = any(isinstance(note, Range) for note in getattr(hint, "__metadata__", ()))
                schema.read(value, hint if has_range else Annotated[hint, bound])
        except schema.Misfit as misfit:
            what = schema.Misfit(misfit.value, misfit.needed, key=f"option {option} of {of}", outside=misfit.outside)
            raise UsageError(what.what, remedy=what.remedy) from None


def defaults(build: Any) -> dict[str, Any]:
    """Of a constructor's options, those that have one."""
    return {name: default for name, (_, default) in _options(build).items() if default is not inspect.Parameter.empty}


def _options(build: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default of what a constructor takes, those of `**options: Unpack[...]` among them."""
    try:
        hints = get_type_hints(build if hasattr(build, "_fields") else build.__init__, include_extras=True)
    except NameError:  # of types that only a checker imports
        hints = {}
    options: dict[str, tuple[Any, Any]] = {}
    for name, parameter in inspect.signature(build).parameters.items():
        hint = hints.get(name, Any)
        if get_origin(hint) is Unpack:
            below = get_type_hints(get_args(hint)[0], include_extras=True)
            options |= {option: (kind, None) for option, kind in below.items()}
        elif name not in NOT_OPTIONS:
            options[name] = (hint, parameter.default)
    return options


def no_such(kind: str, name: str, candidates: Iterable[str]) -> UsageError:
    """The error for a name that is not there, with the nearest one that is."""
    candidates = sorted(candidates)
    nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    listed = f"there are: {', '.join(candidates[:12])}" + " ..." * (len(candidates) > 12)
    return UsageError(f'no {kind} "{name}"', remedy=f'did you mean "{nearest[0]}"?' if nearest else listed)
