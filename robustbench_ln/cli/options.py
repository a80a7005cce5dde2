"""Options that commands share, each spelled once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from robustbench_ln.errors import InputError, unknown_name

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
        name: parameter.name for parameter in context.command.params for name in parameter.opts if name[:2] == "--"
    }
    defaults = {}
    for key, value in content.items():
        option = f"--{str(key).replace('_', '-')}"
        if option not in known or option == "--config":
            raise unknown_name("option", str(key), [name[2:] for name in known if name != "--config"])
        parameter = next(one for one in context.command.params if one.name == known[option])
        defaults[known[option]] = [str(value)] if parameter.multiple and not isinstance(value, list) else value
    context.default_map = {**(context.default_map or {}), **defaults}
    return path


ConfigOpt = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with any of these options.", is_eager=True, callback=_read_config),
]
ModelsOpt = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="Checkpoint file or folder, demo:bn, demo:ln, torchvision:NAME, timm:NAME, hf-hub:OWNER/NAME or "
        "python:package.module:factory. Repeat to compare.",
        rich_help_panel=_WHAT,
    ),
]
DataOpt = Annotated[
    str,
    typer.Option(
        "--data",
        help="demo, imagefolder:DIR, imagenet:DIR, npz:FILE, cifar10[:DIR] or cifar100[:DIR].",
        rich_help_panel=_WHAT,
    ),
]
NoiseOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--noise",
        help="Noises by commas, with their own grid or the common one: agn,mbn=0:0.5:0.1. [default: agn, or none]",
        rich_help_panel=_WHAT,
    ),
]
SigmaOpt = Annotated[
    str | None,
    typer.Option(
        "--sigma",
        help="Grid of the noises without one: start:stop:step, a list, or a number. [default: 0:1:0.25]",
        rich_help_panel=_WHAT,
    ),
]
PresetOpt = Annotated[
    str | None,
    typer.Option(
        "--preset", help="A named set of noises, grids and range (lnbench list presets).", rich_help_panel=_WHAT
    ),
]
RangeOpt = Annotated[
    str,
    typer.Option("--range", help="Noisy values outside [0, 1]: clip, rescale or none.", rich_help_panel=_WHAT),
]
CorruptionOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--corruption",
        help="Corruptions by commas; all, common (the 15 of mCE) or extra (lnbench list corruptions).",
        rich_help_panel=_WHAT,
    ),
]
SeverityOpt = Annotated[
    str,
    typer.Option("--severity", help="Of corruptions: 1:5, a list, or a number.", rich_help_panel=_WHAT),
]
SuiteOpt = Annotated[
    str | None,
    typer.Option(
        "--suite",
        help="Whose constants: cifar10-c, tiny-imagenet-c, imagenet-c or FILE.yaml. [default: nearest in size]",
        rich_help_panel=_WHAT,
    ),
]
FrostTexturesOpt = Annotated[
    Path | None,
    typer.Option(
        "--frost-textures",
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
        help="Evaluation modes by commas, or all (lnbench list modes). [default: by network]",
        rich_help_panel=_HOW,
    ),
]
GroupSizeOpt = Annotated[
    int | None,
    typer.Option("--group-size", help="M, images that share statistics, for modes without :M.", rich_help_panel=_HOW),
]
ArchOpt = Annotated[
    str | None,
    typer.Option("--arch", help="Architecture, or package.module:factory. [default: recognised]", rich_help_panel=_HOW),
]
NormalizeOpt = Annotated[
    str,
    typer.Option("--normalize", help="auto, imagenet, cifar10, half, none or 'MEAN;STD'.", rich_help_panel=_HOW),
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
    str, typer.Option("--on-bad-image", help="Unreadable images: stop or skip.", rich_help_panel=_HOW)
]
ResizeOpt = Annotated[int | None, typer.Option("--resize", help="Shorter side after resizing.", rich_help_panel=_HOW)]
CropOpt = Annotated[int | None, typer.Option("--crop", help="Side of the centre crop.", rich_help_panel=_HOW)]
InterpolationOpt = Annotated[
    str | None, typer.Option("--interpolation", help="Of resizing. [default: bilinear]", rich_help_panel=_HOW)
]
SeedOpt = Annotated[int, typer.Option("--seed", help="Of everything random.", rich_help_panel=_RUN)]
RepeatsOpt = Annotated[
    int, typer.Option("--repeats", help="Redraws of each random condition's pixels.", rich_help_panel=_RUN)
]
LimitOpt = Annotated[
    int | None,
    typer.Option("--limit", help="Score only the first N images of the shuffled order.", rich_help_panel=_RUN),
]
BatchSizeOpt = Annotated[
    int, typer.Option("--batch-size", help="Images computed at once; changes no number.", rich_help_panel=_RUN)
]
DeviceOpt = Annotated[str, typer.Option("--device", help="auto, cpu, cuda[:i] or mps.", rich_help_panel=_RUN)]
ThreadsOpt = Annotated[int | None, typer.Option("--threads", help="Threads of a forward pass.", rich_help_panel=_RUN)]
WorkersOpt = Annotated[
    int, typer.Option("--workers", help="Processes that evaluate conditions side by side.", rich_help_panel=_RUN)
]
OutOpt = Annotated[
    Path | None,
    typer.Option("--out", help="Run folder. [default: runs/`MODEL`-`DATA`]", rich_help_panel=_OUT),
]
JsonOpt = Annotated[
    bool, typer.Option("--json", help="Print one JSON document to stdout, nothing else.", rich_help_panel=_OUT)
]
QuietOpt = Annotated[bool, typer.Option("--quiet", help="No progress on stderr.", rich_help_panel=_OUT)]
NoPredictionsOpt = Annotated[
    bool,
    typer.Option("--no-predictions", help="Do not keep every image's prediction.", rich_help_panel=_OUT),
]
