"""`lnbench bench`: speed, measured side by side, and how often the gate errs."""

from __future__ import annotations

import json as json_module
import sys
from typing import Annotated, Any

import typer

from robustbench_ln.cli.commands import Command, Commands
from robustbench_ln.cli.options import BatchSizeOpt, JsonOpt, QuietOpt
from robustbench_ln.errors import UsageError

bench_app = typer.Typer(
    cls=Commands,
    help="Measure speed, side by side on one thread, and how often the gate errs.",
    no_args_is_help=True,
)


RepeatsOpt = Annotated[int, typer.Option("--repeats", metavar="N", help="Measurements of each; the median counts.")]
ThreadsOpt = Annotated[int, typer.Option("--threads", metavar="N", help="Of torch; with 1 all is pinned to one core.")]


@bench_app.callback()
def _bench() -> None:
    """Measure speed, side by side on one thread, and how often the gate errs."""


@bench_app.command("corruptions", cls=Command)
def bench_corruptions_command(
    size: Annotated[
        str, typer.Option("--size", metavar="LIST", help="Height and width of the images, by commas.")
    ] = "32,64,224",
    corruption: Annotated[
        str | None, typer.Option("--corruption", metavar="NAME", help="Names by commas. [default: all]")
    ] = None,
    severity: Annotated[int, typer.Option("--severity", metavar="N", help="1 to 5.")] = 3,
    repeats: RepeatsOpt = 3,
    threads: ThreadsOpt = 1,
    peer: Annotated[
        str,
        typer.Option(
            "--peer",
            metavar="PEER",
            help="none; install (imagecorruptions from PyPI, in its own environment); or that environment's Python.",
        ),
    ] = "none",
    share: Annotated[
        bool, typer.Option("--share/--no-share", help="Also what share of a sweep goes into corrupting.")
    ] = True,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """Images a second of every corruption, their geometric mean, and the share of a sweep that goes into corrupting.

    Examples:
    - `lnbench bench corruptions`

    - `lnbench bench corruptions --peer install --size 32,224`

    - `lnbench bench corruptions --corruption glass_blur --size 224 --json`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.benchmarks import bench_corruptions

    try:
        sizes = [int(one) for one in size.split(",")]
    except ValueError:
        raise UsageError("--size is a list of numbers", found=size, hint="--size 32,64,224") from None
    document = bench_corruptions(
        sizes=sizes,
        corruption=corruption.split(",") if corruption else None,
        severity=severity,
        repeats=repeats,
        threads=threads,
        peer=peer,
        share=share,
        on_row=None if quiet else _say,
    )
    if json:
        typer.echo(json_module.dumps(document, indent=1, allow_nan=False))
    else:
        _show(document)


@bench_app.command("norms", cls=Command)
def bench_norms_command(
    network: Annotated[
        str | None, typer.Option("--network", metavar="NAME", help="resnet20 or resnet50. [default: both]")
    ] = None,
    norm: Annotated[
        str | None,
        typer.Option(
            "--norm", metavar="LIST", help="Beside BatchNorm, by commas. [default: all but dynbn, which trains as bn]"
        ),
    ] = None,
    repeats: RepeatsOpt = 5,
    threads: ThreadsOpt = 1,
    all_cores: Annotated[
        bool, typer.Option("--all-cores/--no-all-cores", help="Training steps also with a thread for every core.")
    ] = True,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """What each normalisation costs beside BatchNorm: a training step, and predictions under every evaluation mode.

    In the paper's settings: ResNet-20 on 128 images of 32 px in 8 groups, ResNet-50 on 16 of 224 px in 4. All are
    measured in turn in one run; predictions of one image and of a batch.

    Examples:
    - `lnbench bench norms`

    - `lnbench bench norms --network resnet20 --norm ln --repeats 9`

    - `lnbench bench norms --json --quiet`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.benchmarks import bench_norms

    named = {"network": network, "norm": norm}
    document = bench_norms(
        **{name: text.split(",") for name, text in named.items() if text},
        repeats=repeats,
        threads=threads,
        all_cores=all_cores,
        on_row=None if quiet else _say_norm,
    )
    if json:
        typer.echo(json_module.dumps(document, indent=1, allow_nan=False))
    else:
        _show_norms(document)


@bench_app.command("gate", cls=Command)
def bench_gate_command(
    times: Annotated[
        int, typer.Option("--times", metavar="N", help="Simulated comparisons of each situation.")
    ] = 2_000,
    images: Annotated[int, typer.Option("--images", metavar="N", help="Of each comparison.")] = 10_000,
    alpha: Annotated[float, typer.Option("--alpha", metavar="P", help="Level of the tests.")] = 0.01,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """How often the gate errs and what it finds, on simulated comparisons whose truth is known.

    Examples:
    - `lnbench bench gate`

    - `lnbench bench gate --times 200 --json`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.benchmarks import bench_gate

    document = bench_gate(times=times, n=images, alpha=alpha, on_row=None if quiet else _say_situation)
    if json:
        typer.echo(json_module.dumps(document, indent=1, allow_nan=False))
    else:
        _show_situations(document)


@bench_app.command("sweep", cls=Command)
def bench_sweep_command(
    network: Annotated[
        str, typer.Option("--network", metavar="LIST", help="Networks by commas.")
    ] = "resnet20,mobilenet_v3_small,resnet20-ln",
    images: Annotated[int, typer.Option("--images", metavar="N", help="Of the data set.")] = 256,
    batch_size: BatchSizeOpt = 128,
    threads: Annotated[
        int, typer.Option("--threads", metavar="N", help="Of torch; with 1 all is pinned to one core.")
    ] = 1,
    workers: Annotated[
        int, typer.Option("--workers", metavar="N", help="Processes to compare with a single one; 1 for none.")
    ] = 2,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> None:
    """A sweep over all corruptions and severities, beside the plain forward passes of the same network in the same run.

    Examples:
    - `lnbench bench sweep`

    - `lnbench bench sweep --network resnet20 --images 1024 --json`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.benchmarks import bench_sweep

    document = bench_sweep(
        network=network.split(","),
        images=images,
        batch_size=batch_size,
        threads=threads,
        workers=workers,
        on_row=None if quiet else _say_sweep,
    )
    if json:
        typer.echo(json_module.dumps(document, indent=1, allow_nan=False))
    else:
        _show_sweeps(document)


def _say_sweep(row: dict[str, Any]) -> None:
    print(f"{row['network']}, {row['mode']}: {row['seconds']:.0f} s", file=sys.stderr, flush=True)


def _show_sweeps(document: dict[str, Any]) -> None:
    from tabulate import tabulate

    lines = [
        [
            f"{row['network']} ({row['norm']})",
            row["size"],
            row["mode"],
            row["workers"] or "",
            row.get("passes", ""),
            f"{row['images_per_second']:.0f}",
            f"{row['forward_images_per_second']:.0f}" if "ratio" in row else "",
            f"{row['ratio']:.2f}" if "ratio" in row else "",
            f"{row['speedup']:.2f}" if "speedup" in row else "",
        ]
        for row in document["rows"]
    ]
    headers = ["network", "px", "mode", "workers", "passes", "images/s", "plain forward/s", "ratio", "of one worker"]
    typer.echo(tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True))
    pinned = ", pinned to one core" if document["pinned"] else ""
    typer.echo(
        "\nratio: time of the sweep over that of its plain forward passes, so many an image as the mode makes.\n"
        f"{document['machine']['processor']}, {document['threads']} threads{pinned}"
    )


def _say_situation(row: dict[str, Any]) -> None:
    print(f"{row['what']}: {row.get('seconds', 0):.0f} s", file=sys.stderr, flush=True)


def _show_situations(document: dict[str, Any]) -> None:
    from tabulate import tabulate

    *situations, coverage = document["rows"]
    lines = [
        [
            row["what"],
            *(f"{100 * row[key]:g}" for key in ("max_drop", "drop", "disagreement")),
            *(f"{100 * row['fixed'][key]:.2f}" for key in ("fail", "pass")),
            *(f"{100 * row['sequential'][key]:.2f}" for key in ("fail", "pass", "images")),
        ]
        for row in situations
    ]
    headers = ["situation", "max drop", "drop", "differ", "fail", "kept", "seq. fail", "seq. kept", "images used"]
    typer.echo(tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True))
    typer.echo(
        f"\nAll in %, of {document['times']} comparisons of {document['n']} images each (ten times as many where the "
        f"gate is not sequential), alpha {document['alpha']:g}.\nfail: shown to drop more than allowed; kept: "
        f"shown to drop less; seq.: the sequential gate, looking after every {document['batch']} images.\n"
        f"95 % bootstrap intervals of mCE hold the truth in {100 * coverage['coverage']:.1f} %."
    )


def _say_norm(row: dict[str, Any]) -> None:
    what = f"{row['network']}  {row['norm']:<12} {row['mode'] or 'training step':<20} {row['images']:>3} images"
    print(f"{what}  {row['seconds']:>8.4f} s", file=sys.stderr, flush=True)


def _show_norms(document: dict[str, Any]) -> None:
    from tabulate import tabulate

    def times(row: dict[str, Any]) -> list[str]:
        live = f"{row['ratio_dynbn']:.2f}" if row["ratio_dynbn"] else ""
        return [str(row["images"]), f"{1e3 * row['seconds']:.1f}", f"{row['ratio']:.2f}", live]

    everywhere = document["all_cores"] or {"rows": []}
    for network in dict.fromkeys(row["network"] for row in document["rows"]):
        mine = [row for row in document["rows"] if row["network"] == network]
        lines = [[row["norm"], row["mode"] or "training step", *times(row)] for row in mine]
        lines += [
            [row["norm"], f"training step, {everywhere['threads']} threads", *times(row)]
            for row in everywhere["rows"]
            if row["network"] == network
        ]
        headers = [network, "", "images", "ms", "/ bn", "/ dynbn-batch"]
        typer.echo(tabulate(lines, headers=headers, tablefmt="plain", disable_numparse=True) + "\n")
    pinned = ", pinned to one core, processor time" if document["pinned"] else ""
    typer.echo(f"{document['machine']['processor']}, {document['threads']} threads{pinned}; medians")


def _say(row: dict[str, Any]) -> None:
    print(f"{row['size']:>4} px  {row['corruption']:<18} {row['images_per_second']:>9.0f} images/s", file=sys.stderr)


def _show(document: dict[str, Any]) -> None:
    from tabulate import tabulate

    def line(row: dict[str, Any]) -> list[Any]:
        ours, peer = row["images_per_second"], row["peer"] and row["peer"]["images_per_second"]
        return [
            row["size"],
            row["corruption"],
            f"{ours:.0f}",
            f"{peer:.0f}" if peer else "",
            f"{ours / peer:.1f}" if peer else "",
        ]

    named = next((row["peer"]["name"] for row in document["rows"] if row["peer"]), "peer")
    lines = [line(row) for row in document["rows"]]
    for mean in document["geometric_means"]:
        peer = mean["peer_images_per_second"]
        lines.append(
            [
                mean["size"],
                f"geometric mean of {mean['corruptions']}" + (f" (ratio of {mean['compared']})" if peer else ""),
                f"{mean['images_per_second']:.0f}",
                f"{peer:.0f}" if peer else "",
                f"{mean['ratio']:.1f}" if peer else "",
            ]
        )
    typer.echo(
        tabulate(
            lines, headers=["px", "corruption", "images/s", named, "ratio"], tablefmt="plain", disable_numparse=True
        )
    )
    for sweep in document["sweeps"]:
        forward, corrupting = sweep["forward_images_per_second"], sweep["corrupting_images_per_second"]
        typer.echo(
            f"\n{sweep['network']} at {sweep['size']} px, over all corruptions and severities: {corrupting:.0f} "
            f"images/s corrupted, {forward:.0f} images/s predicted: "
            f"{100 * sweep['share']:.1f} % of a sweep goes into corrupting"
        )
    pinned = ", pinned to one core" if document["pinned"] else ""
    typer.echo(f"\n{document['machine']['processor']}, {document['threads']} threads{pinned}; medians")
