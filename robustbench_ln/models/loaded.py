"""A network that is ready to be evaluated, and everything that was found out about it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from robustbench_ln.errors import InputError, LnbenchError
from robustbench_ln.models.dialects import find_wrapper
from robustbench_ln.models.imports import one_line
from robustbench_ln.models.programs import Program
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
        sha256: of the file's bytes; of the network's parameters and buffers where there is no file.
        arch: architecture name.
        recognised: how it was found: ``keys and shapes``, ``--arch``, ``file metadata``, ``zoo``, ``factory``,
            ``whole module``, ``program`` or ``module``.
        num_classes: number of logits.
        form: how the file was written, in words (``torch.save``, ``safetensors in 3 shards``).
        container: names of the dictionaries around the state dict, joined by dots; empty when bare.
        prefixes: what was stripped from the start of every key, the outermost first.
        averaged: whether the weights are an average of those that were trained (EMA, SWA).
        copy: name of the copy of the network that was taken, where the file holds several.
        precision: the floating types in the file, where not all of them are float32.
        mean: per-channel mean; empty where the network needs none, None where nothing says it.
        std: per-channel standard deviation; as `mean`.
        preprocessing: where `mean` and `std` come from: ``zoo``, ``file metadata``, ``wrapper layers``, ``the network
            itself``, or nothing.
        n_groups: K of a LocalNorm network.
        group_size: N/K, images a group had in training; None where unknown.
        geometry: of the zoo entry, or as a file's metadata have it; None where unknown.
        source_sha256: of the file that this one was converted from; empty where it was not.
        unbuilt: classes of which the file held objects beside the weights, which were not built.
        code: digest of what the network does with fixed images, where its code is the user's and may change while the
            weights stay; empty elsewhere.
        warnings: what the user should know.
    """

    network: nn.Module
    source: str
    label: str
    sha256: str
    arch: str
    recognised: str
    num_classes: int
    form: str = ""
    container: str = ""
    prefixes: tuple[str, ...] = ()
    averaged: bool = False
    copy: str = ""
    precision: tuple[str, ...] = ()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    preprocessing: str = ""
    n_groups: int | None = None
    group_size: int | None = None
    geometry: Geometry | None = None
    source_sha256: str = ""
    unbuilt: tuple[str, ...] = ()
    code: str = ""
    warnings: tuple[str, ...] = ()

    def warned(self, *warnings: str) -> LoadedModel:
        """The same with more warnings."""
        return replace(self, warnings=self.warnings + warnings)


def ready(
    network: nn.Module,
    source: str,
    label: str,
    sha256: str | None,
    *,
    arch: str,
    recognised: str,
    num_classes: int | None = None,
    image_size: Callable[[], tuple[int, int]] | None = None,
) -> LoadedModel:
    """The record of a network, which is brought into the state that evaluation wants.

    Args:
        network: is changed in place.
        source: what the user passed to `--model`.
        label: short name, from which a fit one is made.
        sha256: of the file; None where there is none.
        arch: architecture name.
        recognised: how it was found.
        num_classes: number of logits; None for a network of the user's code, which has to be run to know it.
        image_size: gives height and width to run it with where it takes none of the usual sizes; asked only then.

    Raises:
        InputError: it does not turn images into logits, or lazy layers of it have no shape yet.
    """
    check_initialised(network, source)
    network = network.cpu().float().eval().requires_grad_(False)
    warnings: tuple[str, ...] = ()
    code = ""
    if num_classes is None:
        num_classes, size, warnings = _try_out(network, source, image_size)
        code = "" if isinstance(network, Program) else _code_sha256(network, size)
    state = network.state_dict()
    broken = [key for key, value in state.items() if not value.isfinite().all()]
    if broken:
        warnings += (f"NaN or infinity in the weights: {len(broken)} tensors, first {broken[0]}",)
    # What normalises its input itself must not be given normalised images.
    itself = find_wrapper(state) is not None
    return LoadedModel(
        network,
        source,
        _label(label),
        sha256 or state_sha256(tensors_of(network)),
        arch,
        recognised,
        num_classes,
        mean=() if itself else None,
        std=() if itself else None,
        preprocessing="the network itself" if itself else "",
        n_groups=n_groups(network),
        code=code,
        warnings=warnings,
    )


def check_initialised(network: nn.Module, source: str) -> None:
    """Raise InputError for a network with lazy layers that have not seen an image, and so have no weights."""
    lazy = [name for name, value in tensors_of(network).items() if is_lazy(value)]
    if lazy:
        raise InputError(
            f"{source} has lazy layers without a shape",
            found=f"{len(lazy)} parameters and buffers that are not initialised, first {lazy[0]}",
            hint="a network that has seen an image once: network(torch.zeros(1, 3, 32, 32)) before it is returned",
        )


_SIZES = (32, 224, 64, 299, 96, 28, 128, 160, 192, 256, 384)


def _sizes(network: nn.Module, image_size: Callable[[], tuple[int, int]] | None) -> Iterator[tuple[int, int]]:
    """Heights and widths to try. That of the data comes last, so that a network has one identity with all data."""
    if isinstance(network, Program) and network.image_size:
        yield network.image_size
        return
    yield from ((size, size) for size in _SIZES)
    if image_size is not None:
        yield image_size()


@torch.no_grad()
def _try_out(
    network: nn.Module, source: str, image_size: Callable[[], tuple[int, int]] | None
) -> tuple[int, tuple[int, int], tuple[str, ...]]:
    """Number of logits, by a forward pass at the first image size that it takes; that size; and warnings."""
    failure = ""
    for size in _sizes(network, image_size):
        try:
            logits = _logits_of_two(network, size)
        except Exception as error:  # the user's code ran
            why = error.found if isinstance(error, LnbenchError) else one_line(error)
            failure = failure or f"{size[0]} x {size[1]} pixels: {why}"
            continue
        if isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == 2:
            return logits.shape[1], size, _look_like_probabilities(logits)
        failure = f"{type(logits).__name__} {tuple(getattr(logits, 'shape', ()))} for 2 images"
        break
    raise InputError(
        f"{source} does not turn images (B, 3, H, W) into logits (B, classes)",
        found=failure,
        hint="a network that returns logits only; for one of a fixed size, data of that size (--resize, --crop)",
    )


def _logits_of_two(network: nn.Module, size: tuple[int, int]) -> object:
    with torch.random.fork_rng(devices=[]):
        images = torch.zeros(2, 3, *size)
        try:
            return network(images)
        except InputError:
            if not isinstance(network, Program) or network.batch is not None:
                raise
            network.batch = 1  # a program that was traced with one image may take no other number
            try:
                return network(images)
            except InputError:
                network.batch = None
                raise


def _look_like_probabilities(logits: Tensor) -> tuple[str, ...]:
    sums = logits.double().sum(1)
    if logits.shape[1] > 1 and (logits >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-4):
        return ("the outputs look like probabilities, not logits: NLL, ECE and Brier score will be wrong",)
    return ()


@torch.no_grad()
def _code_sha256(network: nn.Module, size: tuple[int, int]) -> str:
    """Digest of what a network is besides the tensors that it holds: its layers, and its logits on two fixed images.

    Nothing else shows a forward() that was changed. Double precision, for rounding then takes away what depends on the
    machine and on the number of threads; single precision and fewer digits where the network takes no other. A network
    that takes no random images is known by its layers alone.
    """
    images = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    # Addresses of objects differ in each run.
    layers = re.sub(r" at 0x[0-9a-f]+", "", repr(network))
    text = f"{type(network).__qualname__}\n{layers}"
    for dtype, digits in ((torch.float64, 6), (torch.float32, 2)):
        try:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(0)  # for networks that draw random numbers
                logits = network.to(dtype)(images.to(dtype)).double()
        except Exception:  # the user's code ran
            continue
        finally:
            network.float()
        peak = logits.abs().nan_to_num(0, 0).max().item()
        places = digits - math.floor(math.log10(peak)) if peak else 0
        rounded = (logits * 10.0**places).round() + 0.0  # no -0.0
        text += f"\n{places}\n{rounded.tolist()}"
        break
    return hashlib.sha256(text.encode()).hexdigest()


def _label(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "model"


def tensors_of(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, those too that are not in the state dict."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Digest of a state dict's keys, types, shapes and values; the order of keys does not matter."""
    digest = hashlib.sha256()
    for key, value in sorted(state.items()):
        if isinstance(value, Tensor):
            digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
