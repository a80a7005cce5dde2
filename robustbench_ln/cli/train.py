"""`lnbench train`."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import redirect_stdout
from json import dumps
from pathlib import Path
from typing import Annotated

import typer

from robustbench_ln.cli.options import (
    BadImageOpt,
    ConfigOpt,
    DeviceOpt,
    EmaOpt,
    InterpolationOpt,
    JsonOpt,
    NormalizeOpt,
    QuietOpt,
    ResizeOpt,
    SeedOpt,
    ThreadsOpt,
    TrustOpt,
    output_path,
)
from robustbench_ln.cli.process import Interrupted, Stop, command_line

_WHAT, _HOW, _RUN, _OUT = "What to train", "How to train", "The run", "Output"


def train_command(
    data: Annotated[
        str,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Training images: demo, cifar10[:DIR], cifar100[:DIR], imagefolder:DIR, imagenet:DIR or npz:FILE.",
            rich_help_panel=_WHAT,
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", parser=output_path, help="Folder of the training.", rich_help_panel=_OUT),
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="MODEL", help="Train on from this, named as for eval.", rich_help_panel=_WHAT),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option(
            "--arch",
            metavar="NAME",
            help="Train this architecture from scratch (lnbench list architectures), or MODULE:FACTORY; with --model, "
            "the architecture of that file.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            "--norm",
            metavar="NAME",
            help="bn, dynbn, ln, layernorm, instancenorm, groupnorm or switchnorm. [default: the network's own]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    groups: Annotated[
        int | None,
        typer.Option(
            "--groups",
            metavar="K",
            help="Groups of LocalNorm. [default: 8, for images above 96 pixels 4]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    eval_data: Annotated[
        str,
        typer.Option(
            "--eval-data",
            metavar="DATA",
            help="Images that decide which epoch is best: auto (the test images, or a tenth of the others), none, or "
            "as --data.",
            rich_help_panel=_WHAT,
        ),
    ] = "auto",
    epochs: Annotated[
        int | None,
        typer.Option("--epochs", metavar="N", help="[default: 200, for large images 150]", rich_help_panel=_HOW),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            metavar="N",
            help="Images a step, over all processes. [default: 128, for large images 16]",
            rich_help_panel=_HOW,
        ),
    ] = None,
    optimizer: Annotated[
        str, typer.Option("--optimizer", metavar="NAME", help="sgd, adam or adamw.", rich_help_panel=_HOW)
    ] = "sgd",
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            metavar="RATE",
            help="Its peak. [default: 0.1, for large images 0.0015]",
            rich_help_panel=_HOW,
        ),
    ] = None,
    momentum: Annotated[
        float, typer.Option("--momentum", metavar="X", help="Nesterov's; beta 1 of Adam.", rich_help_panel=_HOW)
    ] = 0.9,
    weight_decay: Annotated[
        float,
        typer.Option(
            "--weight-decay", metavar="X", help="On kernels and matrices, not on norms.", rich_help_panel=_HOW
        ),
    ] = 1e-4,
    schedule: Annotated[
        str,
        typer.Option(
            "--schedule", metavar="NAME", help="Of the learning rate: step, cosine or constant.", rich_help_panel=_HOW
        ),
    ] = "step",
    warmup: Annotated[
        float,
        typer.Option(
            "--warmup", metavar="EPOCHS", help="Epochs in which the learning rate rises.", rich_help_panel=_HOW
        ),
    ] = 0.0,
    crop: Annotated[
        int | None,
        typer.Option(
            "--crop",
            metavar="PIXELS",
            help="Zero padding of random crops. [default: an eighth of the side]",
            rich_help_panel=_HOW,
        ),
    ] = None,
    flip: Annotated[
        bool, typer.Option("--flip/--no-flip", help="Mirror images at random.", rich_help_panel=_HOW)
    ] = True,
    precision: Annotated[
        str, typer.Option("--precision", metavar="NAME", help="fp32, bf16, fp16 or fp64.", rich_help_panel=_HOW)
    ] = "fp32",
    new_head: Annotated[
        bool,
        typer.Option("--new-head", help="Replace the output layer by a new one for this data.", rich_help_panel=_HOW),
    ] = False,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    ema: EmaOpt = None,
    on_bad_image: BadImageOpt = "stop",
    resize: ResizeOpt = None,
    center_crop: Annotated[
        int | None,
        typer.Option(
            "--center-crop", metavar="PIXELS", help="Side of the centre crop, after --resize.", rich_help_panel=_HOW
        ),
    ] = None,
    interpolation: InterpolationOpt = None,
    seed: SeedOpt = 0,
    device: DeviceOpt = "auto",
    threads: ThreadsOpt = None,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            help="Threads that prepare images ahead. [default: 4 on a GPU, else 0]",
            rich_help_panel=_RUN,
        ),
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
    config: ConfigOpt = None,  # noqa: ARG001 - read before the others, as their defaults
) -> None:
    """Train a network, from scratch or from a checkpoint, with BatchNorm or LocalNorm.

    Interrupt and run again at will: it goes on bit for bit. The defaults are the paper's settings.

    Examples:
    - `lnbench train --arch resnet20 --data cifar10 --norm bn --out runs/bn`

    - `lnbench train --model runs/bn/best.safetensors --norm ln --groups 8 --data cifar10 --epochs 10 --out runs/ln`

    - `torchrun --nproc-per-node 4 -m robustbench_ln train --arch resnet32 --norm ln --data cifar10 --out runs/ln4`
    """
    if not quiet and os.environ.get("RANK", "0") == "0":
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.cli.progress import TrainingDisplay
    from robustbench_ln.planning import choose_device, threads_of
    from robustbench_ln.training import plan_training, processes, train_plan

    # What a network's own code prints must not stand among the results.
    with threads_of(threads), redirect_stdout(sys.stderr), processes(choose_device(device)) as among:
        plan = among.together(
            lambda: plan_training(
                data=data,
                model=model,
                arch=arch,
                norm=norm,
                groups=groups,
                eval_data=eval_data,
                epochs=epochs,
                batch_size=batch_size,
                optimizer=optimizer,
                learning_rate=learning_rate,
                momentum=momentum,
                weight_decay=weight_decay,
                schedule=schedule,
                warmup=warmup,
                crop=crop,
                flip=flip,
                precision=precision,
                new_head=new_head,
                normalize=normalize,
                seed=seed,
                trust=trust,
                ema=ema,
                on_bad_image=on_bad_image,
                resize=resize,
                center_crop=center_crop,
                interpolation=interpolation,
                among=among,
            )
        )
        quiet = quiet or not among.first
        if not quiet:
            for warning in plan.warnings:
                print(f"warning: {warning}", file=sys.stderr)
        with Stop(one_of_many=among.size > 1) as stop, TrainingDisplay(plan, out, quiet=quiet) as display:
            run = train_plan(
                plan,
                out,
                among=among,
                workers=workers,
                stop=stop,
                on_event=display.on_event,
                command=command_line(),
            )
            if not run.finished:
                number = stop.number or signal.SIGTERM  # another process may have got it alone
                raise Interrupted(number) if among.first else SystemExit(128 + number)
    if not among.first:
        return
    if json:
        typer.echo(dumps({"schema_version": 1, **run.to_dict()}, indent=1, allow_nan=False))
    else:
        typer.echo(run.summary)
