"""The language of checkpoint maps: two-way rules between a published layout and our own.

    TIMM = Rules(
        ("patch_embed.proj.weight", "backbone.patches.weight", reshape(-1, "channels", "patch", "patch")),
        ("layers.{s+1}.downsample.{p}", "backbone.stages.{s}.downsample.{p}"),
        (("blocks.{b}.q.{p}", "blocks.{b}.k.{p}", "blocks.{b}.v.{p}"), "backbone.blocks.{b}.qkv.{p}", join),
        ("head.{p}", "head.classifier.{p}"),
        ("*.relative_position_index", DROP),
    )

In a pattern `{name}` stands for a run without a dot, `{name+1}` (or `-1`) for a number that is so much higher than
`name`, and `*` for any run; both sides of a rule hold the same placeholders. The first rule that fits a name is the one
that counts, on the way in and on the way back. Each tensor of the source is used once and each of the model's filled
once, or nothing is loaded and the error names them.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeAlias

from torch import Tensor

from patchform.errors import ModelFileError, UsageError
from patchform.weights.operations import Operation, Sizes, copy
from patchform.weights.report import Dropped, Report, shorten

SHOWN = 4
"""Faults that an error spells out."""


class Drop(NamedTuple):
    """In place of the own pattern: such a tensor is left out. It is not made again on the way back."""

    why: str


DROP = Drop("follows from the architecture")
Rule: TypeAlias = tuple[str | tuple[str, ...], str | Drop] | tuple[str | tuple[str, ...], str | Drop, Operation]

# ------------------------------------------------------------------------------------------------------ patterns

_PLACEHOLDER = re.compile(r"\{(\w+)([+-]\d+)?\}|(\*)")
Binding: TypeAlias = dict[str, str]
"""What each placeholder stands for; numbers that carry an offset on this side are already without it."""


class _Pattern:
    """One side of a rule."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.holes: list[tuple[str, int]] = []  # (name, offset), in the order of the text
        self.literals: list[str] = []  # one more than holes
        expression, start, stars = "", 0, 0
        for found in _PLACEHOLDER.finditer(text):
            name, offset, star = found.groups()
            if star:
                name, stars = f"*{stars}", stars + 1
            self.literals.append(text[start : found.start()])
            self.holes.append((name, int(offset or 0)))
            run = "(.*)" if star else r"(0|[1-9]\d*)" if offset else r"([^.]+)"
            expression += re.escape(self.literals[-1]) + run
            start = found.end()
        self.literals.append(text[start:])
        self.expression = re.compile(expression + re.escape(self.literals[-1]))
        if set("{}") & set("".join(self.literals)):
            raise UsageError(f'pattern "{text}" has a brace that belongs to no placeholder')

    @property
    def names(self) -> set[str]:
        return {name for name, _ in self.holes}

    def match(self, name: str) -> Binding | None:
        """What the placeholders stand for, or None."""
        found = self.expression.fullmatch(name)
        if found is None:
            return None
        binding: Binding = {}
        for (hole, offset), run in zip(self.holes, found.groups()):
            value = str(int(run) - offset) if offset else run
            if value.startswith("-") or binding.setdefault(hole, value) != value:
                return None
        return binding

    def render(self, binding: Binding) -> str | None:
        """The name, or None where a number would be no number or below 0."""
        name = self.literals[0]
        for (hole, offset), literal in zip(self.holes, self.literals[1:]):
            value = binding[hole]
            if offset:
                if not value.isdecimal() or int(value) + offset < 0:
                    return None
                value = str(int(value) + offset)
            name += value + literal
        return name


class _Rule(NamedTuple):
    """A rule, read."""

    sources: tuple[_Pattern, ...]
    own: _Pattern | Drop
    operation: Operation

    def own_name(self, source: str) -> str | Drop | None:
        """Where the source tensor goes, or None if the rule is not for it."""
        for pattern in self.sources:
            binding = pattern.match(source)
            if binding is not None:
                return self.own if isinstance(self.own, Drop) else self.own.render(binding)
        return None

    def source_names(self, own: str) -> list[str] | None:
        """Names that the own tensor is made from, or None if the rule is not for it."""
        binding = None if isinstance(self.own, Drop) else self.own.match(own)
        if binding is None:
            return None
        names = [name for pattern in self.sources if (name := pattern.render(binding)) is not None]
        return names if len(names) == len(self.sources) else None


def _read(rule: Rule) -> _Rule:
    """Check a rule as it is written and make it ready for use."""
    written, to, operation = rule if len(rule) == 3 else (*rule, copy)
    sources = tuple(_Pattern(text) for text in ((written,) if isinstance(written, str) else written))
    if isinstance(to, Drop):
        return _Rule(sources, to, operation)
    own = _Pattern(to)
    for source in sources:
        if source.names != own.names:
            raise UsageError(f'"{source.text}" and "{to}" do not hold the same placeholders')
    if len(sources) != 1 and operation is copy:
        raise UsageError(f'"{to}" has {len(sources)} sources and no operation that joins them', remedy="use join")
    return _Rule(sources, own, operation)


# --------------------------------------------------------------------------------------------------------- rules


class Rules:
    """A layout: the two-way map between the tensors of a published checkpoint and ours.

    Args:
        rules: (source pattern, own pattern), with an operation as a third if the tensor changes; the source may be
            several patterns that are joined; or (source pattern, DROP) or (source pattern, Drop("why")).

    Raises:
        UsageError: a rule that cannot be run both ways.
    """

    def __init__(self, *rules: Rule) -> None:
        self.rules = rules
        self._rules = [_read(rule) for rule in rules]

    def __iter__(self) -> Iterator[Rule]:
        """The rules as they were given, to put them into a larger layout."""
        return iter(self.rules)

    def load(
        self, source: Mapping[str, Tensor], own: Mapping[str, Tensor], *, sizes: Sizes | None = None
    ) -> tuple[dict[str, Tensor], Report]:
        """Convert a published state dict.

        Args:
            source: state dict in the published layout.
            own: the model's state dict; only names, shapes and kinds of numbers are read, so it may be on "meta".
            sizes: lengths that `reshape` knows by name; those given are checked.

        Returns:
            Tensors by own names, in the order of `own`, with the source's dtype (they may share its memory), and what
            became of each.

        Raises:
            ModelFileError: a tensor that no rule knows or the model has no place for, one of the model's that is not
                filled or filled twice, or one of a shape that does not suit.
        """
        goes: dict[str, str] = {}  # source name -> own name
        dropped: list[Dropped] = []
        faults: list[str] = []

        def near(name: str, known: Iterable[str]) -> str:
            return _near(name, known) if len(faults) < SHOWN else ""  # it takes long for a file of another model

        for name in source:
            to = self._goes_to(name)
            if to is None:
                faults.append(f"no rule for {name}{near(name, self._source_patterns())}")
            elif isinstance(to, Drop):
                dropped.append(Dropped(name, to.why))
            elif to not in own:
                faults.append(f"{name} has no place: the model has no {to}{near(to, own)}")
            else:
                goes[name] = to
        plan: dict[str, tuple[_Rule, list[str]]] = {}
        for name in own:
            made = self._made_from(name)
            if made is None:
                faults.append(f"no rule fills {name}{near(name, self._own_patterns())}")
                continue
            plan[name] = made
            for other in made[1]:
                if goes.pop(other, None) != name:
                    why = f"{other} goes elsewhere" if other in source else f"the source has no {other}"
                    faults.append(f"{name} is not filled: {why}")
        faults += [f"{name} fills {to}, which is made from {', '.join(plan[to][1])}" for name, to in goes.items()]
        if faults:
            raise ModelFileError(
                f"{len(faults)} of the tensors do not fit: {shorten(faults, SHOWN)}",
                remedy="use the layout and the variant that the weights were published for",
            )
        filled: dict[str, Tensor] = {}
        fate: dict[str, list[str]] = {"matched": [], "joined": [], "converted": []}
        for name, (rule, names) in plan.items():
            filled[name] = _convert(rule, {other: source[other] for other in names}, name, own[name], sizes or {})
            fate["matched" if rule.operation is copy else "joined" if len(names) > 1 else "converted"].append(name)
        return filled, Report(**{kind: tuple(names) for kind, names in fate.items()}, dropped=tuple(dropped))

    def dump(self, own: Mapping[str, Tensor], *, sizes: Sizes | None = None) -> dict[str, Tensor]:
        """Write the model's tensors in the published layout; `load` of it gives the same bits. Dropped ones stay away.

        Args:
            own: the model's state dict.
            sizes: lengths that `reshape` cannot tell from our shape, by name.

        Raises:
            ModelFileError: a tensor that no rule knows or that cannot be parted, or two that would get one name.
            UsageError: a length that is needed is not in `sizes`.
        """
        written: dict[str, Tensor] = {}
        for name, tensor in own.items():
            made = self._made_from(name)
            if made is None:
                raise ModelFileError(f"no rule for {name}{_near(name, self._own_patterns())}")
            rule, names = made
            try:
                tensors = rule.operation.backward(tensor, len(names), sizes or {})
            except (RuntimeError, IndexError, ValueError) as fault:
                said = f"{name} {tuple(tensor.shape)}"
                raise ModelFileError(f"{said} cannot be written as {', '.join(names)}: {fault}") from fault
            for other, part in zip(names, tensors, strict=True):
                if other in written:
                    raise ModelFileError(f"{name} would be written as {other}, which is there already")
                written[other] = part
        return written

    def place(self, name: str) -> str:
        """Own name that a source tensor goes to; empty where it is dropped or no rule knows it."""
        to = self._goes_to(name)
        return to if isinstance(to, str) else ""

    def unknown(self, source: Mapping[str, Tensor]) -> list[str]:
        """Names that no rule knows."""
        return [name for name in source if self._goes_to(name) is None]

    def _goes_to(self, source: str) -> str | Drop | None:
        """The own name of a source tensor by the first rule that fits."""
        return next((own for rule in self._rules if (own := rule.own_name(source)) is not None), None)

    def _made_from(self, own: str) -> tuple[_Rule, list[str]] | None:
        """The first rule that fits an own tensor and the source names that it is made from."""
        return next(((rule, names) for rule in self._rules if (names := rule.source_names(own)) is not None), None)

    def _own_patterns(self) -> list[str]:
        return [rule.own.text for rule in self._rules if not isinstance(rule.own, Drop)]

    def _source_patterns(self) -> list[str]:
        return [pattern.text for rule in self._rules for pattern in rule.sources]


def prefix(rules: Rules, source_prefix: str, own_prefix: str) -> Rules:
    """The same rules one level deeper on either side: `prefix(VIT, "module.", "backbone.")`."""
    deeper: list[Rule] = []
    for rule in rules:
        source, own = rule[0], rule[1]
        sources = source_prefix + source if isinstance(source, str) else tuple(source_prefix + text for text in source)
        place = own if isinstance(own, Drop) else own_prefix + own
        deeper.append((sources, place, rule[2]) if len(rule) == 3 else (sources, place))
    return Rules(*deeper)


def recognise(layouts: Mapping[str, Rules], source: Mapping[str, Tensor]) -> str:
    """Name of the one layout whose rules know all names of a state dict.

    Raises:
        ModelFileError: no layout does, or several; it lists what each did not know.
    """
    unknown = {name: rules.unknown(source) for name, rules in layouts.items()}
    fitting = [name for name, names in unknown.items() if not names]
    if len(fitting) == 1 and source:
        return fitting[0]
    if fitting:
        raise ModelFileError(f"the weights could be of several layouts: {', '.join(fitting)}", remedy="name the layout")
    misses = "; ".join(f"{name} does not know {shorten(names, 3)}" for name, names in unknown.items())
    raise ModelFileError(f"the weights are of no known layout: {misses}", remedy="name the layout or check the file")


def _near(name: str, known: Iterable[str]) -> str:
    """The nearest of the names, as a remark, if one is near."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (nearest: {near[0]})" if near else ""


def _convert(rule: _Rule, tensors: Mapping[str, Tensor], own: str, place: Tensor, sizes: Sizes) -> Tensor:
    """Run the operation of a rule and check that the result suits its place."""
    said = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    try:
        tensor = rule.operation.forward(tuple(tensors.values()), place.shape, sizes)
    except (RuntimeError, IndexError, ValueError) as fault:
        raise ModelFileError(f"{said} cannot become {own} {tuple(place.shape)}: {fault}") from fault
    if tensor.shape != place.shape:
        raise ModelFileError(f"{said} does not suit {own} of shape {tuple(place.shape)}")
    if tensor.is_floating_point() != place.is_floating_point():
        raise ModelFileError(f"{said} is {tensor.dtype}, and {own} is {place.dtype}")
    return tensor
