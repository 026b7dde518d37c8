"""Names of tensors with placeholders: one side of a rule of `weights.rules`, which says what they stand for."""

from __future__ import annotations

import re
from typing import TypeAlias

from patchform.errors import UsageError

_PLACEHOLDER = re.compile(r"\{(\w+)([+-]\d+)?\}|(\*)")
Binding: TypeAlias = dict[str, str]
"""What each placeholder stands for; numbers that carry an offset on this side are already without it."""


class Pattern:
    """One side of a rule."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.holes: list[tuple[str, int]] = []  # (name, offset), in the order of the text
        self.literals: list[str] = []  # one more than holes
        expression, start, stars = "", 0, 0
        for match in _PLACEHOLDER.finditer(text):
            name, offset, star = match.groups()
            if star:
                name, stars = f"*{stars}", stars + 1
            self.literals.append(text[start : match.start()])
            self.holes.append((name, int(offset or 0)))
            run = "(.*)" if star else r"(0|[1-9]\d*)" if offset else r"([^.]+)"
            expression += re.escape(self.literals[-1]) + run
            start = match.end()
        self.literals.append(text[start:])
        self.expression = re.compile(expression + re.escape(self.literals[-1]))
        if set("{}") & set("".join(self.literals)):
            raise UsageError(f'pattern "{text}" has a brace that belongs to no placeholder')

    @property
    def names(self) -> set[str]:
        """The placeholders."""
        return {name for name, _ in self.holes}

    def match(self, name: str) -> Binding | None:
        """What the placeholders stand for, or None."""
        match = self.expression.fullmatch(name)
        if match is None:
            return None
        binding: Binding = {}
        for (hole, offset), run in zip(self.holes, match.groups()):
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
