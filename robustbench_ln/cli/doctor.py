"""`lnbench doctor`."""

from __future__ import annotations

import json as json_module
import sys

import typer

from robustbench_ln.cli.options import JsonOpt, QuietOpt


def doctor_command(json: JsonOpt = False, quiet: QuietOpt = False) -> None:
    """What lnbench finds on this machine: versions, devices, data, and whether its pixels are those of others.

    Examples:
    - `lnbench doctor`

    - `lnbench doctor --json`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from tabulate import tabulate

    from robustbench_ln.diagnosis import diagnose

    findings = diagnose()
    if json:
        document = {"schema_version": 1, "findings": [finding._asdict() for finding in findings]}
        typer.echo(json_module.dumps(document, indent=1, allow_nan=False))
    else:
        lines = [[finding.subject, finding.found, "" if finding.ok else "!"] for finding in findings]
        typer.echo(tabulate(lines, tablefmt="plain", disable_numparse=True))
    if not all(finding.ok for finding in findings):
        raise typer.Exit(5)
