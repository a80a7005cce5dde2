"""`lnbench report`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_ln.errors import IncompleteError, UsageError, unknown_name

if TYPE_CHECKING:
    from robustbench_ln.reports import Summary


def report_command(
    results: Annotated[
        list[str],
        typer.Argument(
            metavar="RESULTS",
            help="Run folders, results.json files, or RobustBench's unaggregated_results.csv and model JSON.",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format", metavar="FORMAT", help="terminal, html, markdown, latex, csv or json.", show_default=True
        ),
    ] = "terminal",
    normaliser: Annotated[
        str | None,
        typer.Option(
            "--normaliser",
            metavar="NAME",
            help="What mCE divides by: alexnet, none, or a results file (FILE#MODEL/MODE where it holds several). "
            "[default: alexnet for ImageNet-C, else none]",
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="SUITE", help="The suite to report on, where the results hold several."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="File to write. [default: stdout]")] = None,
) -> None:
    """Bring results to a report: mCE and mean corruption error with intervals, CE by corruption, accuracy under noise.

    Examples:
    - `lnbench report runs/mine`

    - `lnbench report runs/mine --format html --out report.html`

    - `lnbench report runs/mine runs/other --format markdown --out report.md`

    - `lnbench report runs/mine --normaliser alexnet --format json`

    - `lnbench report runs/mine model_info/imagenet/corruptions/unaggregated_results.csv --normaliser alexnet`

    - `lnbench report runs/mine --normaliser runs/base --format latex`
    """
    from robustbench_ln.reports import FORMATS, build, terminal
    from robustbench_ln.reports.text import visible
    from robustbench_ln.results import write_bytes

    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    if out is not None and out.is_dir():
        raise UsageError("--out must be a file", found=f"a folder at {out}", hint=f"--out {out / 'report'}")
    summary = build(results, normaliser=normaliser, suite=suite)
    if out is not None:
        write_bytes(out, FORMATS[format](summary).encode())
        print(f"{format} report in {out}", file=sys.stderr)
    elif format == "terminal":
        terminal.show(summary)
    else:
        typer.echo(FORMATS[format](summary), nl=False)
    if format != "terminal" or out is not None:
        for warning in summary.warnings:
            print(f"warning: {visible(warning)}", file=sys.stderr)
    _check_complete(summary)


def _check_complete(summary: Summary) -> None:
    """The report is there; what it lacks is an error of its own, so that no script takes it for a whole one."""
    from robustbench_ln.metrics.mce import STANDARD
    from robustbench_ln.results import shards_missing

    if missing := shards_missing(summary.run):
        raise IncompleteError(
            "the report is of a part of the work", found=f"shards {', '.join(missing)} missing", hint="lnbench merge"
        )
    failed = [row for row in summary.rows if row.status == "failed"]
    if failed:
        raise IncompleteError(
            "the report leaves rows out that failed",
            found=f"{len(failed)} of {len(summary.rows)} rows",
            hint="the command of lnbench eval again: it does failed rows anew",
        )
    if summary.sheet.withheld:
        entry = summary.sheet.withheld[0]
        raise IncompleteError(
            "mCE was asked for, and cells are missing",
            found=f"{entry.name}: cells of {len(entry.scores.complete)} of {len(STANDARD)} corruptions are complete",
            hint="lnbench eval --corruption common --severity 1:5, into the same folder",
        )
