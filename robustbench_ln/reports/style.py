"""How a mode looks: the same colour, dash and marker wherever it is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

Dash = Literal["solid", "dashed", "dashdot", "dotted"]


@dataclass(frozen=True, slots=True)
class ModeStyle:
    """The look of one mode.

    Attributes:
        color: ``#rrggbb``.
        dash: line style.
        marker: index into the marker tables of the formats, from 0.
    """

    color: str
    dash: Dash
    marker: int


# The palette of Okabe & Ito (2008), told apart with every common colour blindness. Its yellow is left out, too light
# for a line on white; grey stands in.
BLACK, ORANGE, SKY, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
BLUE, VERMILION, PURPLE, GREY = "#0072b2", "#d55e00", "#cc79a7", "#7f7f7f"

STYLES = {
    "native": ModeStyle(BLACK, "solid", 0),
    "bn": ModeStyle(VERMILION, "solid", 1),
    "dynbn-batch": ModeStyle(BLUE, "solid", 2),
    "dynbn-single": ModeStyle(SKY, "solid", 3),
    "dynbn-single+rot90": ModeStyle(SKY, "dashed", 4),
    "bn-adapt": ModeStyle(GREY, "solid", 5),
    "ln-single": ModeStyle(ORANGE, "solid", 3),
    "ln-single+rot90": ModeStyle(ORANGE, "dashed", 4),
    "ln-single-vote": ModeStyle(BLACK, "dashdot", 5),
    "ln-single-vote+rot90": ModeStyle(BLACK, "dotted", 1),
    "ln-batch": ModeStyle(GREEN, "solid", 6),
    "ln-voting": ModeStyle(PURPLE, "solid", 2),
}

N_MARKERS = 8
_COLORS = (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
_DASHES: tuple[Dash, ...] = ("solid", "dashed", "dashdot", "dotted")


def mode_styles(modes: Iterable[str]) -> dict[str, ModeStyle]:
    """A style for each mode, no two alike in colour and dash while 32 suffice.

    A known mode has its own style in every figure; ``NAME:M`` borrows it from ``NAME`` while it is free.
    """
    modes = list(dict.fromkeys(modes))
    styles = {mode: STYLES[mode] for mode in modes if mode in STYLES}
    for mode in modes:
        if mode not in styles:
            family = STYLES.get(mode.split(" ")[0].split(":")[0])
            styles[mode] = _free_style(family, list(styles.values()))
    return {mode: styles[mode] for mode in modes}


def _free_style(family: ModeStyle | None, taken: Sequence[ModeStyle]) -> ModeStyle:
    """A style that is not taken; of those, in the family's colour, and of those, with the family's dash."""
    used = {(style.dash, style.color) for style in taken}
    looks = [look for look in product(_DASHES, _COLORS) if look not in used] or [("solid", GREY)]
    markers = [marker for marker in range(N_MARKERS) if marker not in {style.marker for style in taken}]
    markers = markers or [len(taken) % N_MARKERS]
    if family:
        looks.sort(key=lambda look: (look[1] != family.color, look[0] != family.dash))
        markers.sort(key=lambda marker: marker != family.marker)
    dash, color = looks[0]
    return ModeStyle(color, dash, markers[0])
