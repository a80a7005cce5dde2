"""From a file to a flat state dict of float32 tensors, whatever wrapped it; and from a network to a file.

A *dialect* is one habit of those who save checkpoints: a container, a prefix, a wrapper. Each is a small function that
takes one layer of it off. They are tried in order, again and again, until none has anything left to do.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from robustbench_ln.errors import InputError, LnbenchError, ResourceError
from robustbench_ln.models.imports import importable_from_here, one_line
from robustbench_ln.models.metadata import as_text, read_metadata
from robustbench_ln.models.preprocessing import is_mean_std
from robustbench_ln.models.sniffing import AGAIN, file_kind, refused


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds, and what had to be taken off to get at it.

    Attributes:
        tensors: the state dict, by key; float32 where floating. While dialects are at work, any content.
        sha256: of the file's bytes.
        network: the module itself, where a whole module was pickled (and trusted); `tensors` is empty then.
        container: names of the dictionaries around the state dict, the outermost first.
        prefixes: what was stripped from the start of every key, the outermost first.
        wrapper: normalisation buffers of a wrapping module, under the keys they had in the file.
        mean: read from `wrapper`; None without one.
        std: read from `wrapper`; None without one.
        metadata: what lnbench wrote beside the weights (see `read_metadata`).
        warnings: what the user should know.
    """

    tensors: Mapping[str, Any]
    sha256: str = ""
    network: nn.Module | None = None
    container: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    wrapper: Mapping[str, Tensor] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def as_stored(self) -> dict[str, Tensor]:
        """The state dict with its prefixes and wrapper buffers put back."""
        prefix = "".join(self.prefixes)
        return {prefix + key: value for key, value in self.tensors.items()} | dict(self.wrapper)


Dialect = Callable[[Checkpoint], Checkpoint]
"""Takes one layer off, or returns the very same object where it has nothing to do."""

# In order of preference: the plain copy of the weights before averaged ones.
_CONTAINERS = ("state_dict", "model", "model_state", "model_state_dict", "net", "last", "best")
_AVERAGED = ("ema", "model_ema", "state_dict_ema")
_DEEPEST = 8  # a file may hold a dictionary that contains itself

_PREFIXES = ("module.", "model.", "net.", "_orig_mod.", "backbone.", "encoder.", "0.", "1.")

# Modules that wrap a network in its normalisation, and what they call their buffers.
_WRAPPERS = ("", "normalize.", "normalizer.", "normalization.", "norm.", "0.")
_MEAN_STD = (("mean", "std"), ("mu", "sigma"))


def read_own_metadata(checkpoint: Checkpoint) -> Checkpoint:
    """``{"lnbench": {...}, ...}``: what `save_model` puts into safetensors' metadata, in a file of torch.save."""
    raw = checkpoint.tensors.get("lnbench")
    if not isinstance(raw, Mapping):
        return checkpoint
    metadata, warnings = read_metadata(raw)
    rest = {key: value for key, value in checkpoint.tensors.items() if key != "lnbench"}
    return replace(checkpoint, tensors=rest, metadata=metadata, warnings=checkpoint.warnings + warnings)


def open_container(checkpoint: Checkpoint) -> Checkpoint:
    """``{"state_dict": {...}, "epoch": 90}``: the state dict beside other things a training script keeps."""
    contents = checkpoint.tensors
    if len(checkpoint.container) == _DEEPEST:
        return checkpoint
    found = [name for name in _CONTAINERS + _AVERAGED if _holds_state(contents.get(name))]
    if not found:
        return checkpoint
    taken, *others = found
    inner = contents[taken]
    warnings = checkpoint.warnings
    if taken in _AVERAGED:
        warnings += (f"the weights are an averaged copy ({taken!r}), the only one in the file",)
    if others:
        averaged = "averaged " if others[0] in _AVERAGED else ""
        warnings += (f"the weights are those of {taken!r}; the file also holds {averaged}ones in {', '.join(others)}",)
    return replace(
        checkpoint,
        tensors={} if isinstance(inner, nn.Module) else inner,
        network=inner if isinstance(inner, nn.Module) else None,
        container=(*checkpoint.container, taken),
        warnings=warnings,
    )


def _holds_state(value: Any, depth: int = 3) -> bool:
    if isinstance(value, nn.Module):
        return True
    if not isinstance(value, Mapping):
        return False
    inner = (value.get(name) for name in _CONTAINERS + _AVERAGED)
    return any(isinstance(each, Tensor) for each in value.values()) or (
        depth > 0 and any(_holds_state(each, depth - 1) for each in inner)
    )


def keep_float32_tensors(checkpoint: Checkpoint) -> Checkpoint:
    """Step counters, class names and ``None`` go; half, bfloat16 and double precision become float32."""
    tensors = {
        key: value.detach().float() if value.is_floating_point() and not _oddity(value) else value.detach()
        for key, value in checkpoint.tensors.items()
        if isinstance(key, str) and isinstance(value, Tensor)
    }
    same = len(tensors) == len(checkpoint.tensors) and all(
        value.dtype == checkpoint.tensors[key].dtype for key, value in tensors.items()
    )
    return checkpoint if same else replace(checkpoint, tensors=tensors)


def take_wrapper(checkpoint: Checkpoint) -> Checkpoint:
    """``mu`` and ``sigma`` beside ``model.conv1.weight``: a module that normalises its input and then calls another."""
    tensors = checkpoint.tensors
    for module in _WRAPPERS:
        for names in _MEAN_STD:
            keys = [module + name for name in names]
            if not all(key in tensors and _is_per_channel(tensors[key]) for key in keys):
                continue
            mean, std = (tuple(round(value, 7) for value in tensors[key].flatten().tolist()) for key in keys)
            if not is_mean_std(mean, std):
                continue
            prefix = "".join(checkpoint.prefixes)
            return replace(
                checkpoint,
                tensors={key: value for key, value in tensors.items() if key not in keys},
                wrapper={**checkpoint.wrapper, **{prefix + key: tensors[key] for key in keys}},
                mean=mean,
                std=std,
            )
    return checkpoint


def _is_per_channel(value: Tensor) -> bool:
    return value.numel() in (1, 3) and value.is_floating_point() and value.numel() == max((1, *value.shape))


def strip_prefix(checkpoint: Checkpoint) -> Checkpoint:
    """``module.conv1.weight`` of DataParallel, ``_orig_mod.`` of torch.compile: a prefix that every key carries."""
    tensors = checkpoint.tensors
    for prefix in _PREFIXES:
        if tensors and all(key.startswith(prefix) for key in tensors):
            stripped = {key.removeprefix(prefix): value for key, value in tensors.items()}
            return replace(checkpoint, tensors=stripped, prefixes=(*checkpoint.prefixes, prefix))
    return checkpoint


# torchvision's own weight files keep the key names of earlier versions.
_OLD_NAMES = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_1\."), r"\1.0."),
    (re.compile(r"(encoder_layer_\d+\.mlp)\.linear_2\."), r"\1.3."),
)


def rename_old_keys(checkpoint: Checkpoint) -> Checkpoint:
    """``denselayer1.norm.1.weight``: keys of DenseNet and VisionTransformer in torchvision's own files."""
    renamed = {_new_name(key): value for key, value in checkpoint.tensors.items()}
    return checkpoint if renamed.keys() == checkpoint.tensors.keys() else replace(checkpoint, tensors=renamed)


def _new_name(key: str) -> str:
    for old, new in _OLD_NAMES:
        key = old.sub(new, key)
    return key


DIALECTS: tuple[Dialect, ...] = (
    read_own_metadata,
    open_container,
    keep_float32_tensors,
    take_wrapper,
    strip_prefix,
    rename_old_keys,
)


def read_checkpoint(path: Path, *, trust: bool = False) -> Checkpoint:
    """Read a file of any suffix and take everything off its state dict.

    Args:
        path: written by torch.save, or a safetensors file.
        trust: read files that can run code when read.

    Raises:
        InputError: no such file, or not a checkpoint; the likely cause is named.
        ResourceError: the file may not be read.
    """
    try:
        stored = _read_safetensors(path) if file_kind(path) == "safetensors" else _read_torch(path, trust)
    except OSError as error:
        raise _unreadable(path, error) from error
    checkpoint = _without_dialects(stored)
    if checkpoint.network is None:
        _check(path, stored.tensors, checkpoint.tensors)
    return checkpoint


def _without_dialects(checkpoint: Checkpoint) -> Checkpoint:
    while checkpoint.network is None:
        changed = next((new for dialect in DIALECTS if (new := dialect(checkpoint)) is not checkpoint), None)
        if changed is None:
            break
        checkpoint = changed
    return checkpoint


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata, warnings = read_metadata(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except safetensors.SafetensorError as error:
        raise refused(path, f"a safetensors file that is cut short or damaged ({error})", AGAIN) from None
    return Checkpoint(tensors, file_sha256(path), metadata=metadata, warnings=warnings)


# What training scripts keep beside the weights (their arguments, the best accuracy as a NumPy scalar); building these
# runs no code of the file.
_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(code)) for code in "?bBhHiIlLqQefd"},
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
]


def _read_torch(path: Path, trust: bool) -> Checkpoint:
    sha256 = file_sha256(path)
    try:
        # An open file, for from a path torch.load would conclude that it is safetensors, whatever is in it.
        with torch.serialization.safe_globals(_HARMLESS), path.open("rb") as file:
            return _holding(path, torch.load(file, map_location="cpu", weights_only=True), sha256)
    except pickle.UnpicklingError as error:
        if trust:
            return _read_trusted(path)
        needs = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise InputError(
            f"{path.name} holds a pickled Python object such as a whole module, which can run code when read",
            found=f"it needs {needs[1]}" if needs else "a pickle that is damaged, or holds more than tensors",
            hint="--trust if you know where the file comes from; safer: save network.state_dict()",
        ) from None
    except LnbenchError:
        raise
    except Exception as error:  # torch.load lets through whatever a damaged file leads to
        raise refused(path, f"a file of torch.save that is cut short or damaged ({one_line(error)})", AGAIN) from None


def _read_trusted(path: Path) -> Checkpoint:
    # One reading for both, so that the digest is of the very bytes that are trusted.
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        with importable_from_here():
            contents = torch.load(io.BytesIO(content), map_location="cpu", weights_only=False)
    except (Exception, SystemExit) as error:  # the file's own code ran
        raise InputError(
            f"{path.name} is trusted, but its pickled objects cannot be built",
            found=one_line(error),
            hint="run where the modules it was saved with can be imported",
        ) from error
    checkpoint = _holding(path, contents, sha256)
    return replace(checkpoint, warnings=(f"trusted to run code when read: {path.name}, SHA-256 {sha256}",))


def _holding(path: Path, contents: Any, sha256: str) -> Checkpoint:
    if isinstance(contents, nn.Module):
        return Checkpoint({}, sha256, contents)
    if not isinstance(contents, Mapping):
        raise refused(path, f"a {type(contents).__name__}, not a state dict", "torch.save(network.state_dict(), ...)")
    return Checkpoint(contents, sha256)


def file_sha256(path: Path) -> str:
    """Digest of a file's bytes, as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: OSError) -> InputError | ResourceError:
    if isinstance(error, FileNotFoundError):
        return InputError(
            "no such model file",
            found=str(path),
            hint="a file, demo:bn, demo:ln, torchvision:NAME or python:package.module:factory",
        )
    if path.is_dir():
        return InputError("the model is a folder, not a file", found=str(path), hint="a checkpoint file in it")
    return ResourceError("the model file cannot be read", found=str(error), hint="check its permissions")


def _check(path: Path, stored: Mapping[Any, Any], tensors: Mapping[str, Tensor]) -> None:
    """Refuse what is not a whole state dict of ordinary tensors."""
    if not tensors:
        optimizer = [name for name, value in [("", stored), *stored.items()] if _is_optimizer(value)]
        if optimizer:
            raise refused(
                path, "optimizer state only, no weights", "the checkpoint that was saved with the model's weights"
            )
        keys = ", ".join(map(str, list(stored)[:5])) or "nothing"
        raise refused(path, f"no weights in it; it holds {keys}", "torch.save(network.state_dict(), ...)")
    adapter = next((key for key in tensors if "lora_" in key.lower()), None)
    if adapter:
        raise refused(
            path, f"a LoRA adapter, which is a part of a network ({adapter})", "merge it into its network first"
        )
    for key, value in tensors.items():
        if oddity := _oddity(value):
            raise refused(path, f"{key} {oddity}", "save the network with ordinary float tensors")


def _oddity(value: Tensor) -> str:
    """What keeps a tensor from being used as a weight; empty for ordinary ones."""
    if value.is_quantized:
        return "is quantised"
    if value.layout != torch.strided:
        return "is sparse"
    if value.is_meta:
        return "has a shape but no values (meta device)"
    # A view that repeats one number can claim any size in a small file, and would fill the memory when copied.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes() + 2**20:
        return "claims more numbers than the file holds"
    return ""


def _is_optimizer(value: Any) -> bool:
    return isinstance(value, Mapping) and "param_groups" in value


def save_model(path: Path | str, network: nn.Module, *, metadata: Mapping[str, Any]) -> None:
    """Write weights and metadata as one safetensors file; the same content always gives the same bytes.

    Args:
        path: replaced at once when all is written, so that nobody ever reads half a file.
        network: its state dict is written, keys unchanged.
        metadata: `arch`, `num_classes`, `n_groups`, `group_size`, `mean`, `std`, `preprocessing`; None is left out.

    Raises:
        ResourceError: the file cannot be written.
    """
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    content = _with_sorted_header(safetensors.torch.save(tensors, as_text(metadata)))
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise ResourceError("the model file cannot be written", found=str(error), hint="another folder") from error


def _with_sorted_header(content: bytes) -> bytes:
    """Put the metadata in order: the library writes it anew each run, and the file's digest changes with it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]
