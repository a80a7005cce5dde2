"""From what `--model` was given to a network that is ready to be evaluated."""

from __future__ import annotations

import copy
import hashlib
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
import torchvision
from torch import Tensor, nn

from robustbench_ln.errors import InputError, ResourceError, UsageError, unknown_name
from robustbench_ln.models.architectures import (
    Match,
    Shapes,
    as_batchnorm,
    find_architecture,
    norm_form,
    shapes_of,
    timm_zoo,
)
from robustbench_ln.models.checkpoint import Checkpoint, file_sha256, read_checkpoint
from robustbench_ln.models.imports import build_with, find_factory, one_line
from robustbench_ln.models.recognition import differences, fitting, nearest, with_norms
from robustbench_ln.models.sniffing import refused
from robustbench_ln.norms.convert import n_groups


@dataclass(frozen=True, slots=True)
class Geometry:
    """How a zoo entry wants images brought to its input size.

    Attributes:
        resize: length of the shorter side, in pixels, before cropping.
        crop: side of the central square.
        interpolation: ``bilinear``, ``bicubic``, ...
    """

    resize: int
    crop: int
    interpolation: str


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A network and everything that was found out about it.

    Attributes:
        network: on the CPU, float32, in eval(), without gradients.
        source: what the user passed to `--model`.
        label: short name, fit for file names.
        sha256: of the file's bytes; of keys and values of the state dict where there is no file.
        arch: architecture name.
        recognised: how it was found: ``keys and shapes``, ``--arch``, ``file metadata``, ``zoo``, ``factory``,
            ``whole module`` or ``module``.
        num_classes: number of logits.
        container: names of the dictionaries around the state dict, joined by dots; empty when bare.
        prefixes: what was stripped from the start of every key, the outermost first.
        mean: per-channel mean; empty where the network needs none, None where nothing says it.
        std: per-channel standard deviation; as `mean`.
        preprocessing: where `mean` and `std` come from: ``zoo``, ``file metadata``, ``wrapper layers``, ``the network
            itself``, or nothing.
        n_groups: K of a LocalNorm network.
        group_size: N/K, images a group had in training; None where unknown.
        geometry: of the zoo entry; None where unknown.
        warnings: what the user should know.
    """

    network: nn.Module
    source: str
    label: str
    sha256: str
    arch: str
    recognised: str
    num_classes: int
    container: str = ""
    prefixes: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preprocessing: str = ""
    n_groups: int | None = None
    group_size: int | None = None
    geometry: Geometry | None = None
    warnings: tuple[str, ...] = ()


def load_model(
    spec: str, *, arch: str | None = None, trust: bool = False, num_classes: int | None = None
) -> LoadedModel:
    """Load a model from whatever names it.

    Args:
        spec: a file (``.pt .pth .th .ckpt .safetensors``, or any other suffix), ``torchvision:NAME``,
            ``python:package.module:factory``, ``demo:bn`` or ``demo:ln``.
        arch: architecture of a file: a name that `find_architecture` knows or ``package.module:factory``, called with
            ``num_classes=``; recognised from keys and shapes without it.
        trust: read files that can run code when read.
        num_classes: passed to factories that take it; otherwise the weights say it.

    Raises:
        UsageError: a kind of model, a name or an architecture that is not known.
        InputError: a file that is missing, unreadable or not a whole model, one that fits no architecture, or a
            factory that fails.
        ResourceError: a download that fails or is forbidden, a file that may not be read.
    """
    scheme, colon, name = spec.partition(":")
    # One letter is a Windows drive; and a file may have a colon in its name.
    if not colon or not re.fullmatch(r"[A-Za-z][\w+-]+", scheme) or Path(spec).exists():
        return _load_file(Path(spec), spec, arch, trust, num_classes)
    if scheme not in SOURCES:
        raise unknown_name("kind of model", scheme, [*SOURCES, "FILE"])
    model = SOURCES[scheme](spec, name, num_classes)
    return model if arch is None else _warned(model, f"--arch {arch} is for files and is not used for {spec}")


def _load_demo(spec: str, name: str, num_classes: int | None) -> LoadedModel:  # noqa: ARG001 (the weights say it)
    files = {"bn": _DEMO / "bn.safetensors", "ln": _DEMO / "ln.safetensors"}
    if name not in files:
        raise unknown_name("demo model", name, files)
    return replace(_load_file(files[name], spec), label=_label(spec))


_DEMO = Path(__file__).with_name("demo")


def _load_python(spec: str, name: str, num_classes: int | None) -> LoadedModel:
    network = build_with(name, find_factory(name), num_classes)
    sha256 = state_sha256(network.state_dict())
    return _ready(network, spec, _label(spec), sha256, arch=name, recognised="factory")


def _load_torchvision(spec: str, name: str, num_classes: int | None) -> LoadedModel:  # noqa: ARG001 (the weights say it)
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise unknown_name("torchvision model", name, known)
    weights = torchvision.models.get_model_weights(name).DEFAULT
    file = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name
    cached = file.exists()
    if not cached and os.environ.get("LNBENCH_OFFLINE", "0") not in ("", "0"):
        raise ResourceError(
            f"the weights of {spec} would have to be downloaded, which LNBENCH_OFFLINE forbids",
            found=f"no file {file}",
            hint=f"unset LNBENCH_OFFLINE, or put {weights.url} there",
        )
    try:
        network = torchvision.models.get_model(name, weights=weights, progress=False)
    except Exception as error:  # urllib, ssl, sockets, the disk, the hash check, or a damaged file in the cache
        if cached:
            raise refused(
                file, f"weights in torch's cache that are damaged ({one_line(error)})", f"delete {file}"
            ) from error
        raise ResourceError(
            f"the weights of {spec} cannot be downloaded", found=one_line(error), hint=f"put {weights.url} at {file}"
        ) from error
    transforms = weights.transforms()
    model = _ready(network, spec, _label(spec), file_sha256(file), arch=name, recognised="zoo")
    return replace(
        model,
        mean=tuple(transforms.mean),
        std=tuple(transforms.std),
        preprocessing="zoo",
        geometry=Geometry(transforms.resize_size[0], transforms.crop_size[0], transforms.interpolation.value),
    )


SOURCES: dict[str, Callable[[str, str, int | None], LoadedModel]] = {
    "torchvision": _load_torchvision,
    "python": _load_python,
    "demo": _load_demo,
}
"""What stands before the colon: a function of the whole text, what follows the colon, and `num_classes`."""


def _load_file(
    path: Path, spec: str, arch: str | None = None, trust: bool = False, num_classes: int | None = None
) -> LoadedModel:
    # A wrong architecture is an error before the weights are read.
    factory = None if arch is None else _factory(arch)
    checkpoint = read_checkpoint(path, trust=trust)
    origin = spec, _label(path.stem), checkpoint.sha256
    if checkpoint.network is not None:
        model = _ready(checkpoint.network, *origin, arch=type(checkpoint.network).__name__, recognised="whole module")
        if arch is not None:
            model = _warned(model, f"--arch {arch} is not used: {path.name} holds a whole module")
    elif factory is not None and arch is not None:
        network, checkpoint, warnings = _fill_factory(arch, factory, checkpoint, num_classes)
        model = _warned(_ready(network, *origin, arch=arch, recognised="--arch"), *warnings)
    else:
        match, recognised, warnings = _find_architecture(path, checkpoint, arch)
        filled = _filled(match.build(), checkpoint.tensors, checkpoint.metadata)
        assert filled is not None, "a match has the very keys and shapes of the checkpoint"
        network, assumed = filled
        model = _ready(network, *origin, arch=match.name, recognised=recognised, num_classes=match.num_classes)
        model = _warned(model, *warnings, *assumed)
    mean, std, preprocessing = _preprocessing(checkpoint)
    return replace(
        model,
        container=".".join(checkpoint.container),
        prefixes=checkpoint.prefixes,
        mean=mean,
        std=std,
        preprocessing=preprocessing,
        group_size=checkpoint.metadata.get("group_size") if model.n_groups else None,
        warnings=checkpoint.warnings + model.warnings,
    )


def _preprocessing(checkpoint: Checkpoint) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str]:
    if checkpoint.mean is not None:
        return checkpoint.mean, checkpoint.std, "wrapper layers" if checkpoint.mean else "the network itself"
    if "mean" in checkpoint.metadata:
        return checkpoint.metadata["mean"], checkpoint.metadata["std"], "file metadata"
    return None, None, ""


def _find_architecture(path: Path, checkpoint: Checkpoint, arch: str | None) -> tuple[Match, str, tuple[str, ...]]:
    """The architecture, how it was found, and warnings."""
    shapes = shapes_of(checkpoint.tensors)
    if arch is not None:
        row = find_architecture(arch)
        match = row.fit(shapes)
        if match is None:
            raise _does_not_fit(arch, row.guess(shapes).shapes(), shapes)
        return match, "--arch", ()
    warnings: tuple[str, ...] = ()
    # Only a name of the table: a file must not be able to name code to run.
    said = checkpoint.metadata.get("arch")
    if said is not None:
        try:
            known = find_architecture(said).recognise(shapes)
        except UsageError:
            known = None
        if known is not None:
            return known, "file metadata", ()
        warnings += (f"metadata 'arch' of the file is {said!r}, which is unknown or does not fit, and is not used",)
    matches = fitting(shapes)
    if not matches:
        raise _fits_nothing(path, shapes)
    if len(matches) > 1:
        names = [match.name for match in matches]
        rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
        warnings += (f"the keys and shapes fit {' and '.join(names[:5])}{rest}; taken is the simpler {names[0]}",)
    return matches[0], "keys and shapes", warnings


def _fill_factory(
    name: str, factory: Callable[..., object], checkpoint: Checkpoint, num_classes: int | None
) -> tuple[nn.Module, Checkpoint, tuple[str, ...]]:
    """The user's network with the weights of the file, the checkpoint as it was used, and warnings."""
    assumed = num_classes or checkpoint.metadata.get("num_classes") or 10
    network = build_with(name, factory, assumed)
    expected = shapes_of(network.state_dict())
    shapes = shapes_of(checkpoint.tensors)
    rows = _output_rows(expected, as_batchnorm(expected, shapes), assumed)
    if rows != assumed:
        network = build_with(name, factory, rows)
        expected = shapes_of(network.state_dict())
    filled = _filled(network, checkpoint.tensors, checkpoint.metadata)
    if filled is not None:
        return filled[0], checkpoint, filled[1]
    # The user's network may be the wrapped one, prefixes, normalisation and all.
    filled = _filled(network, checkpoint.as_stored(), checkpoint.metadata)
    if filled is None:
        raise _does_not_fit(name, expected, shapes)
    if checkpoint.wrapper:
        checkpoint = replace(checkpoint, mean=(), std=())
    return filled[0], replace(checkpoint, prefixes=()), filled[1]


def _output_rows(expected: Shapes, found: Shapes, classes: int) -> int:
    """Rows that the output layer has in `found`: it is what changes with the number of classes in `expected`."""
    for key, shape in expected.items():
        other = found.get(key, ())
        if shape[:1] == (classes,) and other[1:] == shape[1:] and other[:1] not in ((), (classes,)):
            return other[0]
    return classes


def _filled(
    network: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]
) -> tuple[nn.Module, tuple[str, ...]] | None:
    """`network` with these weights and the norm layers that they are of, and warnings; None where they do not fit."""
    shapes = shapes_of(tensors)
    form = norm_form(shapes_of(network.state_dict()), shapes)
    if form is None:
        return None
    network, warnings = with_norms(network, form, shapes, metadata)
    own = network.state_dict()
    # Old files lack num_batches_tracked, which nothing in eval() reads.
    state = OrderedDict((key, tensors.get(key, torch.zeros_like(value))) for key, value in own.items())
    # Versions of the modules, which some modules ask for.
    state._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)
    return network, warnings


def _does_not_fit(arch: str, expected: Shapes, found: Shapes) -> InputError:
    matches = fitting(found)
    near = None if matches else nearest(found)
    hint = f"--arch {near[0].name} is nearest; {_OWN}" if near else _OWN
    if matches:
        hint = f"--arch {matches[0].name}"
    return InputError(f"checkpoint does not fit {arch}", found=differences(expected, found), hint=hint)


_OWN = "--arch package.module:factory, or --model python:package.module:factory"


def _fits_nothing(path: Path, shapes: Shapes) -> InputError:
    what = f"{path.name} fits no architecture that lnbench knows"
    near = nearest(shapes)
    if near is None:
        return InputError(
            what, found=f"{len(shapes)} keys, first {', '.join(list(shapes)[:5])}", hint=f"--arch NAME, {_OWN}"
        )
    match, common = near
    name, expected = match.name, match.shapes()
    where = differences(expected, shapes)
    if common == len(as_batchnorm(expected, shapes)):
        return InputError(
            f"{path.name} holds a part of a network only",
            found=f"{common} of the {len(expected)} keys of {name}: {where}",
            hint=f"the whole state dict; {_OWN}",
        )
    found = f"nearest is {name}, {common} of {len(expected)} keys agree: {where}"
    return InputError(what, found=found, hint=f"--arch NAME, {_OWN}")


def _ready(
    network: nn.Module,
    source: str,
    label: str,
    sha256: str,
    *,
    arch: str,
    recognised: str,
    num_classes: int | None = None,
) -> LoadedModel:
    """The record of a network, which is brought into the state that evaluation wants."""
    network = network.cpu().float().eval().requires_grad_(False)
    model = LoadedModel(
        network,
        source,
        label,
        sha256,
        arch,
        recognised,
        _count_classes(network, source) if num_classes is None else num_classes,
        n_groups=n_groups(network),
    )
    broken = [key for key, value in network.state_dict().items() if not value.isfinite().all()]
    return (
        _warned(model, f"NaN or infinity in the weights: {len(broken)} tensors, first {broken[0]}") if broken else model
    )


@torch.no_grad()
def _count_classes(network: nn.Module, source: str) -> int:
    """Number of logits, by a forward pass at the first usual image size that the network takes."""
    failure = ""
    for size in (32, 224, 64, 299):
        try:
            with torch.random.fork_rng(devices=[]):
                logits = network(torch.zeros(2, 3, size, size))
        except Exception as error:  # the user's code ran
            failure = failure or one_line(error)
            continue
        if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 2:
            return logits.shape[1]
        failure = f"{type(logits).__name__} {tuple(getattr(logits, 'shape', ()))} for 2 images"
        break
    raise InputError(
        f"{source} does not turn images (B, 3, H, W) into logits (B, classes)",
        found=failure,
        hint="a factory whose network returns logits only",
    )


def _warned(model: LoadedModel, *warnings: str) -> LoadedModel:
    return replace(model, warnings=model.warnings + warnings)


def _label(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def wrap_module(network: nn.Module) -> LoadedModel:
    """A module that Python code passes instead of a name; a copy of it is taken, so that it stays as it is.

    Raises:
        InputError: it does not turn images into logits.
    """
    name = type(network).__name__
    sha256 = state_sha256(network.state_dict())
    return _ready(copy.deepcopy(network), name, _label(name), sha256, arch=name, recognised="module")


def build_network(arch: str, *, num_classes: int) -> nn.Module:
    """A new network with random weights, in train().

    Args:
        arch: a name that `find_architecture` knows or ``package.module:factory``.
        num_classes: number of logits.

    Raises:
        UsageError: an unknown name.
        InputError: a factory that fails.
    """
    factory = _factory(arch)
    return find_architecture(arch).build(num_classes) if factory is None else build_with(arch, factory, num_classes)


def _factory(arch: str) -> Callable[..., object] | None:
    """The user's factory, or None for an architecture that is known by name."""
    if ":" in arch and not arch.startswith(timm_zoo.PREFIX):
        return find_factory(arch)
    find_architecture(arch)
    return None


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Digest of a state dict's keys, types, shapes and values; the order of keys does not matter."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
