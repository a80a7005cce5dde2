"""`lnbench eval`."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from robustbench_ln.cli.options import (
    ArchOpt,
    AuditOrderOpt,
    AutoBatchSizeOpt,
    BadImageOpt,
    BudgetOpt,
    CiWidthOpt,
    CleanOpt,
    CompileOpt,
    ConfigOpt,
    CorruptionOpt,
    CropOpt,
    DataOpt,
    DevicesOpt,
    DryRunOpt,
    EmaOpt,
    EngineOpt,
    FailFastOpt,
    FrostTexturesOpt,
    GroupSizeOpt,
    InterpolationOpt,
    JpegParityOpt,
    JsonOpt,
    LimitOpt,
    ModelsOpt,
    ModesOpt,
    NoiseOpt,
    NoPredictionsOpt,
    NormalizeOpt,
    OutOpt,
    PrecisionOpt,
    PresetOpt,
    QuietOpt,
    RangeOpt,
    RepeatsOpt,
    ResizeOpt,
    SeedOpt,
    SeverityOpt,
    ShardOpt,
    SigmaOpt,
    SuiteOpt,
    ThreadsOpt,
    TimeoutOpt,
    TrustOpt,
    WorkersOpt,
)
from robustbench_ln.cli.process import command_line
from robustbench_ln.errors import IncompleteError, UsageError

if TYPE_CHECKING:
    from robustbench_ln.planning import Plan


def eval_command(
    model: ModelsOpt,
    data: DataOpt = "demo",
    clean: CleanOpt = None,
    noise: NoiseOpt = None,
    sigma: SigmaOpt = None,
    preset: PresetOpt = None,
    range: RangeOpt = None,
    corruption: CorruptionOpt = None,
    severity: SeverityOpt = None,
    suite: SuiteOpt = None,
    frost_textures: FrostTexturesOpt = None,
    jpeg_parity: JpegParityOpt = False,
    modes: ModesOpt = None,
    group_size: GroupSizeOpt = None,
    arch: ArchOpt = None,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    ema: EmaOpt = None,
    on_bad_image: BadImageOpt = "stop",
    resize: ResizeOpt = None,
    crop: CropOpt = None,
    interpolation: InterpolationOpt = None,
    seed: SeedOpt = 0,
    repeats: RepeatsOpt = 1,
    limit: LimitOpt = None,
    audit_order: AuditOrderOpt = False,
    ci_width: CiWidthOpt = None,
    budget: BudgetOpt = None,
    batch_size: AutoBatchSizeOpt = "128",
    device: DevicesOpt = "auto",
    precision: PrecisionOpt = "fp32",
    compile: CompileOpt = False,
    threads: ThreadsOpt = None,
    workers: WorkersOpt = 0,
    engine: EngineOpt = "local",
    shard: ShardOpt = None,
    fail_fast: FailFastOpt = False,
    timeout: TimeoutOpt = None,
    dry_run: DryRunOpt = False,
    out: OutOpt = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
    no_predictions: NoPredictionsOpt = False,
    config: ConfigOpt = None,  # noqa: ARG001 - read before the others, as their defaults
) -> None:
    """Measure accuracy under noise and corruption, for every evaluation mode.

    Interrupt and run again at will: finished rows are kept in the run folder, with results.json, results.csv,
    the curves as PNG and SVG, and every image's prediction.

    Examples:
    - `lnbench eval --model demo:bn --model demo:ln --noise agn --sigma 0:3:0.25`

    - `lnbench eval --model ckpt.pt --data imagefolder:photos/test --noise agn,apn --noise mbn=0:0.5:0.1`

    - `lnbench eval --model ckpt.pt --data cifar10 --corruption all --severity 1:5`

    - `lnbench eval --model ckpt.pt --data cifar10c:CIFAR-10-C --clean cifar10`

    - `lnbench eval --model ckpt.pt --data cifar10 --preset paper-fig6 --modes all --workers 2`

    - `lnbench eval --model ckpt.pt --data imagenet:val --corruption all --budget 2h --dry-run`

    - `lnbench eval --model ckpt.pt --data imagenet:val --corruption all --shard 1/8 --out shards/1`

    - `lnbench eval --model demo:ln --audit-order --limit 300`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.api import evaluate_plan, within_budget
    from robustbench_ln.cli.progress import Display, Lines
    from robustbench_ln.evaluation import fit_batch
    from robustbench_ln.planning import check_numbers, plan_run, threads_of
    from robustbench_ln.reports import summarise, terminal
    from robustbench_ln.results import dump_document

    check_numbers(workers=workers)
    lines = Lines()

    def on_trial(done: int, whole: int) -> None:
        lines.say(lambda: f"finding the preprocessing: {done} of {whole} predictions")

    settings = {
        "clean": clean,
        "noise": noise,
        "sigma": sigma,
        "preset": preset,
        "range": range,
        "corruption": corruption,
        "severity": severity,
        "suite": suite,
        "frost_textures": frost_textures,
        "jpeg_parity": jpeg_parity,
        "modes": modes,
        "group_size": group_size,
        "repeats": repeats,
        "seed": seed,
        "limit": limit,
        "ci_width": ci_width,
        "batch_size": _images(batch_size),
        "device": device,
        "precision": precision,
        "compile": compile,
        "timeout": timeout,
        "arch": arch,
        "normalize": normalize,
        "trust": trust,
        "ema": ema,
        "on_bad_image": on_bad_image,
        "resize": resize,
        "crop": crop,
        "interpolation": interpolation,
        "predictions": not no_predictions,
    }
    if audit_order:
        from robustbench_ln.cli.auditing import audit

        audit(model, data, settings, out=out, threads=threads, workers=workers, json=json, quiet=quiet)
        return
    # What a network's own code prints must not stand among the results.
    with threads_of(threads), redirect_stdout(sys.stderr):
        plan = plan_run(model, data, **settings, on_trial=None if quiet else on_trial)  # type: ignore[arg-type]
        folder = out or default_folder([info.id for info in plan.manifest.models], plan.manifest.data.id)
        if batch_size == "auto":
            plan = fit_batch(plan)
        if budget is not None:
            plan = within_budget(plan, budget, folder)
        if dry_run:
            _show_cost(plan, folder, json=json)
            return
        with Display(plan, folder, quiet=quiet) as display:
            results = evaluate_plan(
                plan,
                out=folder,
                workers=workers,
                engine=engine,
                shard=shard,
                fail_fast=fail_fast,
                on_event=display.on_event,
                command=command_line(),
            )
    summary = summarise(results.document, results.hits)
    # The table ends with the warnings: on a terminal that shows both streams, once is enough.
    if json or not (sys.stdout.isatty() and sys.stderr.isatty()):
        for warning in summary.warnings:
            print(f"warning: {warning}", file=sys.stderr)
    if json:
        typer.echo(dump_document(results.document), nl=False)
    else:
        terminal.show(summary)
    if not quiet:
        print(f"results in {folder}", file=sys.stderr)
    failed = [row for row in results.document.rows if row.status == "failed"]
    if failed:
        raise IncompleteError(
            f"{len(failed)} of {len(results)} rows failed",
            found=f"{failed[0].extra.get('reason', '')}",
            hint="the same command again: it does them anew",
        )


def _images(batch_size: str) -> int:
    """The number that `--batch-size` says; for `auto`, that of the trial which tells what fits."""
    if batch_size == "auto":
        return 128
    if not batch_size.isdecimal():
        raise UsageError("--batch-size is not a number", found=batch_size, hint="--batch-size 128, or auto")
    return int(batch_size)


def _show_cost(plan: Plan, folder: Path, *, json: bool) -> None:
    from robustbench_ln.evaluation import estimate
    from robustbench_ln.results import FolderRun

    cost = estimate(plan, FolderRun(folder, plan.manifest).get)
    if json:
        typer.echo(json_module.dumps(cost.to_dict(), allow_nan=False))
        return
    typer.echo(
        f"{cost.cells} rows to find, {cost.forward_passes:,} forward passes of an image, about {cost.seconds:.0f} s in "
        f"one process\n{cost.memory_bytes / 2**20:.0f} MiB of memory besides torch, "
        f"{cost.disk_bytes / 2**20:.1f} MiB on disk"
    )


def default_folder(model_ids: list[str], data_id: str) -> Path:
    """``runs/<model>-<data>``, or ``runs/<first>+<n>-<data>`` for n further models."""
    first = model_ids[0].rpartition("@")[0]
    more = f"+{len(model_ids) - 1}" if len(model_ids) > 1 else ""
    return Path("runs") / f"{first}{more}-{data_id}"
