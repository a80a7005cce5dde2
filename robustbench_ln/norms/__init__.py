"""Normalisation: LocalNorm layers, conversion, and the evaluation modes."""

from robustbench_ln.norms.convert import (
    NORMS,
    Norm,
    convert_norms,
    convert_to_localnorm,
    norm_kind,
    norm_layers,
    replace_norms,
)
from robustbench_ln.norms.layer import Layout, LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d, normalise
from robustbench_ln.norms.modes import EVAL_MODES, EvalMode, NetworkNorms, Schedule, choose_modes, parse_mode, schedule
from robustbench_ln.norms.predict import frozen_state, using
from robustbench_ln.norms.switchable import SwitchableNorm2d

__all__ = [
    "EVAL_MODES",
    "NORMS",
    "EvalMode",
    "Layout",
    "LocalNorm",
    "LocalNorm1d",
    "LocalNorm2d",
    "LocalNorm3d",
    "NetworkNorms",
    "Norm",
    "Schedule",
    "SwitchableNorm2d",
    "choose_modes",
    "convert_norms",
    "convert_to_localnorm",
    "frozen_state",
    "norm_kind",
    "norm_layers",
    "normalise",
    "parse_mode",
    "replace_norms",
    "schedule",
    "using",
]
