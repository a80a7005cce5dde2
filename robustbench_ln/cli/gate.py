"""`lnbench gate`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_ln.cli.options import ArchOpt, BatchSizeOpt, DeviceOpt, NormalizeOpt, QuietOpt, TrustOpt
from robustbench_ln.errors import UsageError, unknown_name

if TYPE_CHECKING:
    from robustbench_ln.gating import Decision

_FORMATS = ("text", "json", "junit", "github", "gitlab")


def gate_command(
    new: Annotated[Path | None, typer.Argument(metavar="NEW", help="Run folder or results.json to judge.")] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Evaluate this model instead, as the baseline was, until all is decided."
        ),
    ] = None,
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
        typer.Option("--pair", metavar="NEW=OLD", help="A model that was renamed. May be repeated."),
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
    data: Annotated[
        str | None, typer.Option("--data", metavar="DATA", help="Of --model. [default: the baseline's own]")
    ] = None,
    arch: ArchOpt = None,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    device: DeviceOpt = "auto",
    batch_size: BatchSizeOpt = 128,
    quiet: QuietOpt = False,
    exit_zero: Annotated[
        bool, typer.Option("--exit-zero", help="Exit 0 on fail and inconclusive; 4 and 6 stay what they are.")
    ] = False,
) -> None:
    """Pass or fail a new result against a baseline: red for a regression, not for noise.

    Images are compared in pairs, so that a drop of a point is told from chance. Exit code 0 is a pass, 1 a failure, 4
    and 6 are results that cannot be compared. With --model it evaluates by itself and stops as soon as it can decide.

    Examples:
    - `lnbench gate runs/new --baseline runs/main`

    - `lnbench gate runs/main --init robustness`

    - `lnbench gate runs/new --baseline robustness/baseline.json --policy robustness/gate.yaml --format github`

    - `lnbench gate --model ckpt.pt --baseline robustness/baseline.json`
    """
    if format not in _FORMATS:
        raise unknown_name("format", format, _FORMATS)
    if (new is None) == (model is None):
        found = "neither" if new is None else "both"
        raise UsageError(
            "give a result to judge, or --model to evaluate", found=found, hint="lnbench gate runs/new ..."
        )
    if (baseline is None) == (init is None):
        found = "neither" if init is None else "both"
        raise UsageError("give --baseline to compare, or --init to make one", found=found, hint="--baseline runs/main")
    from robustbench_ln.gating import FORMATS, decide, default_policy, read_policy, write_baseline
    from robustbench_ln.results import load_results

    if init is not None:
        _init(write_baseline(load_results(_given(new)), init, max_drop=max_drop, alpha=alpha))
        return
    assert baseline is not None
    old = load_results(baseline)
    judged = None if new is None else load_results(new)
    if policy is not None:
        asked = read_policy(policy, max_drop=max_drop, alpha=alpha)
    else:
        conditions = [row.condition.to_condition() for row in (judged or old).document.rows]
        asked = default_policy(conditions, max_drop=max_drop, alpha=alpha)
    if judged is not None:
        decision = decide(asked, judged, old, pairs=_pairs(pair or []))
    else:
        assert model is not None
        from robustbench_ln.gating.sequential import gate_model

        decision = gate_model(
            asked,
            model,
            old,
            data=data,
            baseline_model=next(iter(_pairs(pair or []).values()), None),
            arch=arch,
            normalize=normalize,
            trust=trust,
            device=device,
            batch_size=batch_size,
            on_look=None if quiet else _say,
        )
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


def _given(new: Path | None) -> Path:
    if new is None:
        raise UsageError(
            "--init makes a baseline of a result", found="--model", hint="lnbench gate runs/main --init DIR"
        )
    return new


def _say(done: int, whole: int) -> None:
    print(f"{done} of {whole} images", file=sys.stderr, flush=True)


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
