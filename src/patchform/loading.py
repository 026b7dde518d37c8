"""Fill a model with weights: recognise their layout, let the layers resize what differs, account for every tensor."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchform import lookup
from patchform.adaptation import FRESH, ROWS, Adapter, sizes_of
from patchform.backbones.base import Backbone
from patchform.errors import ModelFileError
from patchform.layers.fitting import OnGrid, TransferContext
from patchform.layers.patches import Patches, Tubelets
from patchform.model import Model, load
from patchform.settings import Transfer
from patchform.weights import files, sources
from patchform.weights.hub import locate
from patchform.weights.load_report import Entry, Report, shorten
from patchform.weights.operations import Operation, Sizes, reshape
from patchform.weights.option_hints import missing_options
from patchform.weights.rules import Rules, recognise
from patchform.weights.signatures import known_as

OWN = "patchform"
"""The layout of models that `patchform.save` wrote."""
WRAPPERS = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "teacher.", "student.")
"""What programs put in front of all names; taken off by itself, and the report says so."""
DEEPEST_PREFIX = 6
"""Parts of a name that may stand in front of a backbone that is proposed."""


def load_weights(
    target: Model | Backbone,
    source: Mapping[str, Tensor] | str | Path,
    *,
    layout: str | None = None,
    prefix: str | None = None,
    transfer: Transfer | None = None,
) -> Report:
    """Fill a model, or a backbone alone, with weights of its family, or of one that it may start from.

    Args:
        target: gets the weights in place. A backbone alone leaves the head of the source aside and the report says so.
        source: a state dict in a published layout; or a file of tensors or a run folder (`weights.sources.read`); or a
            name of published weights, which are fetched (`weights.hub.locate`).
        layout: one of the family's layouts or starts, or "patchform"; recognised from the names if None.
        prefix: only what begins so is meant, without it: "backbone." of a whole segmenter. None: `transfer.prefix`, or
            what programs put in front of all names is taken off.
        transfer: what may differ between the two; default: `Transfer()`.

    Returns:
        What became of every tensor.

    Raises:
        UsageError: no such layout.
        ModelFileError: a tensor without a place, or of another shape, or one of the target's that is not filled, and
            `transfer` does not allow it; nothing was changed then.
    """
    transfer = transfer or Transfer()
    weights = _read(locate(source)) if isinstance(source, str | Path) else sources.Source(dict(source))
    backbone, level = (target.backbone, "") if isinstance(target, Model) else (target, "backbone.")
    layouts = _layouts_for(backbone, weights, layout)
    if layout is not None:
        if layout not in layouts:
            raise lookup.no_such("layout", layout, layouts)
        layouts = {layout: layouts[layout]}
    own = {level + name: tensor for name, tensor in target.state_dict().items()}
    options = _may_miss(target, weights, transfer)
    prefix = transfer.prefix if prefix is None else prefix
    with _naming_options(backbone, weights.tensors, own):
        tensors, used_prefix, layout_name, may_miss = _recognised(
            layouts, weights.tensors, own, prefix, options, _family(backbone)
        )
        rules = layouts[layout_name]
        _check_grid(transfer, weights)
        context = TransferContext(transfer, rules.corners, rules.cross_family.from_images)
        filled, report = rules.load(
            tensors,
            own,
            sizes=lambda key: sizes_of(target, key.removeprefix(level)),
            may_miss=may_miss,
            adapt=Adapter(target, level, context, transfer.classes or weights.classes, weights.grids),
        )
    fresh = {entry.note.startswith(FRESH) for entry in report.entries if ROWS.fullmatch(entry.name)}
    if len(fresh) > 1:
        raise ModelFileError("the tensors of the classifier are not of one number of classes")
    target.load_state_dict({key.removeprefix(level): tensor for key, tensor in {**own, **filled}.items()})
    unread = (name for name in weights.tensors if not name.startswith(used_prefix))
    dropped = tuple(Entry("dropped", name, (name,), f'does not begin with "{prefix}"') for name in unread)
    remarks = tuple(_remarks(backbone, layout_name, source))
    return report._replace(entries=report.entries + dropped, layout=layout_name, prefix=used_prefix, remarks=remarks)


@contextmanager
def _naming_options(backbone: Backbone, source: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> Iterator[None]:
    """Weights that are refused, and ask for options that the backbone was not given, are refused by naming these."""
    try:
        yield
    except ModelFileError as error:
        hints = lookup.published(_family(backbone)).option_hints
        signature = known_as(source)
        foreign = signature is not None and signature.family != _family(backbone)
        missing = [] if foreign else missing_options(hints, source, own)
        if not missing:
            raise
        flags = " ".join(f"--option {option}" for option in missing)
        what = f"the weights are of a backbone with {', '.join(missing)}, which this one was not given"
        raise ModelFileError(what, remedy=f"give {flags} (in a recipe model.options)") from error


def layouts_of(backbone: Backbone) -> dict[str, Rules]:
    """Every layout that weights of a backbone's family are known to come in, ours last."""
    return {**lookup.published(_family(backbone)).layouts, OWN: _OWN}


def _family(backbone: Backbone) -> str:
    return type(backbone).__module__.rpartition(".")[2]


def _remarks(backbone: Backbone, layout: str, source: Any) -> Iterator[str]:
    """Where the code that a source was trained with computes other numbers from equal tensors; mostly nothing."""
    published = lookup.published(_family(backbone))
    subject, options = f"layout {layout}", lookup.layout_options(type(backbone), _family(backbone), layout)
    if layout == OWN and isinstance(source, str | Path) and (Path(source) / sources.DESCRIPTION).exists():
        names, subject = files.read_json(Path(source) / sources.DESCRIPTION)["architecture"], str(source)
        _, variant = lookup.backbone(names["backbone"])
        known = {option for row in published.computes.values() for option in row}
        said = {**lookup.defaults(variant.build), **variant.options, **names["backbone_options"]}
        options = {option: value for option, value in said.items() if option in known and hasattr(backbone, option)}
    other = {option: value for option, value in options.items() if getattr(backbone, option) != value}
    if other:
        theirs = ", ".join(f"{option}: {value}" for option, value in other.items())
        ours = ", ".join(f"{option}: {getattr(backbone, option)}" for option in other)
        yield f"{subject} computes with {theirs}, this model with {ours}: other numbers at some sizes (model.options)"
    if layout in published.differs:
        yield published.differs[layout]


def _layouts_for(backbone: Backbone, weights: sources.Source, named: str | None) -> dict[str, Rules]:
    """Every layout that weights may come in.

    A model folder says its family: it is of that one's start alone, or of none. In a plain file our own names could be
    of either family, so they are the own one's unless the start is named.
    """
    starts = lookup.published(_family(backbone)).init_layouts
    own_start = f"{weights.family}_{OWN}"
    if weights.own and weights.family != _family(backbone) and own_start in starts:
        return {own_start: starts[own_start]}
    return layouts_of(backbone) | {
        name: rules for name, rules in starts.items() if name == named or not (weights.own or name.endswith(OWN))
    }


def export_weights(model: Model, layout: str, *, without: Collection[str] = ()) -> dict[str, Tensor]:
    """A model's tensors by the names and in the shapes of a layout; `load_weights` of them gives the same bits.

    Tensors `without` are left out.

    Raises:
        UsageError: no such layout.
        ModelFileError: a tensor that the layout has no place for.
    """
    layouts = layouts_of(model.backbone)
    if layout not in layouts:
        raise lookup.no_such("layout", layout, layouts)
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in without}
    written = layouts[layout].dump(own, sizes=lambda key: sizes_of(model, key))
    return {name: tensor.contiguous() for name, tensor in written.items()}


def _read(path: Path) -> sources.Source:
    """`sources.read`, with the kernels of patches of a model folder as (D, C, p, p): flat, they do not tell C and p.

    Those of tubelets are (D, C, f, p, p).
    """
    source = sources.read(path)
    folder = sources.model_folder(path)
    if folder is None:
        return source
    with torch.device("meta"):
        model = load(folder, weights=False)
    tensors = dict(source.tensors)
    gridded = {name: layer.native for name, layer in model.named_modules() if isinstance(layer, OnGrid)}
    for name, layer in model.named_modules():
        if isinstance(layer, Patches | Tubelets):
            length = (layer.frames,) if isinstance(layer, Tubelets) else ()
            shape = (layer.in_channels, *length, layer.size, layer.size)
            tensors[f"{name}.proj.weight"] = tensors[f"{name}.proj.weight"].unflatten(1, shape)
    return source._replace(tensors=tensors, grids=gridded)


def _check_grid(transfer: Transfer, weights: sources.Source) -> None:
    """The grid that was named is one that model.json says, if it says any."""
    said, known = transfer.grid, {(grid[-2], grid[-1]): None for grid in weights.grids.values()}
    if said is not None and known and said not in known:
        shapes = " and ".join(f"{rows} x {columns}" for rows, columns in known)
        raise ModelFileError(
            f"its model.json says a grid of {shapes}, not {said[0]} x {said[1]}", remedy="leave out transfer.grid"
        )


# ------------------------------------------------------------------------------------------------------ own layout

_KERNELS = {
    4: reshape(-1, "channels", "patch", "patch"),
    5: reshape(-1, "channels", "frames", "patch", "patch"),
}
"""Of patches and of tubelets, by their number of axes."""


def _own_shape(tensors: tuple[Tensor, ...], shape: torch.Size, sizes: Sizes) -> Tensor:
    (tensor,) = tensors
    patches = len(shape) == 2 and tensor.dim() in _KERNELS and "patch" in sizes
    return _KERNELS[tensor.dim()].forward(tensors, shape, sizes) if patches else tensor


_OWN = Rules(("*", "*", Operation(_own_shape, lambda tensor, count, sizes: (tensor,))))


# ------------------------------------------------------------------------------------------------------ recognition


def _may_miss(target: Model | Backbone, source: sources.Source, transfer: Transfer) -> list[dict[str, str]]:
    """What may stay unfilled, the strictest first."""
    if isinstance(target, Backbone):
        return [{"head.": "a backbone has no head"}]
    if transfer.head == "reinit":
        return [{"head.": "the head is new"}]
    if transfer.head == "load":
        return [{}]
    headless = {"head.": "the source has another head or none"}
    architecture = target.architecture
    return (
        [headless] if source.head and architecture is not None and source.head != architecture.head else [{}, headless]
    )


class _Recognised(NamedTuple):
    """How a source is read."""

    tensors: dict[str, Tensor]
    """By the names that the layout knows."""
    prefix: str
    """What stood in front of them."""
    layout: str
    may_miss: dict[str, str]
    """What stays unfilled."""


def _recognised(
    layouts: Mapping[str, Rules],
    source: Mapping[str, Tensor],
    own: Mapping[str, Tensor],
    named: str | None,
    may_miss_options: list[dict[str, str]],
    family: str,
) -> _Recognised:
    """The first reading by which every tensor has its place; `family` is the model's."""

    def behind(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in source.items() if name.startswith(prefix)}

    prefixes = list(prefixes_of(source)) if named is None else [named]
    for prefix, may_miss in product(prefixes, may_miss_options):
        tensors = behind(prefix)
        whole = {
            name: rules
            for name, rules in layouts.items()
            if rules.knows(tensors)
            and not rules.plan(tensors, own, may_miss).faults
            and (may_miss is may_miss_options[0] or not _fills_some_of_the_head(rules, tensors, own))
        }
        if whole and tensors:
            return _Recognised(tensors, prefix, recognise(whole, tensors, own, may_miss=may_miss), may_miss)
    if not behind(prefixes[0]):
        raise ModelFileError(f'no tensor begins with "{named}"', remedy=f"the names are {shorten(list(source))}")
    if named is None:
        _propose_prefix(layouts, source, own, may_miss_options[-1])
    if (signature := known_as(source)) and signature.family != family:
        lacking = "" if signature.family else ", which is not built here"
        raise ModelFileError(f"these are weights of {signature.name}{lacking}", remedy=signature.remedy)
    nearest = recognise(layouts, behind(prefixes[0]), own, may_miss=may_miss_options[0])  # says what does not fit
    return _Recognised(behind(prefixes[0]), prefixes[0], nearest, may_miss_options[0])


def _propose_prefix(
    layouts: Mapping[str, Rules], source: Mapping[str, Tensor], own: Mapping[str, Tensor], may_miss: Mapping[str, str]
) -> None:
    """Raise an error that names the beginnings of names behind which the backbone lies whole, if there are any."""
    backbone = {name: tensor for name, tensor in own.items() if name.startswith("backbone.")}
    beginnings = Counter(name[: dot.end()] for name in source for dot in re.finditer(r"\.", name))
    fitting: dict[str, int] = {}
    for prefix, count in beginnings.items():
        if 2 * count < len(backbone) or prefix.count(".") > DEEPEST_PREFIX:
            continue
        tensors = {name.removeprefix(prefix) for name in source if name.startswith(prefix)}
        for rules in layouts.values():
            if rules.knows(tensors) and not rules.plan(tensors, backbone, {**may_miss, "head.": "no head"}).faults:
                fitting[prefix] = count
    if fitting:
        counts = ", ".join(f"{count} names begin with {prefix}" for prefix, count in fitting.items())
        first = next(iter(fitting))
        raise ModelFileError(
            f"the weights are of no known layout, but {counts}",
            remedy=f"give --prefix {first} (in a recipe model.transfer.prefix, in Python prefix={first!r})",
        )


def _fills_some_of_the_head(rules: Rules, source: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    """Whether the source has a part of our head, or what looks like it among much else.

    A classifier alone, for features of another width, is another head's.
    """
    plan = rules.plan(source, own, {})
    present = {name: names for name, (_, names) in plan.filled.items() if set(names) <= set(source)}
    head = {name: names for name, names in present.items() if name.startswith("head.")}
    other_width = any(
        len(names) == 1 and source[names[0]].shape[1:] != own[name].shape[1:] for name, names in head.items()
    )
    used = set().union(*present.values(), *(entry.sources for entry in plan.dropped))
    return bool(head) and not (other_width and set(source) <= used)


def prefixes_of(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Nothing, then what all names have in front, wrapper by wrapper."""
    prefix = ""
    while True:
        yield prefix
        wrapper = next((text for text in WRAPPERS if all(name.startswith(prefix + text) for name in tensors)), "")
        if not wrapper or not tensors:
            return
        prefix += wrapper
