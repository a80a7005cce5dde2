"""`lnbench reproduce`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_ln.cli.options import (
    BatchSizeOpt,
    ConfigOpt,
    DeviceOpt,
    FrostTexturesOpt,
    JsonOpt,
    LimitOpt,
    NormalizeOpt,
    QuietOpt,
    SeedOpt,
    ThreadsOpt,
    TrustOpt,
    WorkersOpt,
    output_path,
)
from robustbench_ln.cli.process import command_line

if TYPE_CHECKING:
    from robustbench_ln.evaluation import Event
    from robustbench_ln.planning import Plan

_WHAT, _OUT = "What to reproduce", "Output"


def reproduce_command(
    target: Annotated[
        list[str],
        typer.Argument(
            metavar="TARGET",
            help="table1, fig1, fig3, fig5, fig6, fig7a, fig8, groups, cost, imagenet; several, or all.",
        ),
    ],
    scale: Annotated[
        str,
        typer.Option("--scale", metavar="NAME", help="smoke (minutes), small or paper.", rich_help_panel=_WHAT),
    ] = "small",
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A trained network, or the folder of lnbench train, instead of training one. May be repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Images to evaluate: DATA as for eval, or SETTING=DATA. [default: the scale's]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    train_data: Annotated[
        list[str] | None,
        typer.Option(
            "--train-data",
            metavar="DATA",
            help="Images to train on, likewise. [default: the training images of --data]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    noises: Annotated[
        str,
        typer.Option(
            "--noises",
            metavar="FORM",
            help="released, as in the authors' code, or text, as in the paper.",
            rich_help_panel=_WHAT,
        ),
    ] = "released",
    levels: Annotated[
        int | None,
        typer.Option(
            "--levels",
            metavar="N",
            help="At most so many levels of each noise. [default: the scale's]",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    frost_textures: FrostTexturesOpt = None,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    seed: SeedOpt = 0,
    limit: LimitOpt = None,
    batch_size: BatchSizeOpt = 128,
    device: DeviceOpt = "auto",
    threads: ThreadsOpt = None,
    workers: WorkersOpt = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            parser=output_path,
            help="Folder of the pages, the trained networks and the runs. [default: reproduced-`SCALE`]",
            rich_help_panel=_OUT,
        ),
    ] = None,
    json: JsonOpt = False,
    quiet: QuietOpt = False,
    config: ConfigOpt = None,  # noqa: ARG001 - read before the others, as their defaults
) -> None:
    """Rerun the LocalNorm paper's table and figures, beside its numbers.

    Each target becomes a page (HTML and Markdown) with its figure, the paper's numbers and ours with intervals, what
    holds, and what cannot be matched. Interrupt and run again at will: trained networks and finished rows are kept.

    Examples:
    - `lnbench reproduce all --scale smoke`

    - `lnbench reproduce table1 fig6 --model runs/bn --model runs/ln --data cifar10`

    - `lnbench reproduce fig8 --noises text --data cifar10 --limit 1000`

    - `lnbench reproduce table1 --data imagefolder:cifar/test --train-data imagefolder:cifar/train`
    """
    if not quiet:
        print("loading ...", file=sys.stderr, flush=True)
    from robustbench_ln.reproducing import reproduce

    # What a network's own code prints must not stand among the results.
    with redirect_stdout(sys.stderr):
        made = reproduce(
            target,
            scale=scale,
            model=model or (),
            data=data or (),
            train_data=train_data or (),
            noises=noises,
            limit=limit,
            levels=levels,
            frost_textures=frost_textures,
            seed=seed,
            batch_size=batch_size,
            device=device,
            threads=threads,
            workers=workers,
            normalize=normalize,
            trust=trust,
            out=out or Path(f"reproduced-{scale}"),
            command=command_line(),
            say=None if quiet else _say,
            show=_shown(quiet),
        )
    for line in made.left_out:
        print(f"warning: {line}", file=sys.stderr)
    if json:
        typer.echo(made.to_json(), nl=False)
        return
    from tabulate import tabulate

    from robustbench_ln.reproducing.tables import claim_table, number_table

    numbers = [one for result in made.targets for one in result.numbers]
    verdicts = [one for result in made.targets for one in result.verdicts]
    for table, rows in ((number_table(numbers), numbers), (claim_table(verdicts), verdicts)):
        if rows:
            typer.echo(f"{table.title}\n")
            typer.echo(tabulate(table.rows, headers=list(table.columns), tablefmt="simple", disable_numparse=True))
            typer.echo(f"\n{table.note}\n")
    for result in made.targets:
        typer.echo(f"{result.page}  {result.title}")
    if len(made.targets) > 1:
        typer.echo(f"{made.folder / 'index.html'}  all of them")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _shown(quiet: bool) -> Callable[[Plan, Path], AbstractContextManager[Callable[[Event], None]]]:
    @contextmanager
    def show(plan: Plan, folder: Path) -> Iterator[Callable[[Event], None]]:
        from robustbench_ln.cli.progress import Display

        with Display(plan, folder, quiet=quiet) as display:
            yield display.on_event

    return show
