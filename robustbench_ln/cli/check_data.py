"""`lnbench check-data`."""

from __future__ import annotations

import json as json_module
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_ln.cli.options import CleanOpt, JsonOpt, QuietOpt
from robustbench_ln.errors import IncompleteError, InputError

if TYPE_CHECKING:
    from robustbench_ln.checking import DataReport


def check_data_command(
    data: Annotated[str, typer.Argument(metavar="DATA", help="As --data of lnbench eval.")],
    clean: CleanOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Say what a data set is and what is wrong with it; every image is read.

    Leaves with 0 when all is fine, with 3 when something is bad, with 4 when something is missing.

    Examples:
    - `lnbench check-data imagefolder:photos/test`

    - `lnbench check-data cifar10c:CIFAR-10-C --clean cifar10`

    - `lnbench check-data imagenetc:ImageNet-C --json`
    """
    from rich.console import Console

    from robustbench_ln.checking import check_data
    from robustbench_ln.reports.text import visible

    with Console(stderr=True, quiet=quiet).status("checking ...") as status:
        report = check_data(data, clean=clean, on_step=lambda name: status.update(f"checking {visible(name)} ..."))
    if json:
        typer.echo(json_module.dumps(report.to_dict(), indent=1, allow_nan=False))
    else:
        for line in _lines(report):
            typer.echo(visible(line))
    worst = [finding for finding in report.findings if finding.level == report.verdict]
    if worst:
        kind = InputError if report.verdict == "bad" else IncompleteError
        more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
        raise kind(f"{worst[0].what}{more}", found=worst[0].found or data, hint=worst[0].hint)


def _lines(report: DataReport) -> Iterator[str]:
    yield f"data        {report.data}"
    if report.images:
        height, width = report.image_size
        least, most = report.class_counts
        each = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        yield f"images      {report.images:,} of {height} x {width} pixels ({report.geometry})"
        yield f"classes     {report.classes:,}, with {each} images each"
        yield f"pixels      {report.pixels}, mean {', '.join(f'{value:.3f}' for value in report.mean)}"
        for severities, names in _by_severities(report).items():
            yield f"severities  {severities} of {', '.join(names)}"
        if report.checksums is not None:
            yield f"checksums   {report.checksums} files are the published ones"
        yield f"sha256      {report.sha256}"
    for finding in report.findings:
        yield ""
        yield f"{finding.level}: {finding.what}"
        for label, text in (("found", finding.found), ("try", finding.hint)):
            if text:
                yield f"  {label}: {text}"
    yield ""
    yield f"verdict: {report.verdict}"


def _by_severities(report: DataReport) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, severities in report.conditions.items():
        found.setdefault(",".join(map(str, severities)), []).append(name)
    return found
