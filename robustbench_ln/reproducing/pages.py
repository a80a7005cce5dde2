"""What stands on the page of a target, and on the page of all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from robustbench_ln.reports.pages import Page, Section
from robustbench_ln.reports.tables import facts
from robustbench_ln.reproducing.drawings import Target
from robustbench_ln.reproducing.measuring import FAILS, HOLDS, OPEN, Verdict
from robustbench_ln.reproducing.recipes import PAPER_SETTINGS, Scale
from robustbench_ln.reproducing.tables import Number, claim_table, measured_tables, number_table

if TYPE_CHECKING:
    from robustbench_ln.reproducing.running import TargetResult

_PAPER = "Yin, Scholte & Bohté, LocalNorm, ICANN 2021 (doi 10.1007/978-3-030-86380-7_20)"


def target_page(
    target: Target, scale: Scale, figure: Path, numbers: Sequence[Number], verdicts: Sequence[Verdict]
) -> Page:
    """The page of a target: the figure, the paper's numbers beside ours, its claims, and what cannot be matched."""
    recipe = target.recipe
    sections = [Section("The figure", figure=figure, alt=f"{recipe.title}: {recipe.about}")]
    if numbers:
        sections.append(Section("Beside the paper", tables=[number_table(numbers)]))
    if verdicts:
        text = [] if scale.name != "smoke" else ["On this scale verdicts show that they are reckoned, not what holds."]
        sections.append(Section("Does it hold", text=text, tables=[claim_table(verdicts)]))
    tables = list(measured_tables(target))
    if tables:
        sections.append(Section("All that was measured", tables=tables))
    sections.append(Section("What cannot be matched", points=[*_stand_ins(target, scale), *recipe.unmatched]))
    warnings = dict.fromkeys(
        warning for part in target.parts if part.results is not None for warning in part.results.warnings
        # Each network runs the modes that it can; which ones is in the tables.
        if " skipped: " not in warning
    )  # fmt: skip
    return Page(
        recipe.title,
        recipe.about,
        warnings=list(warnings),
        sections=sections,
        facts=[("paper", _PAPER), ("scale", f"{scale.name}: {scale.about}"), *_facts(target)],
    )


def _stand_ins(target: Target, scale: Scale) -> list[str]:
    said = []
    for part in target.parts:
        setting = part.setting
        own = "; ".join(PAPER_SETTINGS[one] for one in target.recipe.settings)
        if scale.name != "paper" or setting.paper not in target.recipe.settings:
            said.append(f"The paper's networks and images are {own}; here it is {setting.network}.")
        n = part.rows[0].n if part.rows else None
        if n is not None and part.results is not None and n < part.results.document.data.n:
            said.append(f"{n:,} of {part.results.document.data.n:,} images were scored.")
    return said


def _facts(target: Target) -> list[tuple[str, str]]:
    found = []
    for part in target.parts:
        found += [(network.name, network.origin) for network in part.networks.values()]
        if part.results is not None:
            found += facts(part.summary)
    return list(dict.fromkeys(found))


def index_page(targets: Sequence[TargetResult], scale: Scale, left_out: Sequence[str]) -> Page:
    """The page of all targets: what holds, and where to look."""
    verdicts = [one for target in targets for one in target.verdicts]
    counts = {word: sum(one.word == word for one in verdicts) for word in (HOLDS, FAILS, OPEN)}
    words = ", ".join(f"{count} {word}" for word, count in counts.items())
    numbers = [one for target in targets for one in target.numbers]
    sections = []
    if verdicts:
        sections.append(Section(f"Claims: {words}", tables=[claim_table(verdicts)]))
    if numbers:
        sections.append(Section("Numbers", tables=[number_table(numbers)]))
    if left_out:
        sections.append(Section("Left out", points=left_out))
    return Page(
        "The LocalNorm paper, rerun",
        f"Scale {scale.name}: {scale.about}.",
        warnings=list(dict.fromkeys(warning for target in targets for warning in target.warnings)),
        sections=sections,
        facts=[("paper", _PAPER)],
        links=[(one.title, one.name) for one in targets],
    )
