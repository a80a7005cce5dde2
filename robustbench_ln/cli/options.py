"""Options that commands share, each spelled once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_ln.errors import InputError, UsageError, unknown_name

# What YAML means by nothing, as text: the option keeps its default.
_NULLS = ("", "~", "null", "Null", "NULL")
_WHAT, _HOW, _RUN, _OUT = "What to evaluate", "How to evaluate", "The run", "Output"


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Make the options of a YAML file the defaults of this command."""
    if path is None:
        return None
    from robustbench_ln.yaml_files import read_yaml

    # Scalars stay text, as on the command line: YAML 1.1 would read the grid 0:1:0.5 as a number to base 60.
    file = read_yaml(path, as_text=True)
    content: Any = file.content or {}
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold options", found=type(content).__name__, hint="lines such as `seed: 1`")
    known = {
        name: parameter
        for parameter in context.command.get_params(context)
        for name in parameter.opts
        if name[:2] == "--" and name not in ("--config", "--help")
    }
    defaults = {}
    for key, value in content.items():
        parameter = known.get(f"--{key.replace('_', '-')}")
        if parameter is None:
            raise unknown_name("option", key, [name[2:] for name in known])
        if value in _NULLS:
            continue
        if isinstance(value, dict) or (isinstance(value, list) and not all(isinstance(one, str) for one in value)):
            file.fail((key,), "not a value of an option", found=str(value), hint="text, a number or a list of them")
        values = value if isinstance(value, list) else [value]
        # The options that may be repeated take every value by itself, the others a list by commas.
        defaults[parameter.name] = values if parameter.multiple else ",".join(values)
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


def _allow_tracebacks(value: bool) -> None:
    if value:
        os.environ["LNBENCH_DEBUG"] = "1"


def output_path(text: str | Path) -> Path:
    """Where output goes. An empty text is refused: as a path it would be the working directory."""
    if not str(text).strip():
        raise UsageError("--out is empty", found=repr(text), hint="--out with a name, or no --out")
    return Path(text)


ConfigOpt = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="YAML file with any of these options.", is_eager=True, callback=_read_config
    ),
]
ModelsOpt = Annotated[
    list[str],
    typer.Option(
        "--model",
        metavar="MODEL",
        help="Checkpoint file or folder, demo:bn, demo:ln, torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME or "
        "python:MODULE:FACTORY. Repeat to compare.",
        rich_help_panel=_WHAT,
    ),
]
DataOpt = Annotated[
    str,
    typer.Option(
        "--data",
        metavar="DATA",
        help="demo, imagefolder:DIR, imagenet:DIR, npz:FILE, cifar10[:DIR] or cifar100[:DIR].",
        rich_help_panel=_WHAT,
    ),
]
CleanOpt = Annotated[
    str | None,
    typer.Option(
        "--clean",
        metavar="DATA",
        help="The clean images beside published ones, which are --data cifar10c:DIR, cifar100c:DIR or imagenetc:DIR.",
        rich_help_panel=_WHAT,
    ),
]
NoiseOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--noise",
        metavar="NOISE",
        help="Noises by commas, with their own grid or the common one: agn,mbn=0:0.5:0.1. [default: agn, or none]",
        rich_help_panel=_WHAT,
    ),
]
SigmaOpt = Annotated[
    str | None,
    typer.Option(
        "--sigma",
        metavar="GRID",
        help="Grid of the noises without one: start:stop:step, a list, or a number. [default: 0:1:0.25]",
        rich_help_panel=_WHAT,
    ),
]
PresetOpt = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="A named set of noises, grids and range (lnbench list presets).",
        rich_help_panel=_WHAT,
    ),
]
RangeOpt = Annotated[
    str | None,
    typer.Option(
        "--range",
        metavar="NAME",
        help="Noisy values outside [0, 1]: clip, rescale or none. [default: clip, or the preset's]",
        rich_help_panel=_WHAT,
    ),
]
CorruptionOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--corruption",
        metavar="NAME",
        help="Corruptions by commas; all, common (the 15 of mCE) or extra (lnbench list corruptions).",
        rich_help_panel=_WHAT,
    ),
]
SeverityOpt = Annotated[
    str | None,
    typer.Option(
        "--severity",
        metavar="LIST",
        help="Of corruptions: a grid, a list, or a number. [default: 1:5]",
        rich_help_panel=_WHAT,
    ),
]
SuiteOpt = Annotated[
    str | None,
    typer.Option(
        "--suite",
        metavar="SUITE",
        help="Whose constants: cifar10-c, tiny-imagenet-c, imagenet-c or FILE.yaml. [default: nearest in size]",
        rich_help_panel=_WHAT,
    ),
]
FrostTexturesOpt = Annotated[
    Path | None,
    typer.Option(
        "--frost-textures",
        metavar="DIR",
        help="Folder with the original frost1.png ... frost5.jpg. [default: an installed package's, else procedural]",
        rich_help_panel=_WHAT,
    ),
]
JpegParityOpt = Annotated[
    bool,
    typer.Option(
        "--jpeg-parity", help="Send corrupted images through JPEG quality 85, as ImageNet-C did.", rich_help_panel=_WHAT
    ),
]
ModesOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--modes",
        metavar="MODE",
        help="Evaluation modes by commas, or all (lnbench list modes). [default: by network]",
        rich_help_panel=_HOW,
    ),
]
GroupSizeOpt = Annotated[
    int | None,
    typer.Option(
        "--group-size", metavar="M", help="M, images that share statistics, for modes without :M.", rich_help_panel=_HOW
    ),
]
ArchOpt = Annotated[
    str | None,
    typer.Option(
        "--arch", metavar="NAME", help="Architecture, or MODULE:FACTORY. [default: recognised]", rich_help_panel=_HOW
    ),
]
NormalizeOpt = Annotated[
    str,
    typer.Option(
        "--normalize", metavar="HOW", help="auto, imagenet, cifar10, half, none or 'MEAN;STD'.", rich_help_panel=_HOW
    ),
]
TrustOpt = Annotated[
    bool,
    typer.Option("--trust", help="Allow model files that can run code when read.", rich_help_panel=_HOW),
]
EmaOpt = Annotated[
    bool | None,
    typer.Option(
        "--ema/--no-ema",
        help="Weights of files that hold two copies: averaged or plain. [default: plain]",
        rich_help_panel=_HOW,
    ),
]
BadImageOpt = Annotated[
    str, typer.Option("--on-bad-image", metavar="WHAT", help="Unreadable images: stop or skip.", rich_help_panel=_HOW)
]
ResizeOpt = Annotated[
    int | None, typer.Option("--resize", metavar="PIXELS", help="Shorter side after resizing.", rich_help_panel=_HOW)
]
CropOpt = Annotated[
    int | None, typer.Option("--crop", metavar="PIXELS", help="Side of the centre crop.", rich_help_panel=_HOW)
]
InterpolationOpt = Annotated[
    str | None,
    typer.Option("--interpolation", metavar="NAME", help="Of resizing. [default: bilinear]", rich_help_panel=_HOW),
]
SeedOpt = Annotated[int, typer.Option("--seed", metavar="N", help="Of everything random.", rich_help_panel=_RUN)]
RepeatsOpt = Annotated[
    int, typer.Option("--repeats", metavar="N", help="Redraws of each random condition's pixels.", rich_help_panel=_RUN)
]
LimitOpt = Annotated[
    int | None,
    typer.Option(
        "--limit", metavar="N", help="Score only the first N images of the shuffled order.", rich_help_panel=_RUN
    ),
]
AuditOrderOpt = Annotated[
    bool,
    typer.Option(
        "--audit-order",
        help="Measure how much modes that share statistics depend on who shares a batch: M = 1 to 256, images shuffled "
        "and class by class.",
        rich_help_panel=_RUN,
    ),
]
CiWidthOpt = Annotated[
    float | None,
    typer.Option(
        "--ci-width",
        metavar="FRACTION",
        help="End a row once its 95 % interval, valid at every look, is that narrow (0.005: half a point).",
        rich_help_panel=_RUN,
    ),
]
BatchSizeOpt = Annotated[
    int,
    typer.Option("--batch-size", metavar="N", help="Images computed at once; changes no number.", rich_help_panel=_RUN),
]
AutoBatchSizeOpt = Annotated[
    str,
    typer.Option(
        "--batch-size",
        metavar="N",
        help="Images computed at once, or auto for what fits into memory; changes no number.",
        rich_help_panel=_RUN,
    ),
]
DeviceOpt = Annotated[
    str, typer.Option("--device", metavar="NAME", help="auto, cpu, cuda[:i] or mps.", rich_help_panel=_RUN)
]
DevicesOpt = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="NAME",
        help="auto, cpu, cuda[:i] or mps; several, by commas, share the conditions.",
        rich_help_panel=_RUN,
    ),
]
PrecisionOpt = Annotated[
    str,
    typer.Option("--precision", metavar="NAME", help="Of forward passes: fp32, bf16 or fp16.", rich_help_panel=_RUN),
]
CompileOpt = Annotated[
    bool,
    typer.Option(
        "--compile", help="Compile networks with frozen statistics (modes bn and native).", rich_help_panel=_RUN
    ),
]
EngineOpt = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help="What carries out the work: local, ray[:HOST] or slurm.",
        rich_help_panel=_RUN,
    ),
]
ShardOpt = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Only the I-th of N parts of the work; then lnbench merge.", rich_help_panel=_RUN
    ),
]
FailFastOpt = Annotated[
    bool,
    typer.Option(
        "--fail-fast/--keep-going",
        help="Stop at the first row that fails, or mark it and go on (exit 4 at the end).",
        rich_help_panel=_RUN,
    ),
]
TimeoutOpt = Annotated[
    float | None,
    typer.Option(
        "--timeout", metavar="SECONDS", help="Of a condition; then its rows have failed.", rich_help_panel=_RUN
    ),
]
DryRunOpt = Annotated[
    bool,
    typer.Option(
        "--dry-run", help="Print what the run will cost, from a calibration of 2 s, and stop.", rich_help_panel=_RUN
    ),
]
BudgetOpt = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="TIME",
        help="Choose as many images, class by class, as fit into it: 90s, 10min, 2h.",
        rich_help_panel=_RUN,
    ),
]
ThreadsOpt = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="Threads of a forward pass.", rich_help_panel=_RUN)
]
WorkersOpt = Annotated[
    int,
    typer.Option(
        "--workers", metavar="N", help="Processes that evaluate conditions side by side.", rich_help_panel=_RUN
    ),
]
OutOpt = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        parser=output_path,
        help="Run folder. [default: runs/`MODEL`-`DATA`]",
        rich_help_panel=_OUT,
    ),
]
JsonOpt = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout, nothing else.", rich_help_panel=_OUT)
]
QuietOpt = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.", rich_help_panel=_OUT)]
NoPredictionsOpt = Annotated[
    bool,
    typer.Option(
        "--no-predictions",
        help="Keep no image's prediction: smaller files, wider intervals of means over repeats.",
        rich_help_panel=_OUT,
    ),
]
DebugOpt = Annotated[
    bool,
    typer.Option("--debug", help="Show tracebacks.", is_eager=True, expose_value=False, callback=_allow_tracebacks),
]
