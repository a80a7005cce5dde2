"""Carrying out recipes: networks, measurements, figure, page, one target after the other; all of it resumes."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from robustbench_ln.api import evaluate_plan
from robustbench_ln.benchmarks import bench_norms
from robustbench_ln.data import Dataset, open_dataset
from robustbench_ln.errors import LnbenchError, ResourceError, UsageError
from robustbench_ln.evaluation import Event
from robustbench_ln.files import write_bytes
from robustbench_ln.planning import Plan, check_numbers, plan_run, threads_of
from robustbench_ln.reports.pages import as_html, as_markdown
from robustbench_ln.reports.panels import save
from robustbench_ln.reproducing.drawings import DRAWINGS, Target
from robustbench_ln.reproducing.measuring import Part, Verdict, judge
from robustbench_ln.reproducing.networks import Network, Workshop, read_given, with_data
from robustbench_ln.reproducing.pages import index_page, target_page
from robustbench_ln.reproducing.recipes import (
    Recipe,
    Scale,
    Setting,
    grids_of,
    list_targets,
    load_recipe,
    load_scale,
    preset_of,
)
from robustbench_ln.reproducing.tables import Number, numbers_of

Show = Callable[[Plan, Path], AbstractContextManager[Callable[[Event], None]]]
"""Shows the progress of an evaluation; gives what is called with its events."""


@dataclass(frozen=True, slots=True)
class TargetResult:
    """A target, carried out.

    Attributes:
        name: of the target.
        title: of its page.
        page: its page, HTML; the same as Markdown and the figure as PNG and SVG are beside it.
        numbers: the paper's beside ours.
        verdicts: the paper's claims, judged.
        warnings: what to know before trusting the numbers.
    """

    name: str
    title: str
    page: Path
    numbers: tuple[Number, ...]
    verdicts: tuple[Verdict, ...]
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The target as it stands in ``reproduced.json``."""
        return {
            "target": self.name,
            "title": self.title,
            "page": self.page.name,
            "numbers": [number.to_dict() for number in self.numbers],
            "claims": [
                {
                    "claim": one.claim, "setting": one.setting, "difference": one.difference.value,
                    "ci95": [one.difference.low, one.difference.high], "verdict": one.word,
                }
                for one in self.verdicts
            ],
            "warnings": list(self.warnings),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reproduction:
    """Everything that was reproduced.

    Attributes:
        scale: on what scale.
        folder: where the pages are.
        targets: what was carried out.
        left_out: targets and settings that were not, and why.
    """

    scale: str
    folder: Path
    targets: tuple[TargetResult, ...]
    left_out: tuple[str, ...]

    def to_json(self) -> str:
        """The content of ``reproduced.json``."""
        document = {
            "schema_version": 1, "scale": self.scale, "targets": [one.to_dict() for one in self.targets],
            "left_out": list(self.left_out),
        }  # fmt: skip
        return json.dumps(document, indent=1, allow_nan=False) + "\n"


def reproduce(
    target: str | Iterable[str] = "all",
    *,
    scale: str = "small",
    model: str | Sequence[str] = (),
    data: str | Sequence[str] = (),
    train_data: str | Sequence[str] = (),
    noises: str = "released",
    limit: int | None = None,
    levels: int | None = None,
    frost_textures: str | Path | None = None,
    seed: int = 0,
    batch_size: int = 128,
    device: str = "auto",
    threads: int | None = None,
    workers: int = 0,
    normalize: str = "auto",
    trust: bool = False,
    out: str | Path = "reproduced",
    command: str = "",
    say: Callable[[str], None] | None = None,
    show: Show | None = None,
) -> Reproduction:
    """Rerun tables and figures of the LocalNorm paper, and set the paper's numbers beside what comes out.

    Networks that are not given are trained, and what is not measured is measured, in folders that resume: the same
    call again goes on where it stopped, and pages of another target find the rows they share.

    Args:
        target: names of :func:`list_targets`, or ``all``.
        scale: ``smoke`` (minutes, shows that it works), ``small`` or ``paper``.
        model: trained networks, as of :func:`robustbench_ln.evaluate`, or folders of trainings, which stand for their
            last epoch. The first BatchNorm and the first LocalNorm network are used; two group sizes or more are what
            ``groups`` compares.
        data: images to evaluate, ``DATA`` or ``SETTING=DATA``; the scale's own when left out.
        train_data: images to train on, likewise; the training split of `data` when left out.
        noises: ``released`` as in the authors' code, or ``text`` as in the paper.
        limit: images scored; the scale's own when left out.
        levels: levels of each noise at most, picked out of its grid; the scale's own when left out.
        frost_textures: folder of the original frost textures.
        seed: of everything random.
        batch_size: images computed at once in evaluations; changes no number.
        device: as of :func:`robustbench_ln.evaluate`.
        threads: likewise.
        workers: likewise.
        normalize: likewise.
        trust: allow model files that can run code when read.
        out: folder of the pages, and below it ``networks/`` and ``runs/``.
        command: the command line to record.
        say: told of what is done.
        show: shows the progress of an evaluation.

    Raises:
        UsageError: a name or number that is none, images that the user has to name, a folder of other settings.
        InputError: a model or data set that cannot be used.
        ResourceError: the folder cannot be written, a download is forbidden or fails.
        TrustError: the data changed during the run, or a training broke down.
    """
    names = _targets(target)
    recipes = [load_recipe(name) for name in names]
    chosen = load_scale(scale)
    check_numbers(seed=seed, limit=limit, levels=levels, batch_size=batch_size, workers=workers)
    if levels is not None:
        chosen = replace(chosen, levels=levels)
    presets = {recipe.name: preset_of(recipe, noises) for recipe in recipes}
    folder = Path(out)
    if folder.exists() and not folder.is_dir():
        raise UsageError("--out must be a folder", found=f"a file at {folder}", hint="another --out")
    folder.mkdir(parents=True, exist_ok=True)
    with threads_of(threads):
        given = read_given(_listed(model), trust=trust)
        settings, left_out = with_data(chosen, _listed(data), _listed(train_data), given)
        run = _Run(
            scale=chosen,
            folder=folder,
            given=given,
            limit=chosen.limit if limit is None else limit,
            training={"seed": seed, "device": device, "threads": threads},
            evaluation={
                "seed": seed, "batch_size": batch_size, "device": device, "normalize": normalize, "trust": trust,
            },
            workers=workers,
            command=command,
            frost_textures=frost_textures,
            say=say or (lambda _: None),
            show=show or (lambda _plan, _folder: nullcontext(lambda _event: None)),
        )  # fmt: skip
        done: list[TargetResult] = []
        for recipe in recipes:
            try:
                done.append(run.carry_out(recipe, presets[recipe.name], _settings_of(recipe, chosen, settings)))
            except LnbenchError as error:
                # One target that cannot be had must not take the others along; by itself it is the error.
                if len(recipes) == 1:
                    raise
                left_out.append(f"{recipe.name} is left out: {error.what} ({error.found})")
                run.say(left_out[-1])
    if not done:
        raise ResourceError("no target could be carried out", found="; ".join(left_out), hint="each target by itself")
    made = Reproduction(scale, folder, tuple(done), tuple(left_out))
    if len(recipes) > 1:
        page = index_page(made.targets, chosen, left_out)
        write_bytes(folder / "index.md", as_markdown(page).encode())
        write_bytes(folder / "index.html", as_html(page).encode())
    write_bytes(folder / "reproduced.json", made.to_json().encode())
    return made


def _listed(value: str | Sequence[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _targets(target: str | Iterable[str]) -> list[str]:
    names = [name.strip() for text in ([target] if isinstance(target, str) else target) for name in text.split(",")]
    chosen = dict.fromkeys(one for name in names for one in (list_targets() if name == "all" else [name]))
    if not chosen:
        raise UsageError("no target was named", hint=f"all, or of {', '.join(list_targets())}")
    return list(chosen)


def _settings_of(recipe: Recipe, scale: Scale, settings: Sequence[Setting]) -> list[Setting]:
    """The settings that stand for the recipe's; on a scale that has none of them, all that there are.

    Raises:
        UsageError: the scale has them, but there are no images for them.
    """

    def fit(among: Sequence[Setting]) -> list[Setting]:
        return [one for one in among if one.paper in (*recipe.settings, *recipe.beyond)]

    lacking = [f"{one.name} needs {one.needs}" for one in fit(scale.settings) if one.needs]
    if not fit(settings) and lacking:
        raise UsageError(
            f"there are no images for {recipe.name}", found="; ".join(lacking), hint="--data, or a smaller --scale"
        )
    return fit(settings) or list(settings)


@dataclass(frozen=True, slots=True)
class _Run:
    """What all targets of a call share."""

    scale: Scale
    folder: Path
    given: tuple[Network, ...]
    limit: int | None
    training: dict[str, Any]
    evaluation: dict[str, Any]
    workers: int
    command: str
    frost_textures: str | Path | None
    say: Callable[[str], None]
    show: Show
    shops: dict[str, Workshop] = field(default_factory=dict)

    def carry_out(self, recipe: Recipe, preset: str, settings: Sequence[Setting]) -> TargetResult:
        """Networks, measurements, figure and page of one target."""
        self.say(f"{recipe.name}: {recipe.title}")
        grids, range_policy = grids_of(preset, self.scale.levels)
        parts = [self._part(recipe, setting, grids, range_policy) for setting in settings]
        target = Target(
            recipe=recipe,
            parts=parts,
            grids=grids,
            range=range_policy,
            seed=self.evaluation["seed"],
            datasets={setting.name: _opened(setting.data) for setting in settings} if grids else {},
            times=bench_norms(**self.scale.cost, all_cores=False)["rows"] if recipe.drawing == "cost" else [],
        )
        figure = save(DRAWINGS[recipe.drawing](target), self.folder / recipe.name)[0]
        verdicts = tuple(judge(recipe, parts))
        numbers = tuple(numbers_of(target))
        page = target_page(target, self.scale, figure, numbers, verdicts)
        write_bytes(self.folder / f"{recipe.name}.md", as_markdown(page).encode())
        html = self.folder / f"{recipe.name}.html"
        write_bytes(html, as_html(page).encode())
        return TargetResult(recipe.name, recipe.title, html, numbers, verdicts, tuple(page.warnings))

    def _part(self, recipe: Recipe, setting: Setting, grids: Mapping[str, Sequence[float]], range_policy: str) -> Part:
        shop = self.shops.setdefault(setting.name, Workshop(setting, self.folder, self.given, self.training, self.say))
        networks = [network for role in recipe.networks for network in shop.networks(role)]
        if not recipe.modes:
            return Part(setting, {network.model: network for network in networks})
        what: dict[str, Any] = {}
        if grids:
            what["noise"] = [f"{name}={','.join(map(str, levels))}" for name, levels in grids.items()]
            what["range"] = range_policy
        if recipe.corruption:
            what |= {"corruption": recipe.corruption, "severity": self.scale.severity}
            what["frost_textures"] = self.frost_textures
        plan = plan_run(
            [network.model for network in networks], setting.data, modes=list(recipe.modes), limit=self.limit,
            **what, **self.evaluation,
        )  # fmt: skip
        plan = plan if what else plan.only_clean()
        folder = self.folder / "runs" / setting.name
        with self.show(plan, folder) as on_event:
            results = evaluate_plan(plan, out=folder, workers=self.workers, on_event=on_event, command=self.command)
        ids = {one.info.id: network for one, network in zip(plan.models, networks, strict=True)}
        wanted = {
            (one.info.id, cut.mode.name, condition)
            for one in plan.models
            for cut in one.schedules
            for condition in plan.conditions
        }
        rows = [row for row in results.document.rows if (row.model, row.mode, row.condition.to_condition()) in wanted]
        return Part(setting, ids, results, tuple(rows))


@functools.cache
def _opened(data: str) -> Dataset:
    return open_dataset(data)
