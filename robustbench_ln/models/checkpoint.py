"""What is read from a model file, and how one is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from robustbench_ln.files import write_bytes
from robustbench_ln.models.metadata import as_text


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a file holds, and what had to be taken off to get at it.

    Attributes:
        tensors: the state dict, by key; float32 where floating. While dialects are at work, any content.
        sha256: of the file's bytes; of several files, of all of them.
        form: how the file was written, in words (``torch.save``, ``safetensors in 3 shards``, ``TorchScript``).
        network: the module itself, where a whole module or a program was read; `tensors` is empty then.
        ema: which copy was asked for: the averaged one, the plain one (False), or whichever there is (None).
        container: names of the dictionaries around the state dict, the outermost first.
        prefixes: what was stripped from the start of every key, the outermost first; ``*.module.`` was inside of keys.
        averaged: whether these weights are an average of those that were trained (EMA, SWA).
        copy: name of the copy of the network that was taken, where the file holds several.
        precision: the floating types in the file, sorted (``float16``); empty where nothing had to become float32.
        wrapper: normalisation buffers of a wrapping module, under the keys they had when they were found.
        mean: read from `wrapper`; None without one.
        std: read from `wrapper`; None without one.
        metadata: what lnbench wrote beside the weights (see `read_metadata`).
        unbuilt: classes of which the file held objects that were not built, for that can run code.
        warnings: what the user should know.
        outer: the checkpoint as it was before the last dialect.
    """

    tensors: Mapping[str, Any]
    sha256: str = ""
    form: str = ""
    network: nn.Module | None = None
    ema: bool | None = None
    container: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    averaged: bool = False
    copy: str = ""
    precision: tuple[str, ...] = ()
    wrapper: Mapping[str, Tensor] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    unbuilt: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    outer: Checkpoint | None = None


def model_bytes(network: nn.Module, metadata: Mapping[str, Any]) -> bytes:
    """Weights and metadata as the content of a safetensors file; see `save_model`."""
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}
    return _with_sorted_header(safetensors.torch.save(tensors, as_text(metadata)))


def save_model(path: Path | str, network: nn.Module, *, metadata: Mapping[str, Any]) -> None:
    """Write weights and metadata as one safetensors file; the same content always gives the same bytes.

    Args:
        path: replaced at once when all is written, so that nobody ever reads half a file.
        network: its state dict is written, keys unchanged.
        metadata: `arch`, `num_classes`, `norm`, `norm_groups` (of GroupNorm), `n_groups`, `group_size`, `mean`, `std`,
            `preprocessing`, `geometry`, `source_sha256`; None is left out.

    Raises:
        ResourceError: the file cannot be written, or what stands there is no file.
    """
    write_bytes(Path(path), model_bytes(network, metadata))


def _with_sorted_header(content: bytes) -> bytes:
    """Put the metadata in order: the library writes it anew each run, and the file's digest changes with it."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def file_sha256(*paths: Path) -> str:
    """Digest of a file's bytes, or of those of several files one after the other, as hexadecimal text."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()
