"""`lnbench compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from robustbench_ln.errors import UsageError, unknown_name

_FORMATS = ("terminal", "html", "markdown", "latex", "csv", "json")
_ORDERS = ("file", "difference", "p")


def compare_command(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="Run folders or results.json files, the reference first.")
    ],
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference", metavar="NAME", help="MODEL, MODE or MODEL/MODE to compare with. [default: what comes first]"
        ),
    ] = None,
    alpha: Annotated[
        float, typer.Option("--alpha", metavar="P", help="Chance of calling any line better or worse by mistake.")
    ] = 0.05,
    sort: Annotated[
        str, typer.Option("--sort", metavar="NAME", help="file, difference (worst first) or p (surest first).")
    ] = "file",
    format: Annotated[str, typer.Option("--format", metavar="NAME", help=f"{', '.join(_FORMATS)}.")] = "terminal",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write to this file instead of stdout.")
    ] = None,
) -> None:
    """Compare models or modes image by image: which conditions got better, which got worse, and how sure that is.

    Examples:
    - `lnbench compare runs/main runs/new`

    - `lnbench compare runs/demo-bn+1-demo --reference demo-bn/bn --sort difference`

    - `lnbench compare runs/main runs/new --format html --out compare.html`
    """
    for word, value, known in (("format", format, _FORMATS), ("order", sort, _ORDERS)):
        if value not in known:
            raise unknown_name(word, value, known)
    if not 0 < alpha <= 0.5:
        raise UsageError("--alpha is a probability, at most 0.5", found=f"{alpha:g}", hint="--alpha 0.05")
    from robustbench_ln.comparing import FORMATS, compare
    from robustbench_ln.results import load_results, write_bytes

    comparison = compare([load_results(path) for path in results], reference=reference, alpha=alpha, sort=sort)
    text = FORMATS[format](comparison)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_bytes(out, text.encode())
