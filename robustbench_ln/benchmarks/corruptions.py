"""Images a second of every corruption, and what share of a sweep goes into corrupting."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from robustbench_ln.benchmarks.peer import NAME, find_peer
from robustbench_ln.benchmarks.timing import machine, on_one_core, per_second
from robustbench_ln.corruptions import ImageRng, Suite, corrupt, nearest_suite
from robustbench_ln.corruptions.suites import SEVERITIES
from robustbench_ln.data import open_dataset
from robustbench_ln.errors import UsageError
from robustbench_ln.models import build_network

SIZES = (32, 64, 224)
# Networks that a sweep is compared with, by size of their images.
_NETWORKS = {32: "resnet20", 224: "mobilenet_v3_small"}
_BATCH_VALUES = 1 << 20  # pixel values of a batch, about


def bench_corruptions(
    *,
    sizes: Sequence[int] = SIZES,
    corruption: Sequence[str] | None = None,
    severity: int = 3,
    repeats: int = 3,
    threads: int = 1,
    peer: str = "none",
    share: bool = True,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure the corruptions, ours and the peer's in turn on the same images.

    Args:
        sizes: height and width of the images, each with the suite nearest in size.
        corruption: names; all of the suite when left out.
        severity: 1 to 5.
        repeats: measurements of each, at least 3; the median counts.
        threads: of torch; with 1 the whole process is pinned to a core.
        peer: ``none``, ``install``, or the Python of an environment with imagecorruptions.
        share: also measure forward passes, for the share of a sweep that goes into corrupting.
        on_row: called with every row as it is done.

    Returns: ``{"schema_version", "machine", "threads", "pinned", "rows", "geometric_means", "sweeps"}``.

    Raises:
        UsageError: fewer than 3 repeats, no such corruption.
        ResourceError: the peer cannot be had.
    """
    if repeats < 3:
        raise UsageError("--repeats is too small for a median", found=str(repeats), hint="3 or more")
    rows: list[dict[str, Any]] = []
    sweeps: list[dict[str, Any]] = []
    with on_one_core(threads) as pinned, find_peer(peer) as other, tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            suite = nearest_suite((size, size))
            images = sample_images(size)
            file = Path(folder) / f"{size}.npy"
            np.save(file, images.permute(0, 2, 3, 1).numpy())
            for name in corruption or suite.corruptions:
                ours, theirs = [], []
                work = partial(corrupt, images, name, severity, suite=suite)
                work()  # precomputed operators are not what is measured
                for _ in range(repeats):
                    ours.append(per_second(work, len(images)))
                    measured = other.per_second(file, name, severity) if other is not None else None
                    if measured is not None:
                        theirs.append(measured)
                row = {
                    "corruption": name,
                    "suite": suite.name,
                    "size": size,
                    "severity": severity,
                    "images_per_second": median(ours),
                    "peer": {"name": NAME, "images_per_second": median(theirs)} if theirs else None,
                }
                rows.append(row)
                if on_row is not None:
                    on_row(row)
            if share and size in _NETWORKS and corruption is None:
                sweeps.append(_sweep(images, suite, repeats))
    return {
        "schema_version": 1,
        "machine": machine(),
        "threads": threads,
        "pinned": pinned,
        "rows": rows,
        "geometric_means": [_mean_row([row for row in rows if row["size"] == size]) for size in sizes],
        "sweeps": sweeps,
    }


def sample_images(size: int, n: int | None = None) -> Tensor:
    """`n` of the demo's images at another size, with a little noise on top so that no two neighbours are equal.

    Args:
        size: height and width.
        n: how many; the demo's come again when they are used up. As many as make a batch when left out.

    Returns: uint8 ``(n, 3, size, size)``.
    """
    n = n or min(256, max(16, _BATCH_VALUES // (3 * size * size)))
    demo = open_dataset("demo")
    small = demo.read(np.arange(n) % len(demo)).float()
    scaled = F.interpolate(small, (size, size), mode="bicubic") if size != small.shape[-1] else small
    grain = ImageRng(0, "bench", torch.arange(n)).normal(*scaled.shape[1:]).mul_(2.0)
    return scaled.add_(grain).clamp_(0, 255).to(torch.uint8)


def _mean_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means over all corruptions; the ratio to the peer over those that both can make."""
    pairs = [(row["images_per_second"], row["peer"]["images_per_second"]) for row in rows if row["peer"]]
    return {
        "size": rows[0]["size"],
        "corruptions": len(rows),
        "images_per_second": geometric_mean([row["images_per_second"] for row in rows]),
        "compared": len(pairs),
        "peer_images_per_second": geometric_mean([theirs for _, theirs in pairs]) if pairs else None,
        "ratio": geometric_mean([ours / theirs for ours, theirs in pairs]) if pairs else None,
    }


def _sweep(images: Tensor, suite: Suite, repeats: int) -> dict[str, Any]:
    """Time of corrupting, over all corruptions and severities, beside that of the forward passes on the result."""
    size = images.shape[-1]
    network = build_network(_NETWORKS[size], num_classes=10).eval()
    ready = images.float() / 255
    with torch.inference_mode():
        network(ready)
        forward = median([per_second(lambda: network(ready), len(images)) for _ in range(repeats)])
    works = [partial(corrupt, images, name, level, suite=suite) for name in suite.corruptions for level in SEVERITIES]
    seconds = [1 / median([per_second(work, len(images)) for _ in range(repeats)]) for work in works]
    corrupting = sum(seconds) / len(seconds)
    return {
        "network": _NETWORKS[size],
        "size": size,
        "forward_images_per_second": forward,
        "corrupting_images_per_second": 1 / corrupting,
        "share": corrupting / (corrupting + 1 / forward),
    }
