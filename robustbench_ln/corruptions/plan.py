"""From everything a user asks to have done to images to the conditions, the suite and the textures of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from robustbench_ln.corruptions.conditions import (
    load_preset,
    parse_corruptions,
    parse_noises,
    parse_severities,
    plan_corruptions,
    plan_noises,
)
from robustbench_ln.corruptions.kernels.textures import FrostTextures, load_textures
from robustbench_ln.corruptions.suites import Suite, default_textures, list_suites, load_suite, nearest_suite
from robustbench_ln.errors import UsageError
from robustbench_ln.types import Condition

DEFAULT_NOISES = ("agn",)
DEFAULT_RANGE = "clip"
DEFAULT_SEVERITIES = "1:5"
PROCEDURAL_FROST = (
    "not comparable with published figures: frost has procedural textures, not the original photographs "
    "(--frost-textures DIR)"
)


@dataclass(frozen=True, slots=True)
class Degradations:
    """What is to be done to images, for images of a known size; see :meth:`DegradationPlan.for_images`.

    Attributes:
        conditions: noises, then corruptions.
        suite: whose constants corruptions have.
        textures: of frost; None where it is not among the conditions.
        warnings: what keeps the results from standing beside published ones.
    """

    conditions: tuple[Condition, ...]
    suite: Suite
    textures: FrostTextures | None
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DegradationPlan:
    """What was asked for, checked as far as that can be done before any image is seen.

    Attributes:
        noises: conditions of noises.
        corruptions: what ``--corruption`` named.
        severities: of corruptions.
        suite: the suite that was named; None for the one nearest in size.
        frost_textures: folder of the original textures, where one was named.
        jpeg_parity: whether corrupted images go through JPEG of quality 85.
        repeats: how often the pixels of each random condition are drawn.
    """

    noises: tuple[Condition, ...]
    corruptions: tuple[str, ...]
    severities: tuple[int, ...]
    suite: Suite | None
    frost_textures: Path | None
    jpeg_parity: bool
    repeats: int

    def for_images(self, image_size: tuple[int, int]) -> Degradations:
        """Choose the suite and the textures for images of this height and width."""
        suite = self.suite or nearest_suite(image_size)
        names = parse_corruptions(self.corruptions, suite) if self.corruptions else []
        conditions = plan_corruptions(names, self.severities, suite, repeats=self.repeats, jpeg_parity=self.jpeg_parity)
        textures = None
        if any(suite[name].uses_textures for name in names):
            textures = load_textures(self.frost_textures) if self.frost_textures else default_textures()
        warnings = []
        if names and image_size != (suite.size, suite.size):
            warnings.append(
                f"not comparable with published figures: the constants of {suite.name} are for {suite.size} x "
                f"{suite.size} pixels, the images have {image_size[0]} x {image_size[1]}"
            )
        if textures is not None and textures.kind == "procedural":
            warnings.append(PROCEDURAL_FROST)
        return Degradations((*self.noises, *conditions), suite, textures, tuple(warnings))


def plan_degradations(
    *,
    noise: str | Iterable[str] | None = None,
    sigma: str | float | Sequence[float] | None = None,
    preset: str | None = None,
    range: str | None = None,
    corruption: str | Iterable[str] | None = None,
    severity: str | int | Sequence[int] | None = None,
    suite: str | None = None,
    frost_textures: str | Path | None = None,
    jpeg_parity: bool = False,
    repeats: int = 1,
    otherwise: Literal["noise", "corruption"] = "noise",
) -> DegradationPlan:
    """Check everything that was asked for; see :func:`robustbench_ln.evaluate` for the arguments.

    `otherwise` is what is done where neither a noise nor a corruption is named: the default noise, or all corruptions.

    Raises:
        UsageError: a name or number that is none, or options that do not go together.
        InputError: a suite file that cannot be used.
    """
    if repeats < 1:
        raise UsageError("--repeats is a number of draws", found=str(repeats), hint="1 or more")
    if otherwise == "corruption" and noise is None and corruption is None:
        corruption = "all"
    severities = parse_severities(DEFAULT_SEVERITIES if severity is None else severity)
    if corruption is None:
        needing = {"--severity": severity, "--suite": suite, "--frost-textures": frost_textures}
        for option, value in (needing | {"--jpeg-parity": jpeg_parity or None}).items():
            if value is not None:
                raise UsageError(f"{option} needs --corruption", found=f"{option} alone", hint="--corruption all")
        corruption = ()
    asked = (corruption,) if isinstance(corruption, str) else tuple(corruption)
    chosen = load_suite(suite) if suite is not None else None
    if asked:
        # Which suite fits is known with the size of the images; the shipped ones have the same names.
        parse_corruptions(asked, chosen or load_suite(list_suites()[0]))
    if preset is not None:
        if noise is not None or sigma is not None:
            raise UsageError("a preset brings its own noises and grids", found="--noise or --sigma", hint="one of them")
        if range is not None:
            raise UsageError(
                "a preset brings its own range",
                found=f"--preset {preset} --range {range}",
                hint="one of them (lnbench list presets)",
            )
        chosen_preset = load_preset(preset)
        noises = plan_noises(chosen_preset.requests, range_policy=chosen_preset.range_policy, repeats=repeats)
    else:
        if noise is None and asked and sigma is not None:
            found = "--corruption without --noise"
            raise UsageError("--sigma is the grid of noises", found=found, hint="--severity 1:5")
        wanted = noise if noise is not None else () if asked else DEFAULT_NOISES
        noises = plan_noises(parse_noises(wanted, sigma), range_policy=range or DEFAULT_RANGE, repeats=repeats)
    folder = Path(frost_textures) if frost_textures is not None else None
    return DegradationPlan(tuple(noises), asked, severities, chosen, folder, jpeg_parity, repeats)
