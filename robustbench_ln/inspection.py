"""What a model file is, as facts; and its logits on images of the user's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from robustbench_ln.errors import InputError
from robustbench_ln.models import Classifier, LoadedModel, parse_normalize
from robustbench_ln.norms import NetworkNorms, frozen_state, norm_layers
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
        "container": loaded.container,
        "prefixes": list(loaded.prefixes),
        "arch": loaded.arch,
        "recognised": loaded.recognised,
        "num_classes": loaded.num_classes,
        "parameters": sum(parameter.numel() for parameter in loaded.network.parameters()),
        "norm": norms.kind,
        "norm_layers": len(norm_layers(loaded.network)),
        "n_groups": norms.n_groups if norms.kind == "ln" else None,
        "group_size": norms.default_images if norms.kind == "ln" else None,
        "modes": [mode.name for mode in norms.runnable_modes()],
        "mean": list(mean),
        "std": list(std),
        "preprocessing": why,
        "warnings": warnings,
    }


def probe_logits(loaded: LoadedModel, images: Path, out: Path, *, normalize: str = "auto") -> None:
    """Run the network in eval() on an array of images and write its logits as a JSON list of lists.

    Args:
        loaded: from :func:`robustbench_ln.load_model`.
        images: ``.npy`` with a float32 array (N, C, H, W) in [0, 1].
        out: JSON file to write.
        normalize: as ``--normalize``.

    Raises:
        InputError: the array is not of that form.
    """
    try:
        array = np.load(images, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot read {images}", found=str(error)[:200], hint="a .npy array") from None
    if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 4:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
        raise InputError(f"{images} does not hold images", found=found, hint="float32 of shape (N, C, H, W) in [0, 1]")
    if not (np.isfinite(array).all() and array.min(initial=0) >= 0 and array.max(initial=0) <= 1):
        raise InputError(f"{images} holds values outside [0, 1]", hint="images in [0, 1], before normalisation")
    mean, std, _ = _preprocessing(loaded, normalize)
    classifier = Classifier(loaded.network, mean, std)
    with frozen_state(classifier):
        logits = classifier(torch.from_numpy(array))
    write_bytes(out, json.dumps(logits.tolist()).encode())
