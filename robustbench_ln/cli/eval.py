"""`lnbench eval`."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path

import typer

from robustbench_ln.cli.options import (
    ArchOpt,
    BadImageOpt,
    BatchSizeOpt,
    CiWidthOpt,
    ConfigOpt,
    CorruptionOpt,
    CropOpt,
    DataOpt,
    DeviceOpt,
    EmaOpt,
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
    PresetOpt,
    QuietOpt,
    RangeOpt,
    RepeatsOpt,
    ResizeOpt,
    SeedOpt,
    SeverityOpt,
    SigmaOpt,
    SuiteOpt,
    ThreadsOpt,
    TrustOpt,
    WorkersOpt,
)
from robustbench_ln.cli.process import command_line


def eval_command(
    model: ModelsOpt,
    data: DataOpt = "demo",
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
    ci_width: CiWidthOpt = None,
    batch_size: BatchSizeOpt = 128,
    device: DeviceOpt = "auto",
    threads: ThreadsOpt = None,
    workers: WorkersOpt = 0,
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

    - `lnbench eval --model ckpt.pt --data cifar10 --preset paper-fig6 --modes all --workers 2`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.api import evaluate_plan, threads_of
    from robustbench_ln.cli.progress import Display, Lines
    from robustbench_ln.planning import check_numbers, plan_run
    from robustbench_ln.reports import summarise, terminal
    from robustbench_ln.results import dump_document

    check_numbers(workers=workers)
    lines = Lines()

    def on_trial(done: int, whole: int) -> None:
        lines.say(lambda: f"finding the preprocessing: {done} of {whole} predictions")

    # What a network's own code prints must not stand among the results.
    with threads_of(threads), redirect_stdout(sys.stderr):
        plan = plan_run(
            model,
            data,
            noise=noise,
            sigma=sigma,
            preset=preset,
            range=range,
            corruption=corruption,
            severity=severity,
            suite=suite,
            frost_textures=frost_textures,
            jpeg_parity=jpeg_parity,
            modes=modes,
            group_size=group_size,
            repeats=repeats,
            seed=seed,
            limit=limit,
            ci_width=ci_width,
            batch_size=batch_size,
            device=device,
            arch=arch,
            normalize=normalize,
            trust=trust,
            ema=ema,
            on_bad_image=on_bad_image,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
            predictions=not no_predictions,
            on_trial=None if quiet else on_trial,
        )
        folder = out or default_folder([info.id for info in plan.manifest.models], plan.manifest.data.id)
        with Display(plan, folder, quiet=quiet) as display:
            results = evaluate_plan(
                plan,
                out=folder,
                workers=workers,
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


def default_folder(model_ids: list[str], data_id: str) -> Path:
    """``runs/<model>-<data>``, or ``runs/<first>+<n>-<data>`` for n further models."""
    first = model_ids[0].rpartition("@")[0]
    more = f"+{len(model_ids) - 1}" if len(model_ids) > 1 else ""
    return Path("runs") / f"{first}{more}-{data_id}"
