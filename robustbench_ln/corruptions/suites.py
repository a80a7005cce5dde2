"""Suites: which kernel with which constants a corruption is, read from YAML; and a corruption applied to images.

The suites of the field stand in `corruptions/*.yaml` at the top of the repository; a user's own is read with
:func:`load_suite`. The files hold constants only, and every line is checked against the signature of its kernel.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import torch
from torch import Tensor

from robustbench_ln.corruptions.kernels import blur, color, digital, noise, weather
from robustbench_ln.corruptions.kernels.constants import LARGEST, Between
from robustbench_ln.corruptions.kernels.digital import jpeg_compression
from robustbench_ln.corruptions.kernels.textures import (
    FrostTextures,
    find_installed_textures,
    load_textures,
    procedural_textures,
)
from robustbench_ln.corruptions.noise import NOISES
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError, LnbenchError, UsageError, unknown_name
from robustbench_ln.numerics import full_float32
from robustbench_ln.yaml_files import YamlFile, read_yaml

SEVERITIES = (1, 2, 3, 4, 5)
FAMILIES = ("noise", "blur", "weather", "digital")
GROUPS = {"all": (False, True), "common": (False,), "extra": (True,)}
"""What ``--corruption`` takes besides names (every one, those of mCE, the others), and their ``extra``."""
PARITY_QUALITY = 85  # of the JPEG files of ImageNet-C

_MODULES = {"noise": noise, "blur": blur, "weather": weather, "color": color, "digital": digital}
_SUPPLIED = ("images", "rng", "textures")  # what a kernel is given besides the constants of its line
_ATTRIBUTES = ("kernel", "family", "extra")
_TAKEN = ("clean", *GROUPS, *NOISES)  # names that mean something else in requests and results

Constants = Mapping[str, float | int | bool]


def constants_folder() -> Path:
    """The folder `corruptions/` with suites and presets: inside the installed package, or at the top of a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "_corruptions"
    return inside if inside.is_dir() else package.parent / "corruptions"


@dataclass(frozen=True, slots=True)
class Corruption:
    """One line of a suite.

    Attributes:
        name: as the field calls it (``glass_blur``).
        kernel: module and function (``blur.glass_blur``).
        family: ``noise``, ``blur``, ``weather`` or ``digital``.
        extra: one of those that do not count for mCE.
        constants: of the severities 1 to 5, by the kernel's names.
    """

    name: str
    kernel: str
    family: str
    extra: bool
    constants: tuple[Constants, ...]

    @property
    def is_random(self) -> bool:
        """Whether it draws random numbers: only then a repeat makes other pixels."""
        parameter = _parameters(self.kernel).get("rng")
        return parameter is not None and parameter.default is parameter.empty

    @property
    def summary(self) -> str:
        """What it does, in the first line of its kernel's documentation."""
        return (inspect.getdoc(_kernel(self.kernel)) or "").split("\n")[0].rstrip(".")

    @property
    def uses_textures(self) -> bool:
        """Whether it lays frost textures over the image."""
        return "textures" in _parameters(self.kernel)


@dataclass(frozen=True, slots=True)
class Suite:
    """A table of corruptions with their constants.

    Attributes:
        name: ``cifar10-c``; of a user's file ``<stem>@<first digits of a digest>``, so that a changed file is another.
        size: height and width, in pixels, that the constants are meant for.
        description: what it is, in a line.
        corruptions: by name, in the field's order.
    """

    name: str
    size: int
    description: str
    corruptions: Mapping[str, Corruption]

    def __getitem__(self, name: str) -> Corruption:
        if name not in self.corruptions:
            raise unknown_name("corruption", name, self.corruptions)
        return self.corruptions[name]


def list_suites() -> list[str]:
    """Names of the suites in `corruptions/`, the smallest images first."""
    names = (path.stem for path in constants_folder().glob("*.yaml"))
    return sorted(names, key=lambda name: (load_suite(name).size, name))


def load_suite(name: str) -> Suite:
    """A suite by its name, or a user's own by the path of its file.

    Raises:
        UsageError: neither a suite nor a file.
        InputError: a file with unknown keys, wrong counts or types, or constants its kernels cannot run with; the line
            is named.
    """
    shipped = constants_folder() / f"{name}.yaml"
    if re.fullmatch(r"[\w-]+", name) and shipped.is_file():
        return _shipped_suite(name)
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        raise unknown_name("suite", name, [*list_suites(), "FILE.yaml"])
    file = read_yaml(path)
    suite = _parsed(file, path.stem)
    _try_out(suite, file)
    digest = hashlib.sha256(json.dumps(_content(suite), sort_keys=True).encode()).hexdigest()[:8]
    return Suite(f"{suite.name}@{digest}", suite.size, suite.description, suite.corruptions)


@lru_cache
def _shipped_suite(name: str) -> Suite:
    return _parsed(read_yaml(constants_folder() / f"{name}.yaml"), name)


def nearest_suite(image_size: tuple[int, int]) -> Suite:
    """The shipped suite whose size is nearest, by ratio, to the shorter side of images of this height and width."""
    side = min(image_size)
    suites = [load_suite(name) for name in list_suites()]
    return min(suites, key=lambda suite: abs(math.log(side / suite.size)))


@lru_cache
def default_textures() -> FrostTextures:
    """Frost textures where none are named: the originals where an installed package has them, else our own."""
    folder = find_installed_textures()
    return procedural_textures() if folder is None else load_textures(folder)


def corrupt(
    images: Tensor,
    name: str,
    severity: int,
    *,
    suite: Suite | str | None = None,
    indices: Tensor | None = None,
    seed: int = 0,
    repeat: int = 0,
    textures: FrostTextures | None = None,
    jpeg_parity: bool = False,
) -> Tensor:
    """Corrupt 8-bit images; a pure function of its arguments, image by image.

    Args:
        images: ``(B, 3, H, W)`` uint8, RGB; not modified.
        name: a corruption of the suite.
        severity: 1 to 5.
        suite: a suite, its name, or the path of a user's; the one nearest in size when left out.
        indices: ``(B,)`` positions in the data set, which key the random numbers; 0 to B - 1 when left out.
        seed: of everything random.
        repeat: which redraw, from 0.
        textures: of frost; by default the originals where an installed package has them, else procedural ones.
        jpeg_parity: save as JPEG of quality 85 and read again, as the files of ImageNet-C were.

    Returns: ``(B, 3, H, W)`` uint8.

    Raises:
        UsageError: an unknown corruption or suite, a severity outside 1 to 5.
        InputError: images that are not 8-bit RGB, or too small for the corruption.

    Source: Hendrycks & Dietterich, ICLR 2019; the generators of https://github.com/hendrycks/robustness.
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise InputError(
            "corruptions act on 8-bit RGB images",
            found=f"{images.dtype} {tuple(images.shape)}",
            hint="a uint8 tensor (B, 3, H, W)",
        )
    if suite is None:
        suite = nearest_suite((images.shape[2], images.shape[3]))
    elif isinstance(suite, str):
        suite = load_suite(suite)
    corruption = suite[name]
    if severity not in SEVERITIES:
        raise UsageError("a severity is a whole number from 1 to 5", found=str(severity), hint="--severity 1:5")
    if not len(images):
        return images.clone()
    if indices is None:
        indices = torch.arange(len(images))
    images = images.contiguous()  # kernels see one memory layout, whatever the caller's
    supplied: dict[str, Any] = {}
    if corruption.is_random:
        supplied["rng"] = ImageRng(seed, name, indices, repeat=repeat, device=images.device)
    if corruption.uses_textures:
        supplied["textures"] = textures or default_textures()
    with full_float32():  # the sums that kernels make by matrix products are exact, their bytes the same everywhere
        result: Tensor = _kernel(corruption.kernel)(images, **supplied, **corruption.constants[int(severity) - 1])
    return jpeg_compression(result, quality=PARITY_QUALITY) if jpeg_parity else result


# Reading


def _kernel(name: str) -> Callable[..., Tensor]:
    module, _, function = name.partition(".")
    found: Callable[..., Tensor] = vars(_MODULES[module])[function]
    return found


@lru_cache
def _parameters(kernel: str) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(_kernel(kernel), eval_str=True).parameters


@lru_cache
def kernels() -> tuple[str, ...]:
    """Every kernel that a suite can name: ``kernel(images, [rng], *, constants)`` in a kernel module."""
    found = []
    for short, module in _MODULES.items():
        for name, value in vars(module).items():
            if inspect.isfunction(value) and value.__module__ == module.__name__ and not name.startswith("_"):
                parameters = inspect.signature(value).parameters.values()
                positional = [one.name for one in parameters if one.kind is not one.KEYWORD_ONLY]
                if positional in (["images"], ["images", "rng"]):
                    found.append(f"{short}.{name}")
    return tuple(found)


def _parsed(file: YamlFile, name: str) -> Suite:
    content = file.content
    if not isinstance(content, dict):
        file.fail((), "not a suite", found=type(content).__name__, hint="keys size, description, corruptions")
    _check_keys(file, (), content, ("size", "description", "corruptions"))
    size = content["size"]
    if type(size) is not int or not 1 <= size <= LARGEST:
        file.fail(("size",), "not a number of pixels", found=repr(size), hint="size: 32")
    if not isinstance(content["corruptions"], dict) or not content["corruptions"]:
        file.fail(("corruptions",), "not a table of corruptions", found=repr(content["corruptions"])[:60])
    corruptions = {}
    for key, line in content["corruptions"].items():
        where = ("corruptions", key)
        if key in _TAKEN:
            taken = ", ".join(_TAKEN)
            file.fail(where, f"{key} has a meaning already", found=repr(key), hint=f"a name that is none of {taken}")
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", key):
            file.fail(where, "not a name for a corruption", found=repr(key), hint="lower case letters and _")
        corruptions[key] = _corruption(file, where, key, line)
    return Suite(name, size, str(content["description"]), corruptions)


def _corruption(file: YamlFile, where: tuple[str, ...], name: str, line: Any) -> Corruption:
    if not isinstance(line, dict) or "kernel" not in line:
        file.fail(where, "has no kernel", found=repr(line)[:60], hint=f"kernel: one of {', '.join(kernels())}")
    kernel = line["kernel"]
    if kernel not in kernels():
        near = unknown_name("kernel", str(kernel), kernels())
        file.fail((*where, "kernel"), near.what, found=near.found, hint=near.hint)
    wanted = {key: one for key, one in _parameters(kernel).items() if key not in _SUPPLIED}
    _check_keys(file, where, line, (*_ATTRIBUTES, *wanted), optional=("extra",))
    if line["family"] not in FAMILIES:
        file.fail((*where, "family"), "unknown family", found=repr(line["family"]), hint=", ".join(FAMILIES))
    if not isinstance(line.get("extra", False), bool):
        file.fail((*where, "extra"), "neither true nor false", found=repr(line["extra"]))
    columns = {key: _five(file, (*where, key), line[key], one.annotation) for key, one in wanted.items()}
    constants = tuple({key: column[i] for key, column in columns.items()} for i in range(len(SEVERITIES)))
    return Corruption(name, kernel, line["family"], line.get("extra", False), constants)


def _check_keys(
    file: YamlFile,
    where: tuple[str, ...],
    line: Mapping[str, Any],
    known: tuple[str, ...],
    optional: tuple[str, ...] = (),
) -> None:
    for key in line:
        if key not in known:
            near = unknown_name("key", key, known)
            file.fail((*where, key), near.what, found=near.found, hint=near.hint)
    missing = [key for key in known if key not in line and key not in optional]
    if missing:
        file.fail(where, f"without {' and '.join(missing)}", found=", ".join(line), hint=f"needs {', '.join(known)}")


def _five(file: YamlFile, where: tuple[str, ...], value: Any, annotation: Any) -> list[float | int | bool]:
    """The values of the five severities; one value goes for all."""
    values = value if isinstance(value, list) else [value] * len(SEVERITIES)
    if len(values) != len(SEVERITIES):
        file.fail(where, "wrong count", found=f"{len(values)} values", hint="one for each of the severities 1 to 5")
    kind, sound = annotation, Between(-LARGEST)
    if get_origin(annotation) is Annotated:
        kind, sound = get_args(annotation)
    limits = f"from {sound.low:g} to {sound.high:g}"
    expected = {bool: "true or false", int: f"a whole number {limits}", float: f"a number {limits}"}[kind]
    for one in values:
        right = type(one) in ((int, float) if kind is float else (kind,))
        if not right or not sound.low <= one <= sound.high:  # NaN is in no range
            file.fail(where, f"not {expected}", found=repr(one), hint=expected)
    return [float(one) if kind is float else one for one in values]


def _content(suite: Suite) -> Any:
    return {
        name: [one.kernel, one.family, one.extra, [dict(c) for c in one.constants]]
        for name, one in suite.corruptions.items()
    } | {"size": suite.size}


def _try_out(suite: Suite, file: YamlFile) -> None:
    """Run every line of a user's suite once: what a kernel cannot compute is found before the work starts."""
    side = min(max(suite.size, 16), 256)
    images = (torch.arange(side * side * 3) % 251).to(torch.uint8).view(1, 3, side, side)
    for name in suite.corruptions:
        for severity in SEVERITIES:
            problem = f"cannot be computed at severity {severity}"
            hint = f"other constants than {dict(suite[name].constants[severity - 1])}"
            try:
                corrupt(images, name, severity, suite=suite)
            except LnbenchError as error:
                file.fail(("corruptions", name), f"{problem}: {error.what}", found=error.found, hint=hint)
            except (ValueError, RuntimeError, IndexError, ArithmeticError, OSError, MemoryError) as error:
                found = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
                file.fail(("corruptions", name), problem, found=found, hint=hint)
