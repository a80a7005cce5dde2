"""`lnbench inspect`."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_ln.cli.options import ArchOpt, DebugOpt, JsonOpt, NormalizeOpt, TrustOpt
from robustbench_ln.errors import UsageError


def inspect_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As --model of lnbench eval.")],
    arch: ArchOpt = None,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", metavar="FILE", help="float32 .npy (N, C, H, W) in [0, 1] to run the network on."),
    ] = None,
    logits: Annotated[
        Path | None, typer.Option("--logits", metavar="FILE", help="Where the probe's logits go, as JSON.")
    ] = None,
    json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001 - its callback acts
) -> None:
    """Say what a model file is: container, architecture, norm layers, the modes it can run, preprocessing.

    Examples:
    - `lnbench inspect ckpt.pt`

    - `lnbench inspect demo:ln --json`

    - `lnbench inspect ckpt.pt --normalize cifar10 --probe images.npy --logits logits.json`
    """
    if (probe is None) != (logits is None):
        raise UsageError(
            "--probe and --logits go together", found="one of them", hint="--probe X.npy --logits OUT.json"
        )
    from robustbench_ln.inspection import inspect_model, probe_logits
    from robustbench_ln.models import load_model

    loaded = load_model(model, arch=arch, trust=trust)
    facts = inspect_model(loaded, normalize=normalize)
    if probe is not None and logits is not None:
        probe_logits(loaded, probe, logits, normalize=normalize)
    if json:
        typer.echo(json_module.dumps(facts, indent=1, allow_nan=False))
    else:
        _show(facts)


def _show(facts: dict[str, Any]) -> None:
    from tabulate import tabulate

    rows = [
        (key.replace("_", " "), "; ".join(map(str, value)) if isinstance(value, list) else value)
        for key, value in facts.items()
        if value not in (None, "", [])
    ]
    typer.echo(tabulate(rows, tablefmt="plain", maxcolwidths=[None, 90]))
