"""`lnbench inspect`."""

from __future__ import annotations

import json as json_module
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from robustbench_ln.cli.options import ArchOpt, DebugOpt, EmaOpt, JsonOpt, NormalizeOpt, TrustOpt
from robustbench_ln.errors import UsageError

if TYPE_CHECKING:
    from rich.tree import Tree


def inspect_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="As --model of lnbench eval.")],
    arch: ArchOpt = None,
    normalize: NormalizeOpt = "auto",
    trust: TrustOpt = False,
    ema: EmaOpt = None,
    tree: Annotated[bool, typer.Option("--tree", help="Draw the whole tree of modules, not only its top.")] = False,
    probe: Annotated[
        Path | None,
        typer.Option("--probe", metavar="FILE", help="float32 .npy (N, C, H, W) in [0, 1] to run the network on."),
    ] = None,
    logits: Annotated[
        Path | None, typer.Option("--logits", metavar="FILE", help="Where the probe's logits go, as JSON.")
    ] = None,
    json: JsonOpt = False,
    debug: DebugOpt = False,  # noqa: ARG001 - its callback acts
) -> None:
    """Say what a model file is: container, architecture, norm layers, the modes it can run, preprocessing.

    Norm layers are marked in the tree of modules, and blocks that repeat are drawn once.

    Examples:
    - `lnbench inspect ckpt.pt`

    - `lnbench inspect demo:ln --json`

    - `lnbench inspect ckpt.pt --ema --tree`

    - `lnbench inspect ckpt.pt --normalize cifar10 --probe images.npy --logits logits.json`
    """
    if (probe is None) != (logits is None):
        raise UsageError(
            "--probe and --logits go together", found="one of them", hint="--probe X.npy --logits OUT.json"
        )
    from robustbench_ln.inspection import inspect_model, probe_logits
    from robustbench_ln.models import load_model

    with redirect_stdout(sys.stderr):  # what a network's own code prints
        loaded = load_model(model, arch=arch, trust=trust, ema=ema)
        facts = inspect_model(loaded, normalize=normalize)
        if probe is not None and logits is not None:
            probe_logits(loaded, probe, logits, normalize=normalize)
    if json:
        typer.echo(json_module.dumps(facts, indent=1, allow_nan=False))
    else:
        _show(facts, whole_tree=tree)


def _show(facts: dict[str, Any], *, whole_tree: bool) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table.grid(padding=(0, 2))
    for key, value in facts.items():
        if key not in _ELSEWHERE and value not in (None, "", [], False):
            for i, line in enumerate(value if key == "warnings" else [value]):
                assumed = " (assumed)" * (key == "group_size" and facts["group_size_assumed"])
                table.add_row("" if i else _LABELS.get(key, key.replace("_", " ")), Text(_words(line) + assumed))
    console.print(table)
    # The top of the tree that fits on a screen together with the facts.
    depths = [99] if whole_tree else [2, 1]
    lines = [(depth, _count(facts["tree"], depth)) for depth in depths]
    depth = next((depth for depth, n in lines if n <= _SCREEN), depths[-1])
    console.print()
    console.print(_drawn(facts["tree"], depth))


_SCREEN = 24  # lines of tree
_ELSEWHERE = ("tree", "group_size_assumed")
_LABELS = {
    "source_sha256": "converted from",
    "arch": "architecture",
    "recognised": "recognised by",
    "num_classes": "classes",
    "norm": "kind of norm",
    "n_groups": "K (groups)",
    "prefixes": "prefixes taken off",
    "copy": "copy taken",
    "averaged": "averaged weights",
    "precision": "precision in the file",
    "not_built": "objects not built",
    "preprocessing": "said by",  # mean and std stand above it
}


def _words(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {each}" for key, each in value.items())
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "yes" if value is True else str(value)


def _count(node: dict[str, Any], depth: int) -> int:
    return 1 + sum(_count(child, depth - 1) for child in node["children"] if depth)


def _drawn(node: dict[str, Any], depth: int) -> Tree:
    from rich.text import Text
    from rich.tree import Tree

    label = Text(f"{node['name']} " if node["name"] else "")
    label.append(f"{node['repeat']} x " if node["repeat"] > 1 else "")
    label.append(f"{node['type']} {node['detail']}".strip(), style="bold yellow" if node["norm"] else "")
    if node["norm"]:
        label.append("  [norm]", style="bold yellow")
    elif node["children"] and node["parameters"]:
        label.append(f"  {node['parameters']:,} parameters, {node['norm_layers']} norm layers", style="dim")
    tree = Tree(label, guide_style="dim")
    for child in node["children"] if depth else []:
        tree.children.append(_drawn(child, depth - 1))
    return tree
