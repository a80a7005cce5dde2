"""What lnbench writes beside the weights so that a checkpoint needs no flag when it is read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from robustbench_ln.models.preprocessing import PREPROCESSINGS, is_mean_std


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _count(value: Any) -> int:
    if type(value) is not int or value < 1:
        raise ValueError
    return value


def _channels(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list | tuple):
        raise ValueError
    return tuple(float(_number(each)) for each in value)


def _number(value: Any) -> float:
    if not isinstance(value, int | float):
        raise ValueError
    return value


def _geometry(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError
    return {
        "resize": _count(value.get("resize")),
        "crop": _count(value.get("crop")),
        "interpolation": _text(value.get("interpolation")),
    }


_READERS: dict[str, Callable[[Any], Any]] = {
    "arch": _text,
    "num_classes": _count,
    "n_groups": _count,
    "group_size": _count,
    "norm": _text,
    "norm_groups": _count,
    "mean": _channels,
    "std": _channels,
    "preprocessing": _text,
    "geometry": _geometry,
    "source_sha256": _text,
}


def read_metadata(raw: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Check metadata found in a file. Files are not trusted: a value that makes no sense is dropped.

    Args:
        raw: values, or JSON text of them (safetensors holds text only); keys of other tools are passed over.

    Returns: the values by key (`mean` and `std` both or neither), and a warning for each that was dropped.
    """
    values, warnings = {}, []
    for key, reader in _READERS.items():
        if raw.get(key) is None:
            continue
        try:
            values[key] = reader(_parsed(raw[key], reader))
        except (ValueError, OverflowError, RecursionError):
            warnings.append(f"metadata {key!r} of the file makes no sense and is not used: {str(raw[key])[:60]!r}")
    if "mean" not in values and "std" not in values and values.get("preprocessing") in PREPROCESSINGS:
        named = PREPROCESSINGS[values["preprocessing"]]
        values |= {"mean": named.mean, "std": named.std}
    mean, std = values.pop("mean", None), values.pop("std", None)
    if mean is not None and std is not None and is_mean_std(mean, std):
        values |= {"mean": mean, "std": std}
    elif mean is not None or std is not None:
        warnings.append(f"metadata 'mean' and 'std' of the file do not go together and are not used: {mean}, {std}")
    return values, tuple(warnings)


def _parsed(value: Any, reader: Callable[[Any], Any]) -> Any:
    return json.loads(value) if isinstance(value, str) and reader is not _text else value


def as_text(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Metadata as safetensors holds it: text as it is, everything else as JSON, absent values left out."""
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in metadata.items()
        if value is not None
    }
