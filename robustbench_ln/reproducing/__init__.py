"""Rerunning the LocalNorm paper: its table and figures as recipes, beside its numbers."""

from robustbench_ln.reproducing.recipes import list_scales, list_targets, load_recipe
from robustbench_ln.reproducing.running import Reproduction, TargetResult, reproduce

__all__ = ["Reproduction", "TargetResult", "list_scales", "list_targets", "load_recipe", "reproduce"]
