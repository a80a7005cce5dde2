"""Normalisation: LocalNorm layers, conversion, and the evaluation modes."""

from robustbench_ln.norms.convert import convert_to_localnorm, norm_kind, norm_layers
from robustbench_ln.norms.layer import Layout, LocalNorm, LocalNorm1d, LocalNorm2d, LocalNorm3d, normalise
from robustbench_ln.norms.modes import EVAL_MODES, EvalMode, NetworkNorms, choose_modes, parse_mode, schedule
from robustbench_ln.norms.predict import frozen_state, using

__all__ = [
    "EVAL_MODES",
    "EvalMode",
    "Layout",
    "LocalNorm",
    "LocalNorm1d",
    "LocalNorm2d",
    "LocalNorm3d",
    "NetworkNorms",
    "choose_modes",
    "convert_to_localnorm",
    "frozen_state",
    "norm_kind",
    "norm_layers",
    "normalise",
    "parse_mode",
    "schedule",
    "using",
]
