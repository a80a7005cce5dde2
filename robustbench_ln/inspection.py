"""What a model file is, as facts; and its logits on images of the user's."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from robustbench_ln.errors import InputError, LnbenchError, TrustError
from robustbench_ln.models import Classifier, LoadedModel, parse_normalize
from robustbench_ln.models.imports import one_line
from robustbench_ln.norms import NetworkNorms, frozen_state, norm_kind, norm_layers
from robustbench_ln.results import write_bytes

_NO_IMAGES = "nothing says the preprocessing, and inspect has no images to try it on: none is assumed"


def _preprocessing(loaded: LoadedModel, normalize: str) -> tuple[tuple[float, ...], tuple[float, ...], str]:
    fixed = parse_normalize(normalize)
    if fixed is not None:
        return (*fixed, f"--normalize {normalize}")
    if loaded.mean is None:
        return (), (), ""
    return loaded.mean, loaded.std or (), loaded.preprocessing


def inspect_model(loaded: LoadedModel, *, normalize: str = "auto") -> dict[str, Any]:
    """Everything that is known of a loaded model, ready for JSON.

    Args:
        loaded: from :func:`robustbench_ln.load_model`.
        normalize: as ``--normalize``.
    """
    mean, std, why = _preprocessing(loaded, normalize)
    norms = NetworkNorms.of(loaded.network, loaded.group_size)
    warnings = list(loaded.warnings)
    if not why:
        warnings.append(_NO_IMAGES)
    return {
        "source": loaded.source,
        "sha256": loaded.sha256,
        "source_sha256": loaded.source_sha256,
        "format": loaded.form,
        "container": loaded.container,
        "prefixes": list(loaded.prefixes),
        "copy": loaded.copy,
        "averaged": loaded.averaged,
        "precision": list(loaded.precision),
        "not_built": list(loaded.unbuilt),
        "arch": loaded.arch,
        "recognised": loaded.recognised,
        "num_classes": loaded.num_classes,
        "parameters": sum(parameter.numel() for parameter in loaded.network.parameters()),
        "norm": norms.kind,
        "norm_layers": len(norm_layers(loaded.network)),
        "n_groups": norms.n_groups if norms.kind == "ln" else None,
        "group_size": norms.default_images if norms.kind == "ln" else None,
        "group_size_assumed": norms.kind == "ln" and loaded.group_size is None,
        "modes": [mode.name for mode in norms.runnable_modes()],
        "mean": list(mean),
        "std": list(std),
        "preprocessing": why,
        "geometry": asdict(loaded.geometry) if loaded.geometry else None,
        "warnings": warnings,
        "tree": module_tree(loaded.network),
    }


def module_tree(network: nn.Module) -> dict[str, Any]:
    """The modules of a network as a tree, siblings that are alike folded into one.

    Returns: ``name``, ``type`` and ``detail`` of a module, whether it is a ``norm`` layer, how many ``norm_layers`` and
        ``parameters`` it has in it, how often it is there one after the other (``repeat``; all else is of one of them),
        and its ``children``.
    """
    return _node("", network)


def _node(name: str, module: nn.Module) -> dict[str, Any]:
    children = [_node(child_name, child) for child_name, child in module.named_children()]
    # TorchScript gives all of its modules one class, and says what they were.
    kind = getattr(module, "original_name", type(module).__name__)
    known = bool(norm_layers(module)) or norm_kind(module) != "none"
    norm = not children and (known or (isinstance(module, torch.jit.ScriptModule) and "Norm" in kind))
    return {
        "name": name,
        "type": kind,
        "detail": _detail(module),
        "norm": norm,
        "norm_layers": int(norm) + sum(child["norm_layers"] for child in children),
        "parameters": sum(parameter.numel() for parameter in module.parameters()),
        "repeat": 1,
        "children": _folded(children),
    }


def _detail(module: nn.Module) -> str:
    """The numbers of a layer that tell it from others of its type."""
    if isinstance(module, nn.Conv2d):
        kernel = "x".join(map(str, module.kernel_size))
        parts = [f"{module.in_channels} > {module.out_channels}, {kernel}"]
        parts += [f"stride {module.stride[0]}"] * (module.stride[0] > 1)
        parts += [f"{module.groups} groups"] * (module.groups > 1)
        return ", ".join(parts)
    if isinstance(module, nn.Linear):
        return f"{module.in_features} > {module.out_features}"
    weight = getattr(module, "weight", None)
    return " x ".join(map(str, weight.shape)) if isinstance(weight, torch.Tensor) else ""


def _folded(siblings: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One node for each run of siblings that are alike in all but their names."""
    folded: list[dict[str, Any]] = []
    for node in siblings:
        last = folded[-1] if folded else None
        if last and all(last[key] == node[key] for key in node if key not in ("name", "repeat")):
            first = last["name"].partition(" ... ")[0]
            folded[-1] = {**last, "name": f"{first} ... {node['name']}", "repeat": last["repeat"] + 1}
        else:
            folded.append(node)
    return folded


def probe_logits(loaded: LoadedModel, images: Path, out: Path, *, normalize: str = "auto") -> None:
    """Run the network in eval() on an array of images and write its logits as a JSON list of lists.

    Args:
        loaded: from :func:`robustbench_ln.load_model`.
        images: ``.npy`` with a float32 array (N, 3, H, W) in [0, 1], N at least 1.
        out: JSON file to write.
        normalize: as ``--normalize``.

    Raises:
        InputError: the array is not of that form, or the network cannot run on it.
        TrustError: the logits are not finite.
    """
    array = _read_images(images)
    mean, std, _ = _preprocessing(loaded, normalize)
    classifier = Classifier(loaded.network, mean, std)
    try:
        with frozen_state(classifier):
            logits = classifier(torch.from_numpy(array))
    except (LnbenchError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the network's own code ran
        raise InputError(
            f"{loaded.source} cannot run on {images}",
            found=f"images of shape {array.shape}: {one_line(error)}",
            hint="images of the size that the network was made for",
        ) from error
    if logits.shape != (len(array), loaded.num_classes):
        raise InputError(
            f"{loaded.source} does not give {loaded.num_classes} logits for each image of {images}",
            found=f"shape {tuple(logits.shape)} for images of shape {array.shape}",
            hint="images of the size that the network was made for",
        )
    broken = int((~logits.isfinite()).any(1).sum())
    if broken:
        raise TrustError(
            f"{loaded.source} gives logits that are not finite",
            found=f"NaN or infinity for {broken} of {len(array)} images",
            hint="another --normalize, or weights that are finite",
        )
    write_bytes(out, json.dumps(logits.tolist()).encode())


def _read_images(path: Path) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {path}", found=one_line(error), hint="a .npy array") from None
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} holds several arrays", found=type(array).__name__, hint="a .npy array")
    if array.dtype != np.float32 or array.ndim != 4 or array.shape[1] != 3 or not array.size:
        raise InputError(
            f"{path} does not hold images",
            found=f"{array.dtype} of shape {array.shape}",
            hint="float32 of shape (N, 3, H, W) in [0, 1], one image or more",
        )
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"{path} holds values outside [0, 1]",
            found=f"{array.min()} to {array.max()}",
            hint="images in [0, 1], before normalisation",
        )
    return array
