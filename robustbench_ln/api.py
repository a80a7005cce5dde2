"""The main job as one call: plan, evaluate what is missing, keep it, hand it back."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import torch

from robustbench_ln import evaluation
from robustbench_ln._version import __version__
from robustbench_ln.errors import IncompleteError, UsageError
from robustbench_ln.evaluation import Event, Failure, Finish, choose_engine, fit_batch, parse_time, within
from robustbench_ln.files import as_utf8
from robustbench_ln.metrics.accuracy import chance_bound, near_chance, wilson
from robustbench_ln.planning import Plan, check_numbers, plan_run, stratified_order, threads_of
from robustbench_ln.reports import csv, summarise
from robustbench_ln.results import (
    FolderRun,
    Results,
    Run,
    RunInfo,
    Scored,
    collect,
    open_run,
    read_manifest,
    save,
    write_bytes,
)
from robustbench_ln.types import ResultRow

if TYPE_CHECKING:
    from torch import nn

    from robustbench_ln.data import Dataset

# Modes whose clean accuracy stands for the network's own: native, or equal to it.
_OWN_MODES = ("native", "bn", "ln-batch")


def evaluate(
    model: str | nn.Module | Sequence[str | nn.Module],
    data: str | Dataset = "demo",
    *,
    clean: str | Dataset | None = None,
    noise: str | Iterable[str] | None = None,
    sigma: str | float | Sequence[float] | None = None,
    preset: str | None = None,
    range: str | None = None,
    corruption: str | Iterable[str] | None = None,
    severity: str | int | Sequence[int] | None = None,
    suite: str | None = None,
    frost_textures: str | Path | None = None,
    jpeg_parity: bool = False,
    modes: str | Iterable[str] | None = None,
    group_size: int | None = None,
    repeats: int = 1,
    seed: int = 0,
    limit: int | None = None,
    budget: str | None = None,
    batch_size: int | Literal["auto"] = 128,
    device: str = "auto",
    precision: str = "fp32",
    compile: bool = False,
    threads: int | None = None,
    workers: int = 0,
    engine: str = "local",
    shard: str | None = None,
    fail_fast: bool = False,
    timeout: float | None = None,
    arch: str | None = None,
    normalize: str = "auto",
    trust: bool = False,
    ema: bool | None = None,
    on_bad_image: str = "stop",
    resize: int | None = None,
    crop: int | None = None,
    interpolation: str | None = None,
    ci_width: float | None = None,
    predictions: bool = True,
    out: str | Path | None = None,
    on_event: Callable[[Event], None] | None = None,
) -> Results:
    """Measure accuracy under noise and corruption, for every evaluation mode, on the same degraded images.

    Args:
        model: what ``--model`` takes (a file, ``demo:bn``, ``torchvision:resnet18``, ``timm:resnet18``,
            ``python:package.module:factory``), a module that returns logits, or several of them.
        data: what ``--data`` takes (``demo``, ``cifar10``, ``imagefolder:DIR``, ``imagenet:DIR``, ``npz:FILE``, or with
            published corruptions ``cifar10c:DIR``, ``cifar100c:DIR``, ``imagenetc:DIR``), or a data set.
        clean: the clean images beside published corruptions; without them there are no clean rows.
        noise: names with or without a grid (``"agn,mbn=0:0.5:0.1"``); ``agn`` when no corruption is named either.
        sigma: grid of the noises without one (``"0:3:0.25"``, a number, or numbers).
        preset: a named set of noises, grids and range policy instead.
        range: what happens to noisy values outside [0, 1]: ``clip`` (when left out), ``rescale`` or ``none``.
        corruption: names of the suite, ``all``, ``common`` (the 15 of mCE) or ``extra``.
        severity: of corruptions, each 1 to 5 (``"1:5"``, which is taken when left out, ``"1,3,5"``, a number, or
            numbers).
        suite: whose constants (``cifar10-c``, or a YAML file); the one nearest in size when left out.
        frost_textures: folder with the original frost textures; else an installed package's, else procedural ones.
        jpeg_parity: send corrupted images through JPEG of quality 85, as the files of ImageNet-C were.
        modes: names, or ``all``; the network's default modes when left out.
        group_size: M, images that share statistics, for batch modes that name none.
        repeats: how often the pixels of each random condition are redrawn.
        seed: of everything random, at least 0.
        limit: score only the first images of the shuffled order.
        budget: a time (``"10min"``) into which the run must fit: as many images, class by class, as that takes.
        batch_size: images computed at once, or ``"auto"`` for what fits into memory; changes no number.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; several by commas share the conditions.
        precision: of forward passes: ``fp32``, ``bf16`` or ``fp16``.
        compile: compile networks whose statistics are frozen; changes no number.
        threads: threads of a forward pass; changes no number.
        workers: processes that evaluate conditions side by side; changes no number.
        engine: what carries out the work: ``local``, ``ray[:ADDRESS]`` or ``slurm[:local]``; changes no number.
        shard: ``i/n``: do only the i-th of n parts of the work; :func:`merge` puts them together.
        fail_fast: stop at the first row that fails; otherwise the others go on, and failed rows say why.
        timeout: seconds that a condition (of very large data: a block of its images) may take before its rows fail.
        arch: architecture of a checkpoint, where it is not to be recognised.
        normalize: ``auto``, ``imagenet``, ``cifar10``, ``half``, ``none`` or ``MEAN;STD``.
        trust: allow files that can run code when read.
        ema: of files with two copies of the weights take the averaged one, or (False) the plain one.
        on_bad_image: ``stop``, or ``skip`` to leave unreadable images out.
        resize: shorter side after resizing, in pixels.
        crop: side of the centre crop, in pixels.
        interpolation: of resizing.
        ci_width: end a row early once its anytime-valid 95 % interval is that narrow, a fraction.
        predictions: keep every image's predicted class and top probability.
        out: run folder; finished rows found there are not evaluated again. None keeps everything in memory.
        on_event: called with every :class:`~robustbench_ln.evaluation.Event`, for progress.

    Returns: all rows of the run (of the folder, where there is one).

    Raises:
        UsageError: a name or number that is none, a mode no model can run, a folder of other settings.
        InputError: a model or data set that cannot be used.
        ResourceError: the folder cannot be written, a download is forbidden or fails.
        TrustError: the data changed during the run.
    """
    check_numbers(workers=workers)
    with threads_of(threads):
        plan = plan_run(
            model,
            data,
            clean=clean,
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
            batch_size=128 if batch_size == "auto" else batch_size,
            device=device,
            precision=precision,
            compile=compile,
            arch=arch,
            normalize=normalize,
            trust=trust,
            ema=ema,
            on_bad_image=on_bad_image,
            resize=resize,
            crop=crop,
            interpolation=interpolation,
            ci_width=ci_width,
            predictions=predictions,
            timeout=timeout,
        )
        if batch_size == "auto":
            plan = fit_batch(plan)
        if budget is not None:
            plan = within_budget(plan, budget, out)
        return evaluate_plan(
            plan, out=out, workers=workers, engine=engine, shard=shard, fail_fast=fail_fast, on_event=on_event
        )


def evaluate_plan(
    plan: Plan,
    *,
    out: str | Path | None = None,
    workers: int = 0,
    engine: str = "local",
    shard: str | None = None,
    fail_fast: bool = False,
    on_event: Callable[[Event], None] | None = None,
    command: str = "",
) -> Results:
    """Carry out a plan; see :func:`evaluate`. However it ends, what is finished is saved.

    Args:
        plan: from :func:`~robustbench_ln.planning.plan_run`.
        out: run folder; None keeps everything in memory.
        workers: processes that evaluate conditions side by side.
        engine: what carries out the work.
        shard: ``i/n``, the part of the work to do.
        fail_fast: stop at the first row that fails.
        on_event: called with every event.
        command: the command line to record.

    Raises:
        UsageError: no such engine or shard, or a folder of other settings.
        IncompleteError: a row failed, and `fail_fast` was asked for.
    """
    part = parse_shard(shard)
    if shard is not None:
        plan = replace(plan, manifest=replace(plan.manifest, shards=(shard,)))
    folder = Path(out) if out is not None else None
    with ExitStack() as closing:
        exchange = folder / "engine" if folder else Path(closing.enter_context(TemporaryDirectory(prefix="lnbench-")))
        executor = choose_engine(engine, workers=workers, devices=plan.devices, folder=exchange)
        run = closing.enter_context(open_run(folder, plan.manifest))
        failed: list[ResultRow] = []
        try:
            for event in evaluation.run(plan, run.get, executor=executor, shard=part):
                if isinstance(event, Finish):
                    run.append(event.key, event.cell)
                    run.drop(event.replaces)
                elif isinstance(event, Failure):
                    failed.append(event.row)
                if on_event is not None:
                    on_event(event)
                if failed and fail_fast:
                    row = failed[0]
                    raise IncompleteError(
                        "a row failed", found=f"{row.model}, {row.mode}, {row.condition}: {row.extra['reason']}"
                    )
        finally:
            # An interrupt passes through here: the documents then hold the rows that are done.
            results = _collect(plan, run, command, failed)
            if isinstance(run, FolderRun):
                if len(results):
                    write_everything(run, results)
                elif shard is not None:
                    save(run, results)  # parts of rows only; `merge` wants to know how they were made
        return results


def within_budget(plan: Plan, budget: str, out: str | Path | None) -> Plan:
    """The plan for as many images as a time allows, with a warning that says what that does to intervals.

    Args:
        plan: of whole data.
        budget: ``90s``, ``10min`` or ``2h``.
        out: run folder. One that a budget was spent in before decides how many images there are.

    Raises:
        UsageError: not a time, or one that is too short for an image of each class.
    """
    seconds = parse_time(budget)
    record = Path(out) / "run.json" if out is not None else None
    chosen = plan.reordered(stratified_order(plan.order, plan.dataset.labels))
    before = read_manifest(record) if record is not None and record.exists() else None
    if before is not None and before.order_sha256 == chosen.manifest.order_sha256:
        chosen = chosen.limited(before.limit or plan.limit)
    else:
        chosen = within(plan, seconds)
    if chosen.limit == plan.limit:
        return plan
    low, high = wilson(chosen.limit // 2, chosen.limit)
    note = (
        f"--budget: {chosen.limit:,} of {len(plan.dataset):,} images, of every class its share; 95 % intervals of "
        f"accuracies are up to {50 * (high - low):.1f} points either way"
    )
    manifest = replace(chosen.manifest, warnings=(*chosen.manifest.warnings, note))
    return replace(chosen, manifest=manifest)


def parse_shard(text: str | None) -> tuple[int, int]:
    """``i/n`` as two numbers; (1, 1) for None.

    Raises:
        UsageError: not two numbers, or i outside 1 to n.
    """
    if text is None:
        return 1, 1
    parts = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    i, n = (int(part) for part in parts.groups()) if parts else (0, 0)
    if not 1 <= i <= n:
        raise UsageError("--shard is not a part of a whole", found=text, hint="--shard 1/4 to --shard 4/4")
    return i, n


def _collect(plan: Plan, run: Run, command: str, failed: Sequence[ResultRow] = ()) -> Results:
    order = plan.order[: plan.limit].numpy()
    places = order.argsort()
    rows = [cell.row for _, cell in run.cells()]
    info = RunInfo(
        lnbench_version=__version__,
        created=run.manifest.created,
        command=as_utf8(command),
        seed=plan.seed,
        limit=plan.manifest.limit,
        precision=plan.manifest.precision,
        torch=torch.__version__,
        device=plan.device,
        threads=torch.get_num_threads(),
        batch_size=plan.batch_size,
        order_sha256=plan.manifest.order_sha256,
        warnings=[*run.manifest.warnings, *_doubts(run, rows)],
        shards=list(run.manifest.shards),
        ci_width=plan.manifest.ci_width,
    )
    return collect(run, info, Scored(order[places], plan.dataset.labels[order[places]], places), failed)


def _doubts(run: Run, rows: list[ResultRow]) -> list[str]:
    """What the numbers themselves give reason to say: accuracies near chance, logits that are not finite."""
    doubts = []
    classes = run.manifest.data.classes
    for model in run.manifest.models:
        mine = [row for row in rows if row.model == model.id]
        clean = {row.mode: row for row in mine if row.condition.kind == "clean"}
        own = next((clean[mode] for mode in _OWN_MODES if mode in clean), None)
        own = own or max(clean.values(), key=lambda row: row.accuracy, default=None)
        if own is not None and near_chance(own.counts.correct, own.counts.n, classes):
            n = own.counts.n
            few = f"of {n} image{'s' if n > 1 else ''} cannot be told from chance"
            doubts.append(
                f"{model.id}: clean accuracy {100 * own.accuracy:.1f} % ({own.mode}) "
                f"{'is near chance' if own.accuracy < chance_bound(classes) else few} ({100 / classes:.1f} %): "
                "wrong preprocessing, label order or checkpoint?"
            )
        lost = sum(row.extra.get("non_finite", 0) for row in mine)
        if lost:
            doubts.append(f"{model.id}: {lost} predictions had logits that are not finite and count as wrong")
    return doubts


def write_everything(run: FolderRun, results: Results) -> None:
    """Write the documents of a run folder: results, predictions, CSV and curves."""
    from robustbench_ln.reports.plots import save_plots

    save(run, results)
    summary = summarise(results.document, results.hits)
    write_bytes(run.folder / "results.csv", csv.render(summary).encode())
    save_plots(summary, run.folder)
