"""`lnbench gate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_ln.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from robustbench_ln.gating import Decision

_FORMATS = ("text", "json", "junit", "github", "gitlab")


def gate_command(
    new: Annotated[
        Path, typer.Argument(metavar="NEW", help="Run folder or results.json to judge.", show_default=False)
    ],
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="PATH", help="Run folder, results.json or baseline.json to compare with."),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy",
            metavar="FILE",
            help="YAML file with rules. [default: clean accuracy, and the mean over all else]",
        ),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", metavar="FRACTION", help="Allowed drop where a rule names none, a fraction. [default: 0.01]"
        ),
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", metavar="P", help="Accepted chance of a wrong verdict. [default: 0.01]")
    ] = None,
    pair: Annotated[
        list[str] | None,
        typer.Option("--pair", metavar="NEW=OLD", help="NEW=OLD: a model that was renamed. May be repeated."),
    ] = None,
    format: Annotated[str, typer.Option("--format", metavar="NAME", help=f"{', '.join(_FORMATS)}.")] = "text",
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the format to this file, and text to stdout.")
    ] = None,
    init: Annotated[
        Path | None,
        typer.Option(
            "--init", metavar="DIR", help="Make NEW the baseline: write baseline.json and, if missing, gate.yaml there."
        ),
    ] = None,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit 0 on fail and inconclusive; 4 and 6 stay what they are.")
    ] = False,
) -> None:
    """Pass or fail a new result against a baseline: red for a regression, not for noise.

    Images are compared in pairs, so that a drop of a point is told from chance. Exit code 0 is a pass, 1 a failure, 4
    and 6 are results that cannot be compared.

    Examples:
    - `lnbench gate runs/new --baseline runs/main`

    - `lnbench gate runs/main --init robustness`

    - `lnbench gate runs/new --baseline robustness/baseline.json --policy robustness/gate.yaml --format github`
    """
    if format not in _FORMATS:
        raise unknown_name("format", format, _FORMATS)
    if (baseline is None) == (init is None):
        found = "neither" if init is None else "both"
        raise UsageError("give --baseline to compare, or --init to make one", found=found, hint="--baseline runs/main")
    from robustbench_ln.gating import FORMATS, decide, default_policy, read_policy, write_baseline
    from robustbench_ln.results import load_results

    judged = load_results(new)
    if init is not None:
        _init(write_baseline(judged, init, max_drop=max_drop, alpha=alpha))
        return
    assert baseline is not None
    old = load_results(baseline)
    if policy is not None:
        asked = read_policy(policy, max_drop=max_drop, alpha=alpha)
    else:
        conditions = [row.condition.to_condition() for row in judged.document.rows]
        asked = default_policy(conditions, max_drop=max_drop, alpha=alpha)
    decision = decide(asked, judged, old, pairs=_pairs(pair or []))
    if out is None:
        typer.echo(FORMATS[format](decision), nl=False)
    else:
        from robustbench_ln.results import write_bytes

        write_bytes(out, FORMATS[format](decision).encode())
        typer.echo(FORMATS["text"](decision), nl=False)
    if format == "github":
        _tell_github(decision)
    if decision.problem is not None:
        raise decision.problem
    raise typer.Exit(0 if exit_zero else decision.exit_code)


def _pairs(texts: list[str]) -> dict[str, str]:
    pairs = {}
    for text in texts:
        new, equals, old = text.partition("=")
        if not (new and equals and old):
            raise UsageError("--pair names two models", found=text, hint="--pair NEW=OLD")
        pairs[new] = old
    return pairs


def _init(written: tuple[Path, Path, bool]) -> None:
    baseline, policy, is_new = written
    typer.echo(f"{baseline}: the baseline, {baseline.stat().st_size / 1000:.0f} kB")
    typer.echo(f"{policy}: {'the rules; edit and commit both' if is_new else 'left as it is'}")
    typer.echo(f"next: lnbench gate runs/new --baseline {baseline} --policy {policy}")


def _tell_github(decision: Decision) -> None:
    """Append to the files that a GitHub step names; elsewhere there are none."""
    from robustbench_ln.errors import ResourceError
    from robustbench_ln.gating.formats import github_outputs, github_summary

    for variable, render in (("GITHUB_STEP_SUMMARY", github_summary), ("GITHUB_OUTPUT", github_outputs)):
        if name := os.environ.get(variable):
            try:
                with Path(name).open("a", encoding="utf-8") as file:
                    file.write(render(decision))
            except OSError as error:
                raise ResourceError(f"cannot write {variable}", found=f"{name}: {error.strerror}") from None
