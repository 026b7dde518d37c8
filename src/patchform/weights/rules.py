"""The language of checkpoint maps: two-way rules between a published layout and our own.

    TIMM = Rules(
        ("patch_embed.proj.weight", "backbone.patches.weight", reshape(-1, "channels", "patch", "patch")),
        ("layers.{s+1}.downsample.{p}", "backbone.stages.{s}.downsample.{p}"),
        (("blocks.{b}.q.{p}", "blocks.{b}.k.{p}", "blocks.{b}.v.{p}"), "backbone.blocks.{b}.qkv.{p}", join),
        ("blocks.{b}.look.in_proj_{p}", ("blocks.{b}.q.{p}", "blocks.{b}.kv.{p}"), join_shares(1, 2)),
        ("head.{p}", "head.classifier.{p}"),
        ("*.relative_position_index", DROP),
    )

In a pattern `{name}` stands for a run without a dot, `{name+1}` (or `-1`) for a number that is so much higher than
`name`, and `*` for any run; both sides of a rule hold the same placeholders. Several names of the source are joined by
the operation; several of ours are what it joins on the way back. The first rule that fits a name is the one that
counts, on the way in and on the way back. Each tensor of the source is used once and each of the model's filled once,
or nothing is loaded and the error names them.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import product
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from patchform.errors import ModelFileError, UsageError
from patchform.weights.cross_family import SAME_FAMILY, CrossFamily
from patchform.weights.load_report import Entry, Fate, Report, shorten
from patchform.weights.name_patterns import Binding, Pattern
from patchform.weights.operations import Operation, Sizes, copy

SizesOf: TypeAlias = Sizes | Callable[[str], Sizes]
"""The same for all tensors, or by own name."""
Adapt: TypeAlias = Callable[[str, Tensor], tuple[Tensor, str]]
"""(own name, tensor) -> the tensor as its place wants it, and what was done or assumed: "" for nothing.

Raises ValueError with the reason where it cannot be done or was not allowed."""
SHOWN = 4
"""Faults that an error spells out."""
COUNT = ".num_batches_tracked"
"""How many batches a norm has seen: no weight, and the one thing that a source may lack."""


class Drop(NamedTuple):
    """In place of the own pattern: such a tensor is left out. It is not made again on the way back."""

    why: str
    holds: Callable[[Tensor], bool] | None = None
    """What must be true of it, or it says something that the model does not compute; None: nothing need be."""


DROP = Drop("follows from the architecture")
Names: TypeAlias = str | tuple[str, ...]
Rule: TypeAlias = tuple[Names, Names | Drop] | tuple[Names, Names | Drop, Operation]


class _Rule(NamedTuple):
    """A rule, read."""

    sources: tuple[Pattern, ...]
    own: tuple[Pattern, ...] | Drop
    operation: Operation

    def own_names(self, source: str) -> list[str] | Drop | None:
        """Where the source tensor goes, or None if the rule is not for it."""
        binding = _match(self.sources, source)
        if binding is None:
            return None
        return self.own if isinstance(self.own, Drop) else _render(self.own, binding)

    def source_names(self, own: str) -> list[str] | None:
        """Names that the own tensor is made from, or None if the rule is not for it."""
        binding = None if isinstance(self.own, Drop) else _match(self.own, own)
        return None if binding is None else _render(self.sources, binding)

    def parts(self, own: str) -> list[str]:
        """The own tensor and those that it comes from one source with, in their order."""
        if isinstance(self.own, Drop) or len(self.own) == 1:
            return [own]
        binding = _match(self.own, own)
        return [own] if binding is None else _render(self.own, binding) or [own]

    def make(self, own: str, tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
        """The own tensor."""
        parts = self.parts(own)
        if len(parts) == 1:
            return self.operation.forward(tensors, shape, sizes)
        return self.operation.backward(tensors[0], len(parts), sizes)[parts.index(own)]

    def unmake(self, tensors: tuple[Tensor, ...], sizes: Sizes) -> tuple[Tensor, ...]:
        """The tensors of the source. Where several of ours are joined for it, the operation is told no shape."""
        if len(tensors) == 1:
            return self.operation.backward(tensors[0], len(self.sources), sizes)
        return (self.operation.forward(tensors, torch.Size(), sizes),)


def _match(patterns: tuple[Pattern, ...], name: str) -> Binding | None:
    """What the placeholders of the first pattern that fits stand for."""
    return next((binding for pattern in patterns if (binding := pattern.match(name)) is not None), None)


def _render(patterns: tuple[Pattern, ...], binding: Binding) -> list[str] | None:
    """All names, or None where one cannot be."""
    names = [name for pattern in patterns if (name := pattern.render(binding)) is not None]
    return names if len(names) == len(patterns) else None


def _read(rule: Rule) -> _Rule:
    """Check a rule as it is written and make it ready for use."""
    written, to, operation = rule if len(rule) == 3 else (*rule, copy)
    sources = _patterns(written)
    if isinstance(to, Drop):
        return _Rule(sources, to, operation)
    own = _patterns(to)
    for source, target in product(sources, own):
        if source.names != target.names:
            raise UsageError(f'"{source.text}" and "{target.text}" do not hold the same placeholders')
    if len(sources) != 1 and operation is copy:
        raise UsageError(f'"{to}" has {len(sources)} sources and no operation that joins them', remedy="use join")
    if len(own) != 1 and (operation is copy or len(sources) != 1):
        raise UsageError(f'"{written}" does not part into {len(own)} by an operation', remedy="one source, and join")
    return _Rule(sources, own, operation)


def _patterns(names: Names) -> tuple[Pattern, ...]:
    return tuple(Pattern(text) for text in ((names,) if isinstance(names, str) else names))


# --------------------------------------------------------------------------------------------------------- rules


class Plan(NamedTuple):
    """What goes where, by names alone."""

    filled: dict[str, tuple[_Rule, list[str]]]
    """Own name -> the rule that makes it and the names in the source that it is made from."""
    dropped: tuple[Entry, ...]
    """What is dropped or new."""
    faults: tuple[str, ...]


class Rules:
    """A layout: the two-way map between the tensors of a published checkpoint and ours.

    Args:
        rules: (source pattern, own pattern), with an operation as a third if the tensor changes; the source may be
            several patterns that are joined, or ours be several that one is parted into; or (source pattern, DROP) or
            (source pattern, Drop("why")).
        corners: its home resizes position tables bilinearly with the corners aligned, as scipy.ndimage.zoom of order 1
            does, and not bicubically.
        cross_family: how models differ that the layout was not written for.
        needs: patterns of which a name of the source fits one, or it is not of this layout.

    Raises:
        UsageError: a rule that cannot be run both ways.
    """

    def __init__(
        self,
        *rules: Rule,
        corners: bool = False,
        cross_family: CrossFamily = SAME_FAMILY,
        needs: tuple[str, ...] = (),
    ) -> None:
        self.rules, self.corners, self.cross_family = rules, corners, cross_family
        self._needs = [Pattern(text) for text in needs]
        self._rules = [_read(rule) for rule in rules]

    def __iter__(self) -> Iterator[Rule]:
        """The rules as they were given, to put them into a larger layout."""
        return iter(self.rules)

    def load(
        self,
        source: Mapping[str, Tensor],
        own: Mapping[str, Tensor],
        *,
        sizes: SizesOf | None = None,
        may_miss: Mapping[str, str] | None = None,
        adapt: Adapt | None = None,
    ) -> tuple[dict[str, Tensor], Report]:
        """Convert a published state dict.

        Args:
            source: state dict in the published layout.
            own: the model's state dict; only names, shapes and kinds of numbers are read, so it may be on "meta".
            sizes: lengths that `reshape` knows by name, for all or by own name; those given are checked.
            may_miss: beginnings of own names that are not filled, each with why; what the source has for them is
                dropped.
            adapt: resizes a tensor that does not suit its place, see `Adapt`; without it such a tensor is refused.

        Returns:
            Tensors by own names, in the order of `own`, with the source's dtype (they may share its memory), and what
            became of each.

        Raises:
            ModelFileError: a tensor that no rule knows or the model has no place for, one of the model's that is not
                filled or filled twice, or one of a shape that does not suit.
        """
        plan = self.plan(source, own, may_miss or {})
        if plan.faults:
            plan = self.plan(source, own, may_miss or {}, hints=True)
            what = f"{len(plan.faults)} of the tensors do not fit: {shorten(list(plan.faults), SHOWN)}"
            raise ModelFileError(what, remedy="use the layout and the variant that the weights were published for")
        self._check_dropped(source, plan)
        filled: dict[str, Tensor] = {}
        entries: list[Entry] = []
        for name, (rule, names) in plan.filled.items():
            tensors = {source_name: source[source_name] for source_name in names}
            made, filled[name], note = _convert(rule, tensors, name, own[name], _of(sizes, name), adapt)
            as_it_was = made is tensors[names[0]]
            fate: Fate = "matched" if as_it_was else "joined" if len(names) > 1 else "converted"
            copied = f"as {original}" if (original := self.cross_family.copy_source(name)[1]) else ""
            entries.append(Entry(fate if filled[name] is made else "resized", name, tuple(names), note or copied))
        return filled, Report((*entries, *plan.dropped))

    def _check_dropped(self, source: Mapping[str, Tensor], plan: Plan) -> None:
        """Raise ModelFileError where a tensor that is left out is not as its rule has it."""
        for entry in plan.dropped:
            to = self._targets_of(entry.name) if entry.name in source else None
            if isinstance(to, Drop) and to.holds is not None and not to.holds(source[entry.name]):
                raise ModelFileError(f"{entry.name} is not what it is taken for: {to.why}")

    def knows(self, source: Iterable[str]) -> bool:
        """Whether there is a rule for every name: where not, a plan has faults, and takes far longer to say so."""
        names = list(source)
        told = not self._needs or any(pattern.match(name) is not None for name in names for pattern in self._needs)
        return told and all(self._targets_of(name) is not None for name in names)

    def plan(
        self, source: Iterable[str], own: Iterable[str], may_miss: Mapping[str, str], *, hints: bool = False
    ) -> Plan:
        """What goes where, by names alone; arguments as in `load`. `hints` of near names take their time."""
        source, own = dict.fromkeys(source), dict.fromkeys(own)
        pending: dict[tuple[str, str], None] = {}  # source name and own name
        dropped: list[Entry] = []
        faults: list[str] = []

        def spared(name: str) -> str:
            return next((why for start, why in may_miss.items() if name.startswith(start)), "")

        def near(name: str, candidates: Iterable[str]) -> str:
            return _near(name, candidates) if hints and len(faults) < SHOWN else ""

        for name in source:
            to = self._targets_of(name)
            if to is None:
                faults.append(f"no rule for {name}{near(name, self._source_patterns())}")
            elif isinstance(to, Drop) or spared(to[0]):
                dropped.append(Entry("dropped", name, (name,), to.why if isinstance(to, Drop) else spared(to[0])))
            elif missing := [target for target in to if target not in own]:
                if why := _why(self.cross_family.lacks, missing[0]):
                    dropped.append(Entry("dropped", name, (name,), why))
                    continue
                faults.append(f"{name} has no place: the model has no {missing[0]}{near(missing[0], own)}")
            else:
                pending |= dict.fromkeys((name, target) for target in to)
        filled: dict[str, tuple[_Rule, list[str]]] = {}
        for name in own:
            if why := spared(name) or _why(self.cross_family.fresh, name):
                dropped.append(Entry("new", name, (), why))
                continue
            origin = self._sources_of(self.cross_family.copy_source(name)[0])
            if origin is None:
                faults.append(f"no rule fills {name}{near(name, self._own_patterns())}")
                continue
            if name.endswith(COUNT) and source.keys().isdisjoint(origin[1]):
                dropped.append(Entry("new", name, (), "frozen norms and old files do not count"))
                continue
            filled[name] = origin
            for source_name in origin[1]:
                if self.cross_family.copy_source(name)[1] and source_name in source:
                    continue  # it goes to the one that is copied
                if (source_name, name) in pending:
                    del pending[source_name, name]
                else:
                    why = (
                        f"{source_name} goes elsewhere" if source_name in source else f"the source has no {source_name}"
                    )
                    faults.append(f"{name} is not filled: {why}")
        for name, own_name in pending:
            made_from = ", ".join(filled[own_name][1]) if own_name in filled else "nothing by this layout"
            faults.append(f"{name} fills {own_name}, which is made from {made_from}")
        return Plan(filled, tuple(dropped), tuple(faults))

    def dump(self, own: Mapping[str, Tensor], *, sizes: SizesOf | None = None) -> dict[str, Tensor]:
        """Write the model's tensors in the published layout; `load` of it gives the same bits.

        Dropped ones stay away, and so does what is `CrossFamily.unread`.

        Args:
            own: the model's state dict.
            sizes: lengths that `reshape` cannot tell from our shape, for all or by own name.

        Raises:
            ModelFileError: a tensor that no rule knows or that cannot be parted, or two that would get one name.
            UsageError: a length that is needed is not in `sizes`.
        """
        written: dict[str, Tensor] = {}
        for name, tensor in own.items():
            if any(Pattern(text).match(name) is not None for text in self.cross_family.unread):
                continue
            origin = self._sources_of(name)
            if origin is None:
                raise ModelFileError(f"no rule for {name}{_near(name, self._own_patterns())}")
            rule, names = origin
            parts = rule.parts(name)
            if missing := [part for part in parts if part not in own]:
                raise ModelFileError(f"{name} is a part of {names[0]} as is {missing[0]}, which the model has not")
            if parts[0] != name:
                continue  # written with the first part
            try:
                tensors = rule.unmake(tuple(own[part] for part in parts), _of(sizes, name))
            except (RuntimeError, IndexError, ValueError) as fault:
                what = f"{name} {tuple(tensor.shape)} cannot be written as {', '.join(names)}: {fault}"
                raise ModelFileError(what) from fault
            for source_name, part in zip(names, tensors, strict=True):
                if source_name in written:
                    raise ModelFileError(f"{name} would be written as {source_name}, which is there already")
                written[source_name] = part
        return written

    def _targets_of(self, source: str) -> list[str] | Drop | None:
        """The own names of a source tensor by the first rule that fits."""
        return next((own for rule in self._rules if (own := rule.own_names(source)) is not None), None)

    def _sources_of(self, own: str) -> tuple[_Rule, list[str]] | None:
        """The first rule that fits an own tensor and the source names that it is made from."""
        return next(((rule, names) for rule in self._rules if (names := rule.source_names(own)) is not None), None)

    def _own_patterns(self) -> list[str]:
        return [pattern.text for rule in self._rules if not isinstance(rule.own, Drop) for pattern in rule.own]

    def _source_patterns(self) -> list[str]:
        return [pattern.text for rule in self._rules for pattern in rule.sources]


def prefix(rules: Rules, source_prefix: str, own_prefix: str) -> Rules:
    """The same rules one level deeper on either side: `prefix(VIT, "module.", "backbone.")`."""
    deeper: list[Rule] = []
    for rule in rules:
        sources = _deeper(source_prefix, rule[0])
        own = rule[1] if isinstance(rule[1], Drop) else _deeper(own_prefix, rule[1])
        deeper.append((sources, own, rule[2]) if len(rule) == 3 else (sources, own))
    return Rules(*deeper, corners=rules.corners, cross_family=rules.cross_family.below(own_prefix))


def _deeper(own_prefix: str, names: Names) -> Names:
    return own_prefix + names if isinstance(names, str) else tuple(own_prefix + text for text in names)


def recognise(
    layouts: Mapping[str, Rules],
    source: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    *,
    may_miss: Mapping[str, str] | None = None,
) -> str:
    """Name of the layout that a state dict is in: the one by which every tensor finds its place in the model.

    Args:
        layouts: by name.
        source: state dict.
        own: the model's state dict.
        may_miss: as `Rules.load` has it.

    Raises:
        ModelFileError: there is none (it says what the nearest one misses), or several that would give other tensors.
    """
    plans = {name: rules.plan(source, own, may_miss or {}) for name, rules in layouts.items()}
    fitting = [name for name, plan in plans.items() if not plan.faults]
    mappings = {tuple((own_name, *names) for own_name, (_, names) in plans[name].filled.items()) for name in fitting}
    if len(mappings) == 1 and source:
        return fitting[0]
    if fitting and source:
        raise ModelFileError(f"the weights could be of several layouts: {', '.join(fitting)}", remedy="name the layout")
    if not layouts:
        raise ModelFileError("no layout of published weights is known for this family")
    nearest = min(plans, key=lambda name: len(plans[name].faults))
    faults = list(layouts[nearest].plan(source, own, may_miss or {}, hints=True).faults)
    raise ModelFileError(
        f"the weights are of no known layout ({', '.join(layouts)}): for {nearest}, the nearest, {len(faults)} of the "
        f"tensors do not fit: {shorten(faults, SHOWN)}",
        remedy="use the variant that the weights were published for, or name the layout",
    )


def _near(name: str, candidates: Iterable[str]) -> str:
    """The nearest of the names, as a remark, if one is near."""
    nearest = difflib.get_close_matches(name, candidates, n=1, cutoff=0.5)
    return f" (nearest: {nearest[0]})" if nearest else ""


def _why(reasons: Mapping[str, str], own: str) -> str:
    """The reason of the first pattern that fits, or ""."""
    return next((why for pattern, why in reasons.items() if Pattern(pattern).match(own) is not None), "")


def _of(sizes: SizesOf | None, name: str) -> Sizes:
    """The sizes that hold for an own tensor."""
    return sizes(name) if callable(sizes) else sizes or {}


def _convert(
    rule: _Rule, tensors: Mapping[str, Tensor], own: str, target: Tensor, sizes: Sizes, adapt: Adapt | None
) -> tuple[Tensor, Tensor, str]:
    """Run the operation of a rule, resize the result if it must be and may be, and check that it suits its place.

    Returns:
        What the operation made, the same as its place wants it, and what was done for that or assumed.
    """
    described = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    note = ""
    try:
        tensor = made = rule.make(own, tuple(tensors.values()), target.shape, sizes)
    except (RuntimeError, IndexError, ValueError) as fault:
        raise ModelFileError(f"{described} cannot become {own} {tuple(target.shape)}: {fault}") from fault
    if tensor.is_floating_point() != target.is_floating_point():
        raise ModelFileError(f"{described} is {tensor.dtype}, and {own} is {target.dtype}")
    if adapt is not None:
        try:
            tensor, note = adapt(own, tensor)
        except ValueError as why:
            raise ModelFileError(f"{described} does not suit {own} of shape {tuple(target.shape)}: {why}") from why
    if tensor.shape != target.shape:
        raise ModelFileError(f"{described} does not suit {own} of shape {tuple(target.shape)}")
    return made, tensor, note
