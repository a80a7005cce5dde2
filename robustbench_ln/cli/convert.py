"""`lnbench convert`."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from robustbench_ln.cli.options import (
    ArchOpt,
    ConfigOpt,
    EmaOpt,
    JsonOpt,
    NormalizeOpt,
    QuietOpt,
    TrustOpt,
    output_path,
)


def convert_command(
    model: Annotated[str, typer.Argument(metavar="IN", help="As --model of lnbench eval.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="OUT", parser=output_path, help="OUT.safetensors, the file to write.")
    ],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="NORM",
            help="ln, dynbn, layernorm, instancenorm, groupnorm, switchnorm, or bn (as it is).",
        ),
    ] = "ln",
    groups: Annotated[
        int | None,
        typer.Option("--groups", metavar="K", help="Groups of LocalNorm or GroupNorm. [default: ln 8, groupnorm 32]"),
    ] = None,
    group_size: Annotated[
        int | None,
        typer.Option("--group-size", metavar="M", help="Images a LocalNorm group has. [default: 128 / K]"),
    ] = None,
    arch: ArchOpt = None,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    ema: EmaOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
    config: ConfigOpt = None,  # noqa: ARG001 - read before the others, as their defaults
) -> None:
    """Turn a BatchNorm network into a LocalNorm network, or one of another normalisation, meant to be trained on.

    Every norm layer keeps its gamma and beta, LocalNorm in each of its K groups. The file says what eval needs to know.

    Examples:
    - `lnbench convert ckpt.pt --to ln --groups 8 --out converted.safetensors`

    - `lnbench convert torchvision:resnet50 --to ln --groups 4 --group-size 4 --out resnet50-ln.safetensors`

    - `lnbench convert demo:bn --to groupnorm --groups 16 --out demo-gn.safetensors`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.converting import convert

    with redirect_stdout(sys.stderr):  # what a network's own code prints
        made = convert(
            model,
            out=out,
            to=to,
            groups=groups,
            group_size=group_size,
            arch=arch,
            normalize=normalize,
            trust=trust,
            ema=ema,
        )
    for warning in made.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if json:
        typer.echo(json_module.dumps(asdict(made), indent=1, allow_nan=False, default=str))
    elif not quiet:
        of = f", K = {made.n_groups} groups of {made.group_size}" if made.n_groups else ""
        of = f", {made.norm_groups} groups" if made.norm_groups else of
        typer.echo(f"{made.out}: {made.arch or 'network'} with {made.norm_layers} norm layers of kind {to}{of}")
