"""How models differ from those that a layout of weights was written for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from patchform.weights.name_patterns import Pattern


class CrossFamily(NamedTuple):
    """What a model has beside, or lacks of, the family that a layout was written for; patterns are of own names."""

    fresh: Mapping[str, str]
    """Pattern -> why the layout has nothing for it: it stays as it was."""
    copies: Mapping[str, str]
    """Pattern -> the one whose sources it is made from too, with the same placeholders."""
    lacks: Mapping[str, str]
    """Pattern -> why the model may do without it: what the source has for it is dropped."""
    from_images: bool = False
    """The layout is of single pictures, the model of clips."""
    unread: tuple[str, ...] = ()
    """What no head of the layout reads: it is not written, and those of the above say what it is filled with."""

    def copy_source(self, own: str) -> tuple[str, str]:
        """The own tensor that this one is a copy of, itself else, and the pattern of a copy, "" else."""
        for copied, original in self.copies.items():
            binding = Pattern(copied).match(own)
            if binding is not None:
                return Pattern(original).render(binding) or own, original
        return own, ""

    def below(self, own_prefix: str) -> CrossFamily:
        """The same one level deeper."""
        fresh, lacks = ({own_prefix + name: why for name, why in of.items()} for of in (self.fresh, self.lacks))
        copies = {own_prefix + to: own_prefix + of for to, of in self.copies.items()}
        unread = tuple(own_prefix + name for name in self.unread)
        return CrossFamily(fresh, copies, lacks, self.from_images, unread)


SAME_FAMILY = CrossFamily({}, {}, {})
