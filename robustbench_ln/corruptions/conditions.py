"""From what a user writes (`--noise mbn=0:0.5:0.1 --corruption fog --severity 1:5`) to the conditions of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal

from robustbench_ln.corruptions.noise import NOISES
from robustbench_ln.corruptions.suites import GROUPS, SEVERITIES, Suite, constants_folder
from robustbench_ln.errors import InputError, UsageError, unknown_name
from robustbench_ln.types import RANGES, Condition
from robustbench_ln.yaml_files import read_yaml

DEFAULT_SIGMAS = "0:1:0.25"
_MAX_LEVELS = 10_000
# Narrower than Python's numbers, which may hold underscores and the digits of any script.
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.IGNORECASE)


def _as_text(value: object) -> str:
    """A number, or numbers, of any library as one would type them."""
    if isinstance(value, str):
        return value
    try:
        numbers = list(value)  # type: ignore[call-overload]
    except TypeError:
        numbers = [value]
    return ",".join(map(str, numbers))


def parse_grid(text: str | float | Sequence[float], *, option: str = "--sigma") -> tuple[float, ...]:
    """The levels a grid names, in the order written, without duplicates.

    Args:
        text: ``0:3:0.25`` (start:stop:step, stop included), ``0,0.5,1``, a single number, or mixtures by commas; a
            number or a sequence of numbers is taken as it is.
        option: what the error calls the grid.

    Raises:
        UsageError: a part is not a finite number at least 0, a step is not positive, or stop lies before start.
    """
    text = _as_text(text)
    levels: dict[Decimal, None] = {}
    for part in text.split(","):
        for level in _parse_part(part.strip(), text, option):
            levels[level] = None
    return tuple(float(level) for level in levels)


def _parse_part(part: str, whole: str, option: str) -> Iterable[Decimal]:
    numbers = [_parse_number(piece.strip(), whole, option) for piece in part.split(":")]
    if len(numbers) == 1:
        return numbers
    if len(numbers) != 3:
        raise _grid_error(option, repr(part), whole)
    start, stop, step = numbers
    if step <= 0 or stop < start:
        raise UsageError(
            f"{option} {whole!r} names no levels",
            found=f"start {start}, stop {stop}, step {step}",
            hint="start:stop:step with start <= stop and a step above 0, such as 0:3:0.25",
        )
    count = int((stop - start) / step) + 1
    if count > _MAX_LEVELS:
        raise UsageError(f"{option} {whole!r} names too many levels", found=str(count), hint="a larger step")
    # Decimal steps: 0.1 + 0.1 + 0.1 is 0.3 here, so that a level is the number the user wrote.
    return [start + i * step for i in range(count)]


def _parse_number(piece: str, whole: str, option: str) -> Decimal:
    number = Decimal(piece) if _NUMBER.fullmatch(piece) else None
    if number is None or not 0 <= number <= Decimal("1e6"):
        raise _grid_error(option, repr(piece), whole)
    return abs(number)  # -0 is 0


def _grid_error(option: str, found: str, whole: str) -> UsageError:
    return UsageError(
        f"{option} {whole!r} is not a grid of numbers from 0 to 1e6",
        found=found,
        hint="a number (0.5), a list (0,0.5,1) or start:stop:step (0:3:0.25)",
    )


@dataclass(frozen=True, slots=True)
class NoiseRequest:
    """One noise with its grid, as asked for."""

    name: str
    sigmas: tuple[float, ...]


def parse_noises(noises: str | Iterable[str], sigma: str | float | Sequence[float] | None) -> list[NoiseRequest]:
    """The noises that `--noise` names, each with its own grid or the common one.

    Args:
        noises: texts such as ``agn,apn`` and ``mbn=0:0.5:0.1``; a grid may itself hold commas (``mbn=0,0.1,apn``).
        sigma: grid of the names without one; None for the default ``0:1:0.25``.

    Raises:
        UsageError: unknown noise, bad grid, a sigma above what the noise allows, or a noise named twice.
    """
    common = parse_grid(DEFAULT_SIGMAS if sigma is None else sigma)
    grids: dict[str, str | None] = {}
    for text in [noises] if isinstance(noises, str) else noises:
        current: str | None = None
        for token in (token.strip() for token in text.split(",")):
            if current is not None and grids[current] is not None and token[:1] in "0123456789.-+":
                grids[current] = f"{grids[current]},{token}"
                continue
            name, equals, grid = (piece.strip() for piece in token.partition("="))
            if name not in NOISES:
                raise unknown_name("noise", name, NOISES)
            if name in grids:
                raise UsageError(f"noise {name!r} is named twice", found=text, hint="one grid with commas")
            grids[name] = grid if equals else None
            current = name
    requests = []
    for name, own in grids.items():
        sigmas = common if own is None else parse_grid(own, option=f"--noise {name}=")
        too_large = [s for s in sigmas if s > NOISES[name].max_sigma]
        if too_large:
            raise UsageError(
                f"sigma of {name} is a probability, at most {NOISES[name].max_sigma:g}",
                found=f"{too_large[0]:g}",
                hint=f"--noise {name}=0:{NOISES[name].max_sigma:g}:0.1",
            )
        requests.append(NoiseRequest(name, sigmas))
    return requests


def parse_corruptions(corruptions: str | Iterable[str], suite: Suite) -> list[str]:
    """The corruptions of a suite that `--corruption` names, in the order written.

    Args:
        corruptions: names by commas; ``all``, ``common`` (those that count for mCE) or ``extra`` (the others).
        suite: where they are looked up.

    Raises:
        UsageError: a name that is not in the suite.
    """
    names: dict[str, None] = {}
    for text in [corruptions] if isinstance(corruptions, str) else corruptions:
        for name in (name.strip() for name in text.split(",")):
            if name in GROUPS:
                names |= dict.fromkeys(one.name for one in suite.corruptions.values() if one.extra in GROUPS[name])
            elif name in suite.corruptions:
                names[name] = None
            else:
                raise unknown_name("corruption", name, [*GROUPS, *suite.corruptions])
    return list(names)


def parse_severities(text: str | int | Sequence[int]) -> tuple[int, ...]:
    """The severities that `--severity` names: ``1:5``, ``3``, ``1,3,5``, or numbers.

    Raises:
        UsageError: a part that is no whole number from 1 to 5, or a range that runs backwards.
    """
    text = _as_text(text)
    found: dict[int, None] = {}
    for part in text.split(","):
        ends = [piece.strip().removesuffix(".0") for piece in part.split(":")]
        numbers = [int(end) if end in map(str, SEVERITIES) else 0 for end in ends]
        if len(ends) > 2 or 0 in numbers or numbers[0] > numbers[-1]:
            raise UsageError(
                f"--severity {text!r} names no severities",
                found=repr(part.strip()),
                hint="1:5, a list (1,3,5) or a number",
            )
        found |= dict.fromkeys(range(numbers[0], numbers[-1] + 1))
    return tuple(found)


def plan_noises(requests: Iterable[NoiseRequest], *, range_policy: str = "clip", repeats: int = 1) -> list[Condition]:
    """The conditions of noises.

    Args:
        requests: noises with their grids.
        range_policy: ``clip``, ``rescale`` or ``none``.
        repeats: how often the pixels of each noisy condition are redrawn, at least 1.
    """
    if range_policy not in RANGES:
        raise unknown_name("range", range_policy, RANGES)
    return [
        Condition(request.name, sigma, range=range_policy, repeat=repeat)
        for request in requests
        for sigma in request.sigmas
        # sigma 0 leaves every image as it is, so redrawing it would repeat the same row.
        for repeat in range(repeats if sigma > 0 else 1)
    ]


def plan_corruptions(
    names: Iterable[str], severities: Iterable[int], suite: Suite, *, repeats: int = 1, jpeg_parity: bool = False
) -> list[Condition]:
    """The conditions of corruptions.

    Args:
        names: corruptions of the suite.
        severities: each from 1 to 5.
        suite: whose constants.
        repeats: how often the pixels of each random corruption are redrawn, at least 1.
        jpeg_parity: whether corrupted images go through JPEG of quality 85.
    """
    severities = tuple(severities)
    return [
        Condition(name, float(severity), suite.name, repeat=repeat, jpeg_parity=jpeg_parity)
        for name in names
        for severity in severities
        for repeat in range(repeats if suite[name].is_random else 1)
    ]


@dataclass(frozen=True, slots=True)
class Preset:
    """A named set of noises, grids and range policy, such as the paper's figure 6."""

    name: str
    description: str
    noises: dict[str, str]
    range_policy: str

    @property
    def requests(self) -> list[NoiseRequest]:
        """The preset's noises with their grids."""
        return parse_noises([f"{name}={grid}" for name, grid in self.noises.items()], None)


def list_presets() -> list[str]:
    """Names of the presets in `corruptions/presets/`."""
    return sorted(path.stem for path in (constants_folder() / "presets").glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a preset.

    Raises:
        UsageError: no such preset.
        InputError: its file is not of the expected form.
    """
    if name not in list_presets():
        raise unknown_name("preset", name, list_presets())
    file = read_yaml(constants_folder() / "presets" / f"{name}.yaml")
    try:
        return Preset(name, file.content["description"], dict(file.content["noises"]), file.content["range"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{file.name} is not a preset", found=repr(error), hint="reinstall lnbench") from None
