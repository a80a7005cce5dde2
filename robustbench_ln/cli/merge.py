"""`lnbench merge`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from robustbench_ln.cli.options import JsonOpt, QuietOpt, output_path
from robustbench_ln.cli.process import command_line
from robustbench_ln.errors import IncompleteError


def merge_command(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders of the shards.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", parser=output_path, help="Run folder to be made.")],
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Put the run folders of shards together into one run.

    Examples:
    - `lnbench merge shards/1 shards/2 --out runs/all`

    - `lnbench merge shards/* --out runs/all --json`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.merging import merge
    from robustbench_ln.reports import summarise, terminal
    from robustbench_ln.results import dump_document

    results = merge(folders, out, command=command_line())
    if json:
        typer.echo(dump_document(results.document), nl=False)
    else:
        terminal.show(summarise(results.document, results.hits))
    if not quiet:
        print(f"results in {out}", file=sys.stderr)
    missing = [row for row in results.document.rows if row.status == "failed"]
    if missing:
        row = missing[0]
        raise IncompleteError(
            f"{len(missing)} of {len(results)} rows are missing",
            found=f"the first: {row.model}, {row.mode}, {row.condition.to_condition()}",
            hint="run the shards that did not end again, then lnbench merge",
        )
