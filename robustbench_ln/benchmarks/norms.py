"""What normalisations cost: training steps, and predictions under every evaluation mode."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustbench_ln.benchmarks.timing import machine, on_one_core, side_by_side
from robustbench_ln.errors import InputError, UsageError, unknown_name
from robustbench_ln.models import build_network
from robustbench_ln.norms import NORMS, NetworkNorms, Schedule, convert_norms, frozen_state, schedule
from robustbench_ln.norms.predict import predict_logits


@dataclass(frozen=True, slots=True)
class Setting:
    """How a network is trained in the paper.

    Attributes:
        size: height and width of its images.
        batch: images a step.
        n_groups: K.
        classes: number of logits.
    """

    size: int
    batch: int
    n_groups: int
    classes: int


NETWORKS = {"resnet20": Setting(32, 128, 8, 10), "resnet50": Setting(224, 16, 4, 1000)}
# Dynamic BatchNorm trains as BatchNorm does, and its modes are among BatchNorm's.
_MEASURED = tuple(name for name in NORMS if name != "dynbn")


def bench_norms(
    *,
    network: Sequence[str] = tuple(NETWORKS),
    norm: Sequence[str] = _MEASURED,
    repeats: int = 5,
    threads: int = 1,
    all_cores: bool = True,
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Measure what each normalisation costs beside BatchNorm, all in turn in one run.

    Args:
        network: names of :data:`NETWORKS`.
        norm: names of :data:`~robustbench_ln.norms.NORMS`; BatchNorm is always measured beside them.
        repeats: measurements of each, at least 3; the median counts.
        threads: of torch; with 1 the process is pinned to a core, and its processor time counts.
        all_cores: also measure training steps with as many threads as there are cores.
        on_row: called with every row as it is done.

    Returns: ``{"schema_version", "machine", "threads", "pinned", "rows", "all_cores"}``. A row has the ``network``,
        ``norm``, ``pass`` (``train`` or ``eval``), ``mode`` (None in training), the number of ``images`` and the median
        ``seconds``; ``ratio`` is that to BatchNorm (in training, or its mode ``bn``), and ``ratio_dynbn`` that to
        ``dynbn-batch``, for modes whose images share statistics. ``all_cores`` holds ``threads`` and ``rows``.

    Raises:
        UsageError: fewer than 3 repeats, no such network or normalisation.
    """
    if repeats < 3:
        raise UsageError("--repeats is too small for a median", found=str(repeats), hint="3 or more")
    for what, names, known in (("network", network, NETWORKS), ("normalisation", norm, NORMS)):
        for name in names:
            if name not in known:
                raise unknown_name(what, name, known)
    norms = dict.fromkeys(("bn", *norm))

    def measured(rows: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
        kept = []
        for row in rows:
            kept.append(row)
            if on_row is not None:
                on_row(row)
        return kept

    rows: list[dict[str, Any]] = []
    with on_one_core(threads) as pinned:
        for name in network:
            networks = _networks(name, norms)
            rows += measured(_training(name, networks, repeats, threads))
            for images in (1, NETWORKS[name].batch):
                rows += measured(_predicting(name, networks, images, repeats, threads))
    cores = os.cpu_count() or 1
    everywhere = None
    if all_cores and cores > 1:
        with on_one_core(cores):
            made = [_training(name, _networks(name, norms), repeats, cores) for name in network]
            everywhere = {"threads": cores, "rows": [row for each in made for row in measured(each)]}
    return {
        "schema_version": 1,
        "machine": machine(),
        "threads": threads,
        "pinned": pinned,
        "rows": rows,
        "all_cores": everywhere,
    }


def _networks(name: str, norms: Iterable[str]) -> dict[str, nn.Module]:
    setting = NETWORKS[name]
    plain = build_network(name, num_classes=setting.classes)
    return {norm: convert_norms(plain, norm, groups=setting.n_groups if norm == "ln" else None) for norm in norms}


def _images(name: str, n: int) -> Tensor:
    size = NETWORKS[name].size
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def _training(name: str, networks: dict[str, nn.Module], repeats: int, threads: int) -> Iterator[dict[str, Any]]:
    setting = NETWORKS[name]
    images, labels = _images(name, setting.batch), torch.arange(setting.batch) % setting.classes
    works = {}
    for norm, network in networks.items():
        optimiser = torch.optim.SGD(network.train().parameters(), lr=1e-3, momentum=0.9)
        works[norm] = partial(_step, network, optimiser, images, labels)
    seconds = side_by_side(works, repeats, threads=threads)
    for norm in networks:
        yield _row(name, norm, "train", None, setting.batch, seconds[norm], seconds["bn"], None)


def _step(network: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, labels: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    torch.autograd.backward(F.cross_entropy(network(images), labels))
    optimiser.step()


def _predicting(
    name: str, networks: dict[str, nn.Module], n: int, repeats: int, threads: int
) -> Iterator[dict[str, Any]]:
    """Every mode of every network on n images, in batches of which the paper's K groups are made."""
    setting = NETWORKS[name]
    images, draws = _images(name, n), torch.rand(n, generator=torch.Generator().manual_seed(1))
    works: dict[tuple[str, str], Callable[[], None]] = {}
    shared = set()
    for norm, network in networks.items():
        norms = NetworkNorms.of(network, setting.batch // setting.n_groups if norm == "ln" else None)
        for mode in norms.all_modes():
            try:
                made = schedule(mode, norms, n, (setting.size, setting.size))
            except InputError:  # a single image has no K groups
                continue
            works[norm, mode.name] = partial(_predict, network, images, made, draws)
            if made.images:
                shared.add((norm, mode.name))
    seconds = side_by_side(works, repeats, threads=threads)
    for key in works:
        live = seconds["bn", "dynbn-batch"] if key in shared else None
        yield _row(name, key[0], "eval", key[1], n, seconds[key], seconds["bn", "bn"], live)


def _predict(network: nn.Module, images: Tensor, made: Schedule, draws: Tensor) -> None:
    with frozen_state(network):
        predict_logits(network, network, images, made, draws)


def _row(
    network: str,
    norm: str,
    which: str,
    mode: str | None,
    images: int,
    seconds: float,
    batchnorm: float,
    dynamic: float | None,
) -> dict[str, Any]:
    return {
        "network": network,
        "norm": norm,
        "pass": which,
        "mode": mode,
        "images": images,
        "seconds": seconds,
        "ratio": seconds / batchnorm,
        "ratio_dynbn": dynamic and seconds / dynamic,
    }
