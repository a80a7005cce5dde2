"""The log of a training as pictures: learning curves, and what becomes of gamma and beta (figure 5 of the paper)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from robustbench_ln.files import writing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DPI = 150
_SETTINGS: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_TRAIN, _HELD_OUT, _RATE = "#0072b2", "#d55e00", "#7f7f7f"  # Okabe & Ito: told apart with every colour blindness
Log = Sequence[Mapping[str, Any]]


def save_curves(log: Log, folder: Path) -> None:
    """Write ``curves.png`` and, for a network with norm layers that learn, ``parameters.png``.

    Raises:
        ResourceError: they cannot be written.
    """
    import matplotlib

    figures = {"curves.png": learning_curves, "parameters.png": norm_curves}
    with matplotlib.rc_context(_SETTINGS):
        for name, draw in figures.items():
            if name == "parameters.png" and not log[-1]["norms"]:
                continue
            with writing(folder / name) as file:
                draw(log).savefig(file, format="png", dpi=_DPI, metadata={"Software": None})


def learning_curves(log: Log) -> Figure:
    """Loss, accuracy and learning rate over epochs, of training and of the held-out images."""
    figure, panels = _panels(1, 3)
    epochs = [record["epoch"] for record in log]
    for axes, title, kinds in zip(
        panels[0],
        ("loss (nats)", "accuracy (%)", "learning rate"),
        (("loss", "eval_loss"), ("accuracy", "eval_accuracy"), ("learning_rate",)),
        strict=True,
    ):
        factor = 100 if title.startswith("accuracy") else 1
        for kind in kinds:
            values = [record[kind] for record in log]
            if None in values:
                continue
            held_out = kind.startswith("eval")
            color = _RATE if kind == "learning_rate" else _HELD_OUT if held_out else _TRAIN
            label = "held out" if held_out else "training"
            axes.plot(epochs, [factor * value for value in values], "o-", ms=3, color=color, label=label)
        _name(axes, title)
    best = [record for record in log if record["best"] and record["eval_accuracy"] is not None]
    if best:
        panels[0][1].plot(best[-1]["epoch"], 100 * best[-1]["eval_accuracy"], "*", ms=11, color=_HELD_OUT, label="best")
    for axes in panels[0][:2]:
        axes.legend(frameon=False)
    return figure


def norm_curves(log: Log) -> Figure:
    """Mean and variance of gamma and beta over epochs, a line a group: over all channels of all layers."""
    figure, panels = _panels(2, 2)
    epochs = [record["epoch"] for record in log]
    for line_of_panels, kind, symbol in zip(panels, ("weight", "bias"), ("gamma", "beta"), strict=True):
        over_layers = np.array([_over_layers(record["norms"], kind) for record in log])  # (epochs, 2, K)
        for axes, statistic, place in zip(line_of_panels, ("mean", "variance"), (0, 1), strict=True):
            for k, group in enumerate(over_layers[:, place].T):
                axes.plot(epochs, group, "o-", ms=3, lw=1, label=f"group {k + 1}")
            _name(axes, f"{statistic} of {symbol}")
    if 1 < over_layers.shape[2] <= 16:
        handles, labels = panels[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _over_layers(norms: Mapping[str, Mapping[str, Mapping[str, list[float]]]], kind: str) -> Any:
    """``(2, K)``: mean and variance over the channels of all layers, each layer with the same weight."""
    layers = [layer[kind] for layer in norms.values() if kind in layer]
    means = np.array([layer["mean"] for layer in layers])
    variances = np.array([layer["var"] for layer in layers])
    return np.array([means.mean(0), variances.mean(0) + means.var(0)])


def _panels(rows: int, columns: int) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _name(axes: Axes, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10, fontweight="bold")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
