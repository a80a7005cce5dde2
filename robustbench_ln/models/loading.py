"""From what `--model` was given to a network that is ready to be evaluated."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from robustbench_ln.errors import InputError, ResourceError, UsageError, unknown_name
from robustbench_ln.models.architectures import (
    Architecture,
    Match,
    Shapes,
    as_batchnorm,
    find_architecture,
    norm_form,
    shapes_of,
    timm_zoo,
)
from robustbench_ln.models.checkpoint import Checkpoint
from robustbench_ln.models.dialects import candidates
from robustbench_ln.models.imports import build_with, find_factory
from robustbench_ln.models.loaded import Geometry, LoadedModel, check_initialised, ready
from robustbench_ln.models.programs import Program
from robustbench_ln.models.reading import read_checkpoint
from robustbench_ln.models.recognition import differences, fitting, nearest, with_norms
from robustbench_ln.models.zoo import load_hf_hub, load_timm, load_torchvision


@dataclass(frozen=True, slots=True)
class _Request:
    """What was asked for besides the name; see `load_model`."""

    arch: str | None = None
    trust: bool = False
    ema: bool | None = None
    num_classes: int | None = None
    image_size: Callable[[], tuple[int, int]] | None = None


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    trust: bool = False,
    ema: bool | None = None,
    num_classes: int | None = None,
    image_size: Callable[[], tuple[int, int]] | None = None,
) -> LoadedModel:
    """Load a model from whatever names it.

    Args:
        spec: a file of any suffix (of torch.save, safetensors, TorchScript, torch.export, ONNX, a tar archive of one),
            the index of a sharded checkpoint or a folder with one, ``torchvision:NAME``, ``timm:NAME``,
            ``hf-hub:OWNER/NAME``, ``python:package.module:factory``, ``demo:bn`` or ``demo:ln``.
        arch: architecture of a file: a name that `find_architecture` knows or ``package.module:factory``, called with
            ``num_classes=``; recognised from keys and shapes without it.
        trust: read files that can run code when read.
        ema: take the averaged copy of the weights (EMA, SWA) of a file, or, if False, the plain one; None takes the
            plain one where there are both.
        num_classes: passed to factories that take it; otherwise the weights say it.
        image_size: gives height and width of the images, for networks of the user's code that take none of the usual
            sizes; asked only then.

    Raises:
        UsageError: a kind of model, a name or an architecture that is not known.
        InputError: a file that is missing, unreadable or not a whole model, one that fits no architecture, or a
            factory that fails.
        ResourceError: a download that fails or is forbidden, a file that may not be read, a missing extra.
    """
    if arch is not None:
        _factory(arch)  # a wrong name is an error before anything is read
    request = _Request(arch, trust, ema, num_classes, image_size)
    scheme, colon, name = spec.partition(":")
    # One letter is a Windows drive; and a file may have a colon in its name.
    if not colon or not re.fullmatch(r"[A-Za-z][\w+-]+", scheme) or Path(spec).exists():
        return _load_file(Path(spec), spec, request)
    if scheme not in SOURCES:
        raise unknown_name("kind of model", scheme, [*SOURCES, "FILE"])
    model = SOURCES[scheme](spec, name, request)
    if arch is not None:
        model = model.warned(f"--arch {arch} is for files and is not used for {spec}")
    if ema is not None:
        model = model.warned(f"--{'' if ema else 'no-'}ema is for files and is not used for {spec}")
    return model


def _load_demo(spec: str, name: str, _: _Request) -> LoadedModel:
    files = {"bn": _DEMO / "bn.safetensors", "ln": _DEMO / "ln.safetensors"}
    if name not in files:
        raise unknown_name("demo model", name, files)
    return replace(_load_file(files[name], spec, _Request()), label=spec.replace(":", "-"))


_DEMO = Path(__file__).with_name("demo")


def _load_python(spec: str, name: str, request: _Request) -> LoadedModel:
    network = _build_seeded(name, find_factory(name), request.num_classes)
    return ready(network, spec, spec, None, arch=name, recognised="factory", image_size=request.image_size)


SOURCES: dict[str, Callable[[str, str, _Request], LoadedModel]] = {
    "torchvision": lambda spec, name, _: load_torchvision(spec, name),
    "timm": lambda spec, name, _: load_timm(spec, name),
    "hf-hub": lambda spec, name, _: load_hf_hub(spec, name),
    "python": _load_python,
    "demo": _load_demo,
}
"""What stands before the colon: a function of the whole text, what follows the colon, and the request."""


def _load_file(path: Path, spec: str, request: _Request) -> LoadedModel:
    factory = None if request.arch is None else _factory(request.arch)
    checkpoint = read_checkpoint(path, trust=request.trust, ema=request.ema)
    if checkpoint.network is not None:
        built = _from_module(path, checkpoint, checkpoint.network, request.arch)
    else:
        found = _asked_for(path, candidates(checkpoint))
        if factory is not None and request.arch is not None:
            built = _from_factory(request.arch, factory, found, request.num_classes)
        else:
            built = _from_table(path, found, request.arch)
    checkpoint = built.checkpoint
    model = ready(
        built.network,
        spec,
        # Every training calls its files so; the folder tells them apart.
        f"{path.absolute().parent.name}-{path.stem}" if path.stem in ("best", "last") else path.stem,
        checkpoint.sha256,
        arch=built.arch,
        recognised=built.recognised,
        num_classes=built.num_classes,
        image_size=request.image_size,
    )
    mean, std, preprocessing = _preprocessing(checkpoint, model)
    geometry = checkpoint.metadata.get("geometry")
    return replace(
        model,
        form=checkpoint.form,
        container=".".join(checkpoint.container),
        prefixes=checkpoint.prefixes,
        averaged=checkpoint.averaged,
        copy=checkpoint.copy,
        precision=checkpoint.precision,
        mean=mean,
        std=std,
        preprocessing=preprocessing,
        group_size=checkpoint.metadata.get("group_size") if model.n_groups else None,
        geometry=Geometry(**geometry) if geometry else None,
        source_sha256=checkpoint.metadata.get("source_sha256", ""),
        unbuilt=checkpoint.unbuilt,
        warnings=checkpoint.warnings + built.warnings + model.warnings,
    )


@dataclass(frozen=True, slots=True)
class _Built:
    """A network with its weights, the part of the checkpoint that they were, and how it was found."""

    network: nn.Module
    checkpoint: Checkpoint
    arch: str
    recognised: str
    num_classes: int | None = None
    warnings: tuple[str, ...] = ()


def _from_module(path: Path, checkpoint: Checkpoint, network: nn.Module, arch: str | None) -> _Built:
    """A network that is in the file itself."""
    _asked_for(path, [checkpoint])
    program = isinstance(network, Program)
    warnings = []
    if program:
        warnings.append(f"{path.name} is a program: its norm layers cannot be reached, so it runs as it is (native)")
    if arch is not None:
        warnings.append(f"--arch {arch} is not used: {path.name} holds a {'program' if program else 'whole module'}")
    name, recognised = (checkpoint.form, "program") if program else (type(network).__name__, "whole module")
    return _Built(network, checkpoint, name, recognised, warnings=tuple(warnings))


def _asked_for(path: Path, found: Iterable[Checkpoint]) -> list[Checkpoint]:
    """Those that are averages, or those that are not, as `--ema` asked."""
    listed = list(found)
    ema = listed[0].ema
    kept = [one for one in listed if ema is None or one.averaged is ema]
    if not kept:
        kind, other = ("averaged", "plain") if ema else ("plain", "averaged")
        where = ".".join(listed[0].container) or "the file"
        raise InputError(
            f"{path.name} holds no {kind} weights",
            found=f"{other} weights only, in {where}",
            hint=f"without --{'' if ema else 'no-'}ema",
        )
    return kept


def _preprocessing(
    checkpoint: Checkpoint, model: LoadedModel
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None, str]:
    """Mean, deviation and where they come from: the network itself knows best, then its wrapper, then metadata."""
    if model.mean is not None:
        return model.mean, model.std, model.preprocessing
    if checkpoint.mean is not None:
        return checkpoint.mean, checkpoint.std, "wrapper layers"
    if "mean" in checkpoint.metadata:
        return checkpoint.metadata["mean"], checkpoint.metadata["std"], "file metadata"
    return None, None, ""


def _from_table(path: Path, found: list[Checkpoint], arch: str | None) -> _Built:
    """A network of the table: that of the name, or the one that the keys and shapes fit."""
    shapes = [shapes_of(one.tensors) for one in found]
    if arch is not None:
        row = find_architecture(arch)
        for one, its_shapes in zip(found, shapes, strict=True):
            match = row.fit(its_shapes)
            if match is not None:
                return _built(match, one, "--arch")
        likeliest = _likeliest(shapes)
        raise _does_not_fit(arch, row.guess(likeliest).shapes(), likeliest)
    warnings: tuple[str, ...] = ()
    said = found[0].metadata.get("arch")
    if said is not None:
        named = _named(said)
        for one, its_shapes in zip(found, shapes, strict=True):
            known = named and named.recognise(its_shapes)
            if known:
                return _built(known, one, "file metadata")
        warnings += (f"metadata 'arch' of the file is {said!r}, which is unknown or does not fit, and is not used",)
    for one, its_shapes in zip(found, shapes, strict=True):
        matches = fitting(its_shapes)
        if len(matches) > 1:
            names = [match.name for match in matches]
            rest = f" and {len(names) - 5} more" if len(names) > 5 else ""
            warnings += (f"the keys and shapes fit {' and '.join(names[:5])}{rest}; taken is the simpler {names[0]}",)
        if matches:
            return _built(matches[0], one, "keys and shapes", warnings)
    if said is not None and ":" in said:
        raise InputError(
            f"{path.name} is of a network that code builds, and no file may name code to run",
            found=f"architecture {said} in its metadata",
            hint=f"--arch {said}",
        )
    raise _fits_nothing(path, _likeliest(shapes))


def recorded_name(arch: str, shapes: Shapes) -> str | None:
    """The name of an architecture by which a file of such keys and shapes is known; None where there is none.

    Args:
        arch: as `LoadedModel` has it; of timm, without the prefix that `--arch` takes and with the tag of weights.
        shapes: of the state dict.
    """
    for name in (arch, f"{timm_zoo.PREFIX}{arch.partition('.')[0]}"):
        row = _named(name)
        if row is not None and row.recognise(shapes):
            return name
    return None


def _named(arch: str) -> Architecture | None:
    """An architecture that a file names. Only one that is known: a file must not be able to name code to run."""
    try:
        return find_architecture(arch)
    except (UsageError, ResourceError):  # the latter without timm
        return None


def _built(match: Match, checkpoint: Checkpoint, recognised: str, warnings: tuple[str, ...] = ()) -> _Built:
    filled = _filled(match.build(), checkpoint)
    assert filled is not None, "a match has the very keys and shapes of the checkpoint"
    network, assumed = filled
    return _Built(network, checkpoint, match.name, recognised, match.num_classes, warnings + assumed)


def _likeliest(found: Sequence[Shapes]) -> Shapes:
    """What of it to compare with the architectures, where none fits: that of which most keys are known."""
    return max(found[:8], key=lambda shapes: near[1] if (near := nearest(shapes)) else 0)


def _from_factory(
    name: str, factory: Callable[..., object], found: list[Checkpoint], num_classes: int | None
) -> _Built:
    """The user's network with the weights of the file."""
    assumed = num_classes or found[0].metadata.get("num_classes") or 10
    network = _build_seeded(name, factory, assumed)
    check_initialised(network, name)
    expected = shapes_of(network.state_dict())
    for one in found:
        rows = _output_rows(expected, as_batchnorm(expected, shapes_of(one.tensors)), assumed)
        filled = _filled(network if rows == assumed else _build_seeded(name, factory, rows), one)
        if filled is not None:
            return _Built(filled[0], one, name, "--arch", warnings=filled[1])
    shapes = shapes_of(found[0].tensors)
    rows = _output_rows(expected, as_batchnorm(expected, shapes), assumed)
    if rows != assumed:
        expected = shapes_of(_build_seeded(name, factory, rows).state_dict())
    raise _does_not_fit(name, expected, shapes)


def _build_seeded(name: str, factory: Callable[..., object], num_classes: int | None) -> nn.Module:
    """The network that a factory builds, the same in every run should its weights be random."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return build_with(name, factory, num_classes)


def _output_rows(expected: Shapes, found: Shapes, classes: int) -> int:
    """Rows that the output layer has in `found`: it is what changes with the number of classes in `expected`."""
    for key, shape in expected.items():
        other = found.get(key, ())
        if shape[:1] == (classes,) and other[1:] == shape[1:] and other[:1] not in ((), (classes,)):
            return other[0]
    return classes


def _filled(network: nn.Module, checkpoint: Checkpoint) -> tuple[nn.Module, tuple[str, ...]] | None:
    """`network` with these weights and the norm layers that they are of, and warnings; None where they do not fit."""
    tensors = checkpoint.tensors
    shapes = shapes_of(tensors)
    form = norm_form(shapes_of(network.state_dict()), shapes)
    if form is None:
        return None
    network, warnings = with_norms(network, form, shapes, checkpoint.metadata)
    own = network.state_dict()
    _check_kinds(own, tensors)
    # Old files lack num_batches_tracked, which nothing in eval() reads.
    state = OrderedDict((key, tensors.get(key, torch.zeros_like(value))) for key, value in own.items())
    # Versions of the modules, which some modules ask for.
    state._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(state)
    return network, warnings


def _check_kinds(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Refuse numbers that floating-point weights cannot hold: copying them would drop a scale or an imaginary part."""
    for key, value in tensors.items():
        if key in own and own[key].is_floating_point() and not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            cause = (
                "complex numbers, which would lose their imaginary part"
                if value.is_complex()
                else "as quantised weights are, whose scale is lost"
            )
            raise InputError(
                "checkpoint has other numbers than the floating-point ones of its network",
                found=f"{key} is {kind}, {cause}",
                hint="the float state dict: of the network before it was quantised, or of real numbers",
            )


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


def names_zoo(spec: str) -> bool:
    """Whether a model comes from a zoo, which says what size it wants images in."""
    return spec.partition(":")[0] in ("torchvision", "timm", "hf-hub")


def wrap_module(network: nn.Module, *, image_size: Callable[[], tuple[int, int]] | None = None) -> LoadedModel:
    """A module that Python code passes instead of a name; a copy of it is taken, so that it stays as it is.

    Args:
        network: any module that turns images into logits.
        image_size: as of `load_model`.

    Raises:
        InputError: as `ready`.
    """
    name = type(network).__name__
    check_initialised(network, name)  # what it refuses cannot be copied
    return ready(copy.deepcopy(network), name, name, None, arch=name, recognised="module", image_size=image_size)


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
