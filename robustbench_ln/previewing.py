"""One sheet that shows what corruptions and noises do to an image: a row a corruption, a column a severity."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from robustbench_ln.corruptions import degrade, plan_degradations, to_levels
from robustbench_ln.data import ArrayDataset, Dataset, open_dataset, parse_geometry
from robustbench_ln.data.geometry import resized
from robustbench_ln.data.imagefiles import read_image
from robustbench_ln.errors import UsageError
from robustbench_ln.files import writing

_CELL = 112  # pixels of a cell's side, at least
_GAP, _LEFT, _LINE, _LABEL = 6, 170, 18, 16


@dataclass(frozen=True, slots=True)
class Sheet:
    """Degraded pictures of one image, ready to be drawn.

    Attributes:
        title: what the image is and whose constants were used.
        clean: ``(H, W, 3)`` uint8.
        rows: name of a corruption or noise, then level and picture of each cell.
        warnings: what a reader should know.
    """

    title: str
    clean: NDArray[np.uint8]
    rows: tuple[tuple[str, tuple[tuple[float, NDArray[np.uint8]], ...]], ...]
    warnings: tuple[str, ...]


def preview(
    *,
    image: str | Path | None = None,
    data: str = "demo",
    index: int = 0,
    corruption: str | Iterable[str] | None = None,
    severity: str | int | Sequence[int] | None = None,
    suite: str | None = None,
    frost_textures: str | Path | None = None,
    jpeg_parity: bool = False,
    noise: str | Iterable[str] | None = None,
    sigma: str | float | Sequence[float] | None = None,
    seed: int = 0,
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
) -> Sheet:
    """Degrade one image in many ways.

    Args:
        image: an image file; instead of one of a data set.
        data: what ``--data`` takes.
        index: position of the image in the data set.
        corruption: as for :func:`robustbench_ln.evaluate`; ``all`` when no noise is named either.
        severity: as there, like the arguments that follow.
        suite: whose constants.
        frost_textures: folder of the original textures.
        jpeg_parity: send corrupted images through JPEG of quality 85.
        noise: names, with or without a grid.
        sigma: grid of the noises without one.
        seed: of everything random.
        resize: shorter side after resizing.
        crop: side of the centre crop.
        interpolation: of resizing.

    Raises:
        UsageError: a name or number that is none, or no such image in the data set.
        InputError: an image or data set that cannot be used.
    """
    asked = plan_degradations(
        noise=noise,
        sigma=sigma,
        corruption=corruption,
        severity=severity,
        suite=suite,
        frost_textures=frost_textures,
        jpeg_parity=jpeg_parity,
        otherwise="corruption",
    )
    dataset: Dataset
    if image is not None:
        pixels = read_image(Path(image))[None]
        dataset = resized(ArrayDataset(pixels, [0], id=Path(image).name), parse_geometry(resize, crop, interpolation))
        index = 0
    else:
        dataset = open_dataset(data, resize=resize, crop=crop, interpolation=interpolation)
    if not 0 <= index < len(dataset):
        raise UsageError("no such image", found=f"--index {index}", hint=f"0 to {len(dataset) - 1}")
    made = asked.for_images(dataset.image_size)
    clean = dataset.read([index])
    rows: dict[str, list[tuple[float, NDArray[np.uint8]]]] = {}
    for condition in made.conditions:
        shown = degrade(clean, condition, torch.tensor([index]), seed, suite=made.suite, textures=made.textures)
        picture = to_levels(shown)[0].permute(1, 2, 0).numpy()
        rows.setdefault(condition.name, []).append((condition.level, picture))
    height, width = dataset.image_size
    constants = f", constants of {made.suite.name}" if any(one.suite for one in made.conditions) else ""
    return Sheet(
        f"{dataset.id}, image {index}, {height} x {width} pixels{constants}, seed {seed}",
        clean[0].permute(1, 2, 0).numpy(),
        tuple((name, tuple(cells)) for name, cells in rows.items()),
        (*dataset.warnings, *made.warnings),
    )


def save_sheet(sheet: Sheet, out: Path) -> None:
    """Write a sheet as ``.png`` or ``.html``.

    Raises:
        UsageError: another suffix.
        ResourceError: the file cannot be written.
    """
    if out.suffix.lower() not in (".png", ".html"):
        raise UsageError("--out must end in .png or .html", found=str(out), hint="preview.png")
    with writing(out) as file:
        if out.suffix.lower() == ".html":
            file.write(_html(sheet).encode())
        else:
            _drawn(sheet).save(file, "PNG")


def _drawn(sheet: Sheet) -> Image.Image:
    """The sheet as one picture; small images are enlarged by whole factors, so that every pixel stays a square."""
    height, width = sheet.clean.shape[:2]
    factor = max(1, round(_CELL / max(height, width)))
    cell_w, cell_h = width * factor, height * factor
    columns = max(len(cells) for _, cells in sheet.rows)
    wide = _LEFT + (columns + 1) * (cell_w + _GAP) + _GAP
    font, small = ImageFont.load_default(14), ImageFont.load_default(11)
    lines = [(line, "black", font) for line in _wrapped(sheet.title, font, wide - 2 * _GAP)]
    for warning in sheet.warnings:
        lines += [(line, "#a04000", small) for line in _wrapped(warning, small, wide - 2 * _GAP)]
    top = 2 * _GAP + _LINE * len(lines)
    page = Image.new("RGB", (wide, top + len(sheet.rows) * (_LABEL + cell_h + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(page)
    for i, (line, colour, kind) in enumerate(lines):
        draw.text((_GAP, _GAP + _LINE * i), line, colour, kind)

    def enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
        return Image.fromarray(pixels).resize((cell_w, cell_h), Image.Resampling.NEAREST)

    y = top
    for name, cells in sheet.rows:
        y += _LABEL
        draw.text((_GAP, y + cell_h // 2 - 8), name, "black", font)
        page.paste(enlarged(sheet.clean), (_LEFT, y))
        draw.text((_LEFT, y - 14), "clean", "#555555", small)
        for i, (level, pixels) in enumerate(cells):
            x = _LEFT + (i + 1) * (cell_w + _GAP)
            page.paste(enlarged(pixels), (x, y))
            draw.text((x, y - 14), f"{level:g}", "#555555", small)
        y += cell_h + _GAP
    return page


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Lines that fit into `width` pixels, broken between words."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _html(sheet: Sheet) -> str:
    def picture(pixels: NDArray[np.uint8], name: str, label: str) -> str:
        content = io.BytesIO()
        Image.fromarray(pixels).save(content, "PNG")
        source = base64.b64encode(content.getvalue()).decode()
        shown = f'<img alt="{html.escape(f"{name}, {label}")}" src="data:image/png;base64,{source}">'
        return f"<figure>{shown}<figcaption>{html.escape(label)}</figcaption></figure>"

    rows = []
    for name, cells in sheet.rows:
        pictures = picture(sheet.clean, name, "clean")
        pictures += "".join(picture(pixels, name, f"{level:g}") for level, pixels in cells)
        rows.append(f"<section><h2>{html.escape(name)}</h2><div>{pictures}</div></section>")
    warnings = "".join(f"<p class=warning>{html.escape(text)}</p>" for text in sheet.warnings)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{html.escape(sheet.title)}</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width"><style>
:root {{ color-scheme: light dark }}
body {{ font: 15px system-ui, sans-serif; margin: 1.5rem }}
h1 {{ font-size: 1.1rem }} h2 {{ font-size: 1rem; margin: 1rem 0 .3rem }}
.warning {{ color: light-dark(#a04000, #ffb070) }}
div {{ display: flex; flex-wrap: wrap; gap: 6px }} figure {{ margin: 0 }}
img {{ width: max({_CELL}px, {sheet.clean.shape[1]}px); image-rendering: pixelated; display: block }}
figcaption {{ font-size: .8rem; opacity: .7 }}
</style></head><body><h1>{html.escape(sheet.title)}</h1>{warnings}
{"".join(rows)}
</body></html>
"""
