"""`lnbench preview`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_ln.cli.options import (
    CorruptionOpt,
    CropOpt,
    DataOpt,
    FrostTexturesOpt,
    InterpolationOpt,
    JpegParityOpt,
    NoiseOpt,
    ResizeOpt,
    SeedOpt,
    SeverityOpt,
    SigmaOpt,
    SuiteOpt,
    output_path,
)


def preview_command(
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="An image file, instead of one of --data.")
    ] = None,
    data: DataOpt = "demo",
    index: Annotated[int, typer.Option("--index", metavar="N", help="Position of the image in the data set.")] = 0,
    corruption: CorruptionOpt = None,
    severity: SeverityOpt = None,
    suite: SuiteOpt = None,
    frost_textures: FrostTexturesOpt = None,
    jpeg_parity: JpegParityOpt = False,
    noise: NoiseOpt = None,
    sigma: SigmaOpt = None,
    resize: ResizeOpt = None,
    crop: CropOpt = None,
    interpolation: InterpolationOpt = None,
    seed: SeedOpt = 0,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", parser=output_path, help="A .png or .html file.")
    ] = Path("preview.png"),
) -> None:
    """Draw one sheet of what corruptions and noises do to an image: a row each, a column a severity.

    Examples:
    - `lnbench preview`

    - `lnbench preview --image photo.jpg --resize 256 --crop 224 --corruption snow,frost,fog --out weather.html`

    - `lnbench preview --noise agn,mbn --sigma 0.25:1:0.25 --out noise.png`
    """
    from robustbench_ln.previewing import preview, save_sheet

    sheet = preview(
        image=image,
        data=data,
        index=index,
        corruption=corruption,
        severity=severity,
        suite=suite,
        frost_textures=frost_textures,
        jpeg_parity=jpeg_parity,
        noise=noise,
        sigma=sigma,
        seed=seed,
        resize=resize,
        crop=crop,
        interpolation=interpolation,
    )
    save_sheet(sheet, out)
    for warning in sheet.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{len(sheet.rows)} rows in {out}", file=sys.stderr)
