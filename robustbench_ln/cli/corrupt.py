"""`lnbench corrupt`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_ln.cli.options import (
    BadImageOpt,
    BatchSizeOpt,
    ConfigOpt,
    CorruptionOpt,
    CropOpt,
    DataOpt,
    DeviceOpt,
    FrostTexturesOpt,
    InterpolationOpt,
    JpegParityOpt,
    LimitOpt,
    NoiseOpt,
    QuietOpt,
    ResizeOpt,
    SeedOpt,
    SeverityOpt,
    SigmaOpt,
    SuiteOpt,
    ThreadsOpt,
    output_path,
)


def corrupt_command(
    out: Annotated[
        Path, typer.Option("--out", metavar="OUT", parser=output_path, help="OUT.npz, or a folder with --layout.")
    ],
    data: DataOpt = "demo",
    corruption: CorruptionOpt = None,
    severity: SeverityOpt = None,
    suite: SuiteOpt = None,
    frost_textures: FrostTexturesOpt = None,
    jpeg_parity: JpegParityOpt = False,
    noise: NoiseOpt = None,
    sigma: SigmaOpt = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout",
            metavar="NAME",
            help="npz (one file), cifar10c (a .npy a corruption) or imagenetc (a tree of JPEG quality 85).",
        ),
    ] = "npz",
    on_bad_image: BadImageOpt = "stop",
    resize: ResizeOpt = None,
    crop: CropOpt = None,
    interpolation: InterpolationOpt = None,
    seed: SeedOpt = 0,
    limit: LimitOpt = None,
    batch_size: BatchSizeOpt = 64,
    device: DeviceOpt = "auto",
    threads: ThreadsOpt = None,
    quiet: QuietOpt = False,
    config: ConfigOpt = None,  # noqa: ARG001 - read before the others, as their defaults
) -> None:
    """Write corrupted or noisy copies of a data set: the pixels that eval degrades on the fly, as files.

    Noise is clipped to [0, 1] and rounded to 8 bits. Interrupt and run again at will: what is finished is kept.

    Examples:
    - `lnbench corrupt --data npz:images.npz --suite cifar10-c --corruption all --severity 1:5 --out corrupted.npz`

    - `lnbench corrupt --data cifar10 --corruption common --layout cifar10c --out CIFAR-10-C`

    - `lnbench corrupt --data imagefolder:photos/test --corruption fog --severity 3 --layout imagenetc --out photos-c`

    - `lnbench corrupt --data demo --noise agn --sigma 0.5,1 --out noisy.npz`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.cli.progress import Bars
    from robustbench_ln.corrupting import plan_corrupted, write_corrupted
    from robustbench_ln.planning import threads_of

    with threads_of(threads):
        job = plan_corrupted(
            data,
            out,
            corruption=corruption,
            severity=severity,
            suite=suite,
            frost_textures=frost_textures,
            jpeg_parity=jpeg_parity,
            noise=noise,
            sigma=sigma,
            layout=layout,
            seed=seed,
            limit=limit,
            batch_size=batch_size,
            device=device,
            on_bad_image=on_bad_image,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
        )
        for warning in job.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        total = len(job.conditions) * len(job.indices)
        with Bars(total, "images", kept=f"finished conditions are kept beside {out}", quiet=quiet) as bars:
            made = write_corrupted(job, on_images=lambda condition, n: bars.advance(str(condition), n))
    if any(condition.kind == "noise" for condition in job.conditions) and not quiet:
        print("note: noise was clipped to [0, 1] and rounded to 8 bits; eval does not round it", file=sys.stderr)
    if not quiet:
        print(
            f"{len(job.conditions)} conditions of {len(job.indices)} images in {out}, {made} newly made",
            file=sys.stderr,
        )
