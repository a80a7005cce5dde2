"""`lnbench eval --audit-order`."""

from __future__ import annotations

import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import typer
from tabulate import tabulate

from robustbench_ln.auditing import OrderAudit, audit_plans, charts, plan_orders, tables
from robustbench_ln.cli.process import command_line
from robustbench_ln.cli.progress import Display
from robustbench_ln.errors import UsageError
from robustbench_ln.planning import threads_of
from robustbench_ln.reports import chart
from robustbench_ln.reports.text import visible

_CHART = 72  # columns


def audit(
    model: list[str],
    data: str,
    settings: dict[str, Any],
    *,
    out: Path | None,
    threads: int | None,
    workers: int,
    json: bool,
    quiet: bool,
) -> None:
    """Run and show an audit; the options of ``eval``, those of the evaluation itself in `settings`."""
    from robustbench_ln.cli.eval import default_folder

    for name in ("group_size", "repeats", "predictions"):
        plain = {"group_size": None, "repeats": 1, "predictions": True}[name]
        if settings[name] != plain:
            option = "--no-predictions" if name == "predictions" else f"--{name.replace('_', '-')}"
            hint = "without it: an audit tries M by itself, and compares single predictions"
            raise UsageError(f"{option} has no place in an audit of orders", found=str(settings[name]), hint=hint)
    with threads_of(threads), redirect_stdout(sys.stderr):
        plans = plan_orders(model, data, **settings)
        first = next(iter(plans.values()))
        folder = default_folder([info.id for info in first.manifest.models], first.manifest.data.id)
        folder = out or folder.with_name(f"{folder.name}-orders")
        with Display(first, folder, quiet=quiet, orders=len(plans)) as display:
            found = audit_plans(plans, out=folder, workers=workers, on_event=display.on_event, command=command_line())
    for warning in found.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    if json:
        typer.echo(found.to_json(), nl=False)
    else:
        show(found)
    if not quiet:
        print(f"results in {folder}", file=sys.stderr)


def show(found: OrderAudit) -> None:
    """Print the tables, then a chart of accuracy over M for each model and condition."""
    for table in tables(found):
        typer.echo(f"{visible(table.title)}\n")
        rows = [[visible(cell) for cell in row] for row in table.rows]
        typer.echo(tabulate(rows, headers=list(table.columns), tablefmt="simple", disable_numparse=True))
        typer.echo(f"\n{table.note}\n")
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    width = min(shutil.get_terminal_size((_CHART, 24)).columns, _CHART)
    for title, series, names in charts(found):
        typer.echo(visible(title))
        for spans in chart.draw(series, width=width, height=13, x_label="log2 of M", ascii_only=ascii_only):
            typer.echo("".join(span.text for span in spans))
        markers = chart.ASCII_MARKERS if ascii_only else chart.MARKERS
        for one, name in zip(series, names, strict=True):
            typer.echo(f"     {markers[one.marker % len(markers)]} {name}")
        typer.echo("")
