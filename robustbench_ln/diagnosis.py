"""What lnbench finds on a machine: versions, devices, data, and whether the pixels it makes are those of others."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import torch

from robustbench_ln._version import __version__
from robustbench_ln.corruptions import corrupt, fingerprint, to_float
from robustbench_ln.data import open_dataset
from robustbench_ln.data.cifar import downloads_folder

_PACKAGES = ("torch", "torchvision", "numpy", "scipy", "pillow", "safetensors")
_EXTRAS = ("pandas", "timm", "onnxruntime", "ray", "submitit")
# Fingerprints of the demo's first images at severity 3. A decoder, a random generator or a convolution that works
# otherwise gives others, and results are then not those of other machines.
_PIXELS = {
    "jpeg_compression": "c038e8f8668509e8",
    "gaussian_noise": "6c52dabb03527d6a",
    "elastic_transform": "35885ba1631fd941",
}


class Finding(NamedTuple):
    """One thing that was looked at: what, what was found, and whether that is as it should be."""

    subject: str
    found: str
    ok: bool = True


def diagnose() -> list[Finding]:
    """Look at everything that results depend on; nothing is changed, nothing is downloaded."""
    return [*_versions(), *_devices(), *_data(), *_pixels()]


def _versions() -> Iterator[Finding]:
    yield Finding("lnbench", __version__)
    yield Finding("python", f"{platform.python_version()}, {platform.platform()}")
    for name in _PACKAGES:
        installed = _version(name)
        yield Finding(name, installed or "not installed", bool(installed))
    for name in _EXTRAS:
        yield Finding(name, _version(name) or "not installed (an extra)")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _devices() -> Iterator[Finding]:
    yield Finding("cpu", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads")
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        yield Finding(
            f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {free / 2**30:.1f} of {total / 2**30:.1f} GiB free"
        )
    if torch.backends.mps.is_available():
        yield Finding("mps", "available")


def _data() -> Iterator[Finding]:
    folder = downloads_folder()
    held = ", ".join(sorted(entry.name for entry in folder.iterdir() if entry.is_dir())) if folder.is_dir() else ""
    yield Finding("downloaded data", f"{folder}: {held or 'nothing yet'}")
    offline = os.environ.get("LNBENCH_OFFLINE", "0") not in ("", "0")
    yield Finding("downloads", "forbidden by LNBENCH_OFFLINE" if offline else "when a name asks for one")


def _pixels() -> Iterator[Finding]:
    images = open_dataset("demo").read(range(16))
    for name, expected in _PIXELS.items():
        made = fingerprint(to_float(corrupt(images, name, 3)))
        same = made == expected
        found = "the same pixels as elsewhere" if same else f"other pixels than elsewhere: {made}, not {expected}"
        yield Finding(f"self-test {name}", found, same)
