"""What is done to images: noises, their conditions, and the keyed random numbers behind them."""

from robustbench_ln.corruptions.conditions import (
    NoiseRequest,
    Preset,
    list_presets,
    load_preset,
    parse_grid,
    parse_noises,
    plan_conditions,
)
from robustbench_ln.corruptions.degrade import KERNEL_VERSION, Ranges, add_noise, degrade, fingerprint, to_float
from robustbench_ln.corruptions.noise import NOISES, Noise
from robustbench_ln.corruptions.rng import ImageRng

__all__ = [
    "KERNEL_VERSION",
    "NOISES",
    "ImageRng",
    "Noise",
    "NoiseRequest",
    "Preset",
    "Ranges",
    "add_noise",
    "degrade",
    "fingerprint",
    "list_presets",
    "load_preset",
    "parse_grid",
    "parse_noises",
    "plan_conditions",
    "to_float",
]
