"""What a record says of its own fields, once, where each is declared: type, range, default, meaning.

    lr: Annotated[float, Range(above=0, most=1000)] = 1e-3

and a docstring below it. Help texts, the reading of recipes, model files and checkpoints, and the line that refuses a
value all come from that.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

R = TypeVar("R")
Parse = Callable[[str], Any]
"""Reads text as a value; raises ValueError."""

DEEPEST = 12
"""Levels of plain values, and of a recipe file."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number, which belong to it (`least`, `most`) or not (`above`, `below`). It is finite in any case."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None

    def holds(self, value: float) -> bool:
        """Whether a number lies within."""
        return (
            (isinstance(value, int) or math.isfinite(value))
            and (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    def violated_by(self, value: float) -> str:
        """The bound that a number breaks."""
        if (self.least is not None and value < self.least) or (self.above is not None and value <= self.above):
            return str(Range(least=self.least, above=self.above))
        if (self.most is not None and value > self.most) or (self.below is not None and value >= self.below):
            return str(Range(most=self.most, below=self.below))
        return str(self)

    def __str__(self) -> str:
        low = f"[{self.least}" if self.above is None else f"({self.above}"
        high = f"{self.most}]" if self.below is None else f"{self.below})"
        if "None" not in low + high:
            return f"in {low}, {high}"
        if "None" not in low:
            return f"at least {self.least}" if self.above is None else f"above {self.above}"
        if "None" not in high:
            return f"at most {self.most}" if self.below is None else f"below {self.below}"
        return "finite"


@dataclass(frozen=True, kw_only=True)
class Length:
    """Bounds of the number of values, or of characters."""

    least: int = 0
    most: int = 1000

    def __str__(self) -> str:
        return f"{self.least} to {self.most}"


@dataclass(frozen=True)
class Same:
    """One value may stand for a list of equal ones, of fixed length."""


Share = Annotated[float, Range(least=0, most=1)]
"""Of a whole, or a probability."""
Positive = Annotated[float, Range(above=0, most=1_000_000)]
Factor = Annotated[float, Range(least=0, most=1_000_000)]
Natural = Annotated[int, Range(least=0, most=1_000_000)]
Side = Annotated[int, Range(least=1, most=16_384)]
"""Pixels."""
Options = Annotated[dict[str, Any], Range(least=-1_000_000, most=1_000_000)]
"""Arguments of a constructor, as plain values: numbers within the range, no more than `DEEPEST` levels."""


class Field(NamedTuple):
    """A field of a record, or of a record within it."""

    name: str
    """Dotted: "optimizer.lr"."""
    hint: Any
    """Its type, with its range."""
    value: Any
    """What the record has there."""
    meaning: str
    section: str
    """What the record around it is."""


def fields(record: Any, prefix: str = "") -> Iterator[Field]:
    """The fields of a record (a dataclass), those of records within it among them, in their order."""
    for name, hint in hints(type(record)).items():
        value = getattr(record, name)
        if dataclasses.is_dataclass(hint):
            yield from fields(value, f"{prefix}{name}.")
        else:
            section = (inspect.getdoc(type(record)) or "").partition("\n")[0].rstrip(".")
            yield Field(prefix + name, hint, value, meanings(type(record)).get(name, ""), section)


def _hints(kind: Any) -> dict[str, Any]:
    """The types of a dataclass's fields, ranges included."""
    types = get_type_hints(kind, include_extras=True)
    return {field.name: types[field.name] for field in dataclasses.fields(kind)}


def _meanings(kind: Any) -> dict[str, str]:
    """The docstrings below a class's fields."""
    (tree,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value).replace("\n", " ")
        for field, text in zip(tree.body, tree.body[1:])
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


hints: Callable[[Any], dict[str, Any]] = cache(_hints)
meanings: Callable[[Any], dict[str, str]] = cache(_meanings)


def words(hint: Any) -> str:
    """A type and its range as a person says it."""
    of, inner = get_origin(hint), get_args(hint)
    if of is Annotated:
        bound = next((note for note in inner[1:] if isinstance(note, Range)), None)
        plain = words(inner[0])
        if Same() in inner:
            plain = f"{words(get_args(inner[0])[0])}, or {plain}"
        return f"{plain} {bound}" if bound and inner[0] in (int, float) else plain
    if of is Literal:
        return "one of " + ", ".join(map(str, inner))
    if of in (Union, UnionType):
        return " or ".join(words(kind) for kind in inner)
    if of in (tuple, list, Sequence):
        number = "" if inner[-1] is Ellipsis or of is not tuple else f" of {len(inner)}"
        return f"a list{number}, each {words(inner[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", NoneType: "null"}
    return names.get(hint, "a mapping of names to values")


def plain(hint: Any) -> bool:
    """Whether a type is of plain values alone, so that `read` knows it."""
    of, inner = get_origin(hint), get_args(hint)
    if of in (Annotated, Literal):
        return of is Literal or plain(inner[0])
    if of in (Union, UnionType, tuple, list, Sequence, Mapping, dict):
        return all(plain(kind) for kind in inner if kind is not Ellipsis)
    return hint in (int, float, bool, str, NoneType, Any)


def shown(value: Any) -> str:
    """A value as a recipe would have it."""
    return value if isinstance(value, str) else json.dumps(value)


# ----------------------------------------------------------------------------------------------------------- reading


class Misfit(ValueError):
    """A value that a field cannot have.

    Attributes:
        key: dotted name of the field, "" where the value itself is meant.
        value: what stood there.
        needed: what it must be; the kind of it, or, where `outside`, its range.
        fault: of a mapping, what is wrong with its names.
    """

    def __init__(self, value: Any, needed: str, *, key: str = "", outside: bool = False, fault: str = "") -> None:
        self.key, self.value, self.needed, self.outside, self.fault = key, value, needed, outside, fault
        super().__init__(str(self))

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"

    @property
    def what(self) -> str:
        """What is wrong."""
        name, shown = self.key or "it", self.value
        if isinstance(shown, str | list | tuple):  # of a million nobody sees more
            shown = shown[:200]
        if self.fault:
            return f"{name} {_cut(self.fault)}"
        if not self.outside:
            return f"{name} cannot be {_cut(repr(shown))}"
        return f"{name} is {_cut(str(list(shown) if isinstance(shown, tuple) else shown))}"

    @property
    def remedy(self) -> str:
        """What it must be."""
        suffix = ", each number" if self.outside and isinstance(self.value, list | tuple | dict) else ""
        return f"it {'must be' if self.outside else 'is'} {self.needed}{suffix}"

    def below(self, key: str) -> Misfit:
        """The same, of a field that lies in another one."""
        path = f"{key}.{self.key}".rstrip(".")
        return Misfit(self.value, self.needed, key=path, outside=self.outside, fault=self.fault)


def _cut(text: str, most: int = 80) -> str:
    """The text, or the beginning of a long one."""
    return text if len(text) <= most else f"{text[:most]} ..."


def build(kind: type[R], values: Any, *, parse: Parse | None = None) -> R:
    """A record from plain values: nested mappings, lists, numbers, texts.

    Args:
        kind: a dataclass.
        values: of its fields by name.
        parse: how text stands for a value of another type, as people write: fields that lack then keep their defaults.
            None: as a program wrote them: text is text, and every field is there.

    Raises:
        Misfit: an unknown or missing field, or a value of another type or out of its range.
    """
    types = hints(kind)
    if not isinstance(values, Mapping):
        raise Misfit(values, "a mapping of names to values")
    unknown = sorted(repr(name) for name in set(values) - set(types))
    lacking = [name for name in types if name not in values] if parse is None else []
    if unknown or lacking:
        fault = f"has no {', '.join(lacking)}" if lacking else f"has a name that is not known: {', '.join(unknown)}"
        raise Misfit(unknown or lacking, f"a mapping of {', '.join(types)}", fault=fault)
    converted = {}
    for name, value in values.items():
        try:
            converted[name] = read(value, types[name], parse)
        except Misfit as misfit:
            raise misfit.below(name) from None
    return kind(**converted)


def read(value: Any, hint: Any, parse: Parse | None = None) -> Any:
    """A value as its type has it: tuples for lists, records for mappings, floats for whole numbers.

    Raises:
        Misfit: it is of another type, or out of its range.
    """
    of, inner = get_origin(hint), get_args(hint)
    if of is Annotated:
        return _annotated(value, inner[0], inner[1:], parse)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return build(hint, value, parse=parse)
    if of in (Union, UnionType):
        return _one_of(value, hint, parse)
    if parse is not None and isinstance(value, str) and hint is not str and of is not Literal:
        try:
            value = parse(value)
        except ValueError:
            raise Misfit(value, words(hint)) from None
        parse = parse if isinstance(value, list | dict) else None
    if of is Literal:
        return _literal(value, inner, parse)
    if of in (tuple, list, Sequence):
        return _sequence(value, hint, parse)
    if hint is Any:
        return value
    if hint is float and type(value) is int and abs(value) < 2**1000:
        value = float(value)
    kind: Any = dict if of is Mapping else of or hint
    if type(value) is not kind and not (kind is dict and isinstance(value, Mapping)):
        raise Misfit(value, words(hint))
    if kind is float and not math.isfinite(value):
        raise Misfit(value, str(Range()), outside=True)
    if kind is dict and inner and inner[1] is not Any:
        return {key: read(item, inner[1], parse) for key, item in value.items()}
    return _leaves(value, parse) if kind is dict else value


def _leaves(value: Any, parse: Parse | None) -> Any:
    """Plain values, with what their texts stand for."""
    if isinstance(value, Mapping):
        return {key: _leaves(item, parse) for key, item in value.items()}
    if isinstance(value, list):
        return [_leaves(item, parse) for item in value]
    if parse is None or not isinstance(value, str):
        return value
    try:
        return parse(value)
    except ValueError:  # text, then
        return value


def _annotated(value: Any, plain: Any, notes: tuple[Any, ...], parse: Parse | None) -> Any:
    if Same() in notes and not isinstance(value, list | tuple):
        value = parse(value) if parse is not None and isinstance(value, str) else value
        value = value if isinstance(value, list) else [value] * len(get_args(plain))
    for note in notes:
        if isinstance(note, Length) and isinstance(value, list | tuple):
            _check_length(value, note)  # before each of a million values is looked at
    try:
        result = read(value, plain, parse)
    except Misfit as misfit:
        if plain not in (int, float):
            raise
        needed = str(notes[0]) if misfit.outside else words(Annotated[plain, *notes])
        raise Misfit(misfit.value, needed, outside=misfit.outside) from None
    for note in notes:
        if isinstance(note, Range):
            for number in [result] if isinstance(result, int | float) else _numbers(result):
                if not note.holds(number):
                    raise Misfit(result, note.violated_by(number), outside=True)
        if isinstance(note, Length):
            _check_length(result, note)
    return result


def _check_length(value: Any, bound: Length) -> None:
    if not bound.least <= len(value) <= bound.most:
        unit = "character" if isinstance(value, str) else "value"
        raise Misfit(value, f"of {bound} {unit}s")


def _numbers(value: Any, depth: int = 0) -> Iterator[float]:
    """The numbers in plain values."""
    if depth > DEEPEST:
        raise Misfit("...", f"of no more than {DEEPEST} levels")
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise Misfit(value, "a mapping of names to values")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item, depth + 1)
    elif isinstance(value, int | float):
        yield value
    elif not isinstance(value, str | None):
        raise Misfit(value, "a plain value")


def _one_of(value: Any, hint: Any, parse: Parse | None) -> Any:
    """As the first of several types that fits; text is text only where it is nothing else."""
    misfits = []
    for kind in sorted(get_args(hint), key=lambda kind: kind is str):
        try:
            return read(value, kind, parse)
        except Misfit as misfit:
            misfits.append(misfit)
    outside = [misfit for misfit in misfits if misfit.outside]
    raise outside[0] if outside else Misfit(value, words(hint))


def _literal(value: Any, choices: tuple[Any, ...], parse: Parse | None) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
        if parse is not None and isinstance(value, str) and str(choice) == value:
            return choice
    raise Misfit(value, "one of " + ", ".join(map(str, choices)))


def _sequence(value: Any, hint: Any, parse: Parse | None) -> Any:
    of, inner = get_origin(hint), get_args(hint)
    if not isinstance(value, list | tuple):
        raise Misfit(value, words(hint))
    kinds = [inner[0]] * len(value) if of is not tuple or inner[-1] is Ellipsis else list(inner)
    if len(kinds) != len(value):
        raise Misfit(value, words(hint))
    items = []
    for item, kind in zip(value, kinds):
        try:
            items.append(read(item, kind, parse))
        except Misfit as misfit:
            raise Misfit(value, misfit.needed if misfit.outside else words(hint), outside=misfit.outside) from None
    return items if of is list else tuple(items)


def check(record: Any) -> None:
    """Raise Misfit for the first field of a record, however it was made, that has another type or is out of range."""
    for name, hint in hints(type(record)).items():
        try:
            value = getattr(record, name)
            if dataclasses.is_dataclass(hint):
                check(value)
            else:
                read(value, hint)
        except Misfit as misfit:
            raise misfit.below(name) from None


def number(kind: type[int] | type[float], bound: Range) -> Callable[[str], Any]:
    """What reads a number within a range from the command line: a `type` of argparse."""

    def convert(text: str) -> Any:
        try:
            return read(kind(text), Annotated[kind, bound])
        except Misfit as misfit:
            raise argparse.ArgumentTypeError(str(misfit)) from None
        except ValueError:
            raise argparse.ArgumentTypeError(str(Misfit(text, words(kind)))) from None

    return convert
