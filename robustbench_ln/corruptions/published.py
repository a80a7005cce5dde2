"""Which conditions of a published data set a user asks for; nothing is degraded, so no noise and no constants."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from robustbench_ln.corruptions.conditions import parse_severities
from robustbench_ln.corruptions.kernels.textures import FrostTextures, procedural_textures
from robustbench_ln.corruptions.plan import PROCEDURAL_FROST, Degradations
from robustbench_ln.corruptions.suites import GROUPS, list_suites, load_suite, nearest_suite
from robustbench_ln.errors import UsageError, unknown_name
from robustbench_ln.types import Condition, Origin

SETS: dict[str, tuple[int, tuple[str, ...]]] = {
    "imagenet-c-bar": (
        224,
        (
            "blue_noise_sample", "brownish_noise", "caustic_refraction", "checkerboard_cutout", "cocentric_sine_waves",
            "inverse_sparkles", "perlin_noise", "plasma_noise", "single_frequency_greyscale", "sparkles",
        ),
    ),
    "cifar10-c-bar": (
        32,
        (
            "blue_noise_sample", "brownish_noise", "checkerboard_cutout", "circular_motion_blur", "inverse_sparkles",
            "lines", "pinch_and_twirl", "ripple", "sparkles", "transverse_chromatic_abberation",
        ),
    ),
    "imagenet-3dcc": (
        224,
        (
            "near_focus", "far_focus", "bit_error", "color_quant", "flash", "fog_3d", "h265_abr", "h265_crf",
            "iso_noise", "low_light", "xy_motion_blur", "z_motion_blur",
        ),
    ),
}  # fmt: skip
"""Published sets of corruptions that we cannot make: the size of their images, and their names (sic).

Source: imagenet_c_bar/*.csv of facebookresearch/augmentation-corruption; robustbench/data.py for ImageNet-3DCC.
"""


def set_of(corruption: str, image_size: tuple[int, int]) -> str:
    """The suite, or the set of `SETS`, that a published corruption belongs to; the suite nearest in size for others."""
    side = min(image_size)
    known = [(abs(size - side), name) for name, (size, names) in SETS.items() if corruption in names]
    return min(known)[1] if known else nearest_suite(image_size).name


def members(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The corruptions of a suite or a set: those that count for its mean, and the extra ones."""
    if name in SETS:
        return SETS[name][1], ()
    corruptions = load_suite(name).corruptions.values()
    return tuple(c.name for c in corruptions if not c.extra), tuple(c.name for c in corruptions if c.extra)


@dataclass(frozen=True, slots=True)
class PublishedPlan:
    """What was asked for of a published data set, checked as far as that can be done before it is opened.

    Attributes:
        corruptions: what ``--corruption`` named; empty for all that are found.
        severities: what ``--severity`` named; empty for all that are found.
    """

    corruptions: tuple[str, ...]
    severities: tuple[int, ...]

    def for_files(
        self,
        found: Mapping[str, Sequence[int]],
        image_size: tuple[int, int],
        origin: Origin,
    ) -> Degradations:
        """The conditions among those found.

        Args:
            found: severities of each corruption that is there.
            image_size: height and width of the images.
            origin: who made the images.

        Raises:
            UsageError: a corruption that is not there, or nothing of what was asked for.
        """
        names = self._names(found)
        wanted = [(name, s) for name in names for s in (self.severities or found[name])]
        conditions = tuple(
            Condition(name, float(s), origin.suite or set_of(name, image_size), jpeg_parity=origin.jpeg)
            for name, s in wanted
            if s in found[name]
        )
        if not conditions:
            there = ", ".join(f"{name} {','.join(map(str, found[name]))}" for name in names or found)
            raise UsageError(
                "none of the conditions asked for is in the folder",
                found=f"--severity {','.join(map(str, self.severities))}" if names else ", ".join(self.corruptions),
                hint=f"there are {there}",
            )
        missing = [f"{name} {s}" for name, s in wanted if s not in found[name]]
        warnings = [f"not in the folder: {', '.join(missing)}"] if missing else []
        textures = None
        if origin.pixels == "regenerated":
            warnings.append("not comparable with published figures: lnbench corrupt made these images")
        if "frost" in names:
            own = bool(origin.frost_sha256) and origin.frost_sha256 == procedural_textures().sha256
            textures = FrostTextures("procedural" if own else "original", origin.frost_sha256, ())
            warnings += [PROCEDURAL_FROST] if own else []
        return Degradations(conditions, nearest_suite(image_size), textures, tuple(warnings))

    def _names(self, found: Mapping[str, Sequence[int]]) -> list[str]:
        """The corruptions asked for that are there, in the field's order."""
        known = load_suite(list_suites()[0]).corruptions  # the shipped suites have the same names
        in_order = [*(name for name in known if name in found), *sorted(found.keys() - known.keys())]
        if not self.corruptions:
            return in_order
        names: dict[str, None] = {}
        for name in (name.strip() for text in self.corruptions for name in text.split(",")):
            if name == "all":
                names |= dict.fromkeys(in_order)
            elif name in GROUPS:
                group = [one.name for one in known.values() if one.extra in GROUPS[name]]
                names |= dict.fromkeys(one for one in group if one in found)
            elif name in found:
                names[name] = None
            else:
                raise unknown_name("corruption in this folder", name, [*GROUPS, *in_order])
        return list(names)


def plan_published(
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
) -> PublishedPlan:
    """Check what was asked for of published images; see :func:`robustbench_ln.evaluate` for the arguments.

    Raises:
        UsageError: a severity that is none, or anything that would change the pixels.
    """
    changing = {
        "--noise": noise, "--sigma": sigma, "--preset": preset, "--range": range, "--suite": suite,
        "--frost-textures": frost_textures, "--jpeg-parity": jpeg_parity or None,
        "--repeats": repeats if repeats != 1 else None,
    }  # fmt: skip
    for option, value in changing.items():
        if value is not None:
            raise UsageError(
                f"{option} does not go with published images, which are corrupted already and stay as they are",
                found=f"{option} {value}" if value is not True else option,
                hint="--data with the clean images, which lnbench then degrades itself",
            )
    asked = () if corruption is None else (corruption,) if isinstance(corruption, str) else tuple(corruption)
    return PublishedPlan(asked, () if severity is None else parse_severities(severity))
