"""`lnbench list`."""

from __future__ import annotations

import json as json_module
import shutil
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from robustbench_ln.cli.options import DebugOpt, JsonOpt
from robustbench_ln.errors import unknown_name

if TYPE_CHECKING:
    from robustbench_ln.corruptions import Corruption

_ROOM = 20  # columns that a text needs beside its names; with fewer it goes below them
_KINDS = ("modes", "noises", "ranges", "presets", "corruptions", "suites", "data", "architectures", "norms")
Rows = list[dict[str, str]]


def list_command(
    kind: Annotated[str, typer.Argument(help=f"One of {', '.join(_KINDS)}; all of them when left out.")] = "",
    json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001 - its callback acts
) -> None:
    """List what can be named: modes, noises, ranges, presets, corruptions, suites, data sets, architectures, norms.

    Examples:
    - `lnbench list modes`

    - `lnbench list presets --json`
    """
    if kind and kind not in _KINDS:
        raise unknown_name("list", kind, _KINDS)
    tables = {name: _rows(name) for name in ([kind] if kind else _KINDS)}
    if json:
        typer.echo(json_module.dumps(tables, indent=1))
        return
    from tabulate import MIN_PADDING, tabulate

    width = min(shutil.get_terminal_size().columns, 120)
    for name, rows in tables.items():
        if not kind:
            typer.echo(f"{name}\n")
        # The last column is text and takes what the names before it leave of the line.
        *names, last = rows[0]
        room = width - sum(max(len(name) + MIN_PADDING, *(len(row[name]) for row in rows)) + 2 for name in names)
        fit = partial(wrap, width=room if room >= _ROOM else width - 4, break_on_hyphens=False)
        if room >= _ROOM:
            wrapped = [row | {last: "\n".join(fit(row[last]))} for row in rows]
            typer.echo(tabulate(wrapped, headers="keys", tablefmt="plain"))
        else:
            for row in rows:
                typer.echo("\n    ".join(["  ".join(row[name] for name in names), *fit(row[last])]))
        if not kind:
            typer.echo("")


def _rows(kind: str) -> Rows:
    """The rows of one table."""
    if kind == "modes":
        from robustbench_ln.norms import EVAL_MODES

        return [{"mode": mode.name, "what it does": mode.description} for mode in EVAL_MODES.values()]
    if kind == "noises":
        from robustbench_ln.corruptions import NOISES

        return [{"noise": noise.name, "what it does": f"{noise.formula} ({noise.source})"} for noise in NOISES.values()]
    if kind == "presets":
        from robustbench_ln.corruptions import list_presets, load_preset

        return [{"preset": name, "what it does": load_preset(name).description} for name in list_presets()]
    if kind == "corruptions":
        from robustbench_ln.corruptions import list_suites, load_suite

        suites = {name: load_suite(name) for name in list_suites()}
        names = dict.fromkeys(name for suite in suites.values() for name in suite.corruptions)
        return [
            _corruption_row(name, [suite[name] for suite in suites.values() if name in suite.corruptions])
            for name in names
        ]
    if kind == "suites":
        from robustbench_ln.corruptions import list_suites, load_suite

        loaded = [load_suite(name) for name in list_suites()]
        return [
            {"suite": one.name, "what it is": f"{one.description}, {len(one.corruptions)} corruptions"}
            for one in loaded
        ]
    if kind == "data":
        from robustbench_ln.data import DATASETS

        return [{"data": name, "what it is": _first_line(opener.__doc__)} for name, opener in DATASETS.items()]
    if kind == "architectures":
        from robustbench_ln.models import ARCHITECTURES

        return [{"architecture": name, "what it is": one.description} for name, one in ARCHITECTURES.items()]
    if kind == "norms":
        from robustbench_ln.norms import NORMS

        return [{"norm": name, "what it is": one.description} for name, one in NORMS.items()]
    from robustbench_ln.types import RANGES

    return [{"range": name, "what it does": text} for name, text in RANGES.items()]


def _corruption_row(name: str, found: list[Corruption]) -> dict[str, str]:
    one = found[0]
    traits = ["counts for mCE" if not one.extra else "extra", "random" if one.is_random else "deterministic"]
    return {"corruption": name, "family": one.family, "what it is": f"{', '.join(traits)}: {one.summary}"}


def _first_line(text: str | None) -> str:
    return (text or "").strip().split("\n")[0]
