"""What is done to images: noises, corruptions, their conditions, and the keyed random numbers behind them."""

from robustbench_ln.corruptions.conditions import (
    NoiseRequest,
    Preset,
    list_presets,
    load_preset,
    parse_grid,
    parse_noises,
    plan_noises,
)
from robustbench_ln.corruptions.degrade import (
    KERNEL_VERSION,
    Ranges,
    add_noise,
    degrade,
    fingerprint,
    to_float,
    to_levels,
)
from robustbench_ln.corruptions.kernels.textures import FrostTextures
from robustbench_ln.corruptions.noise import NOISES, Noise
from robustbench_ln.corruptions.plan import Degradations, plan_degradations
from robustbench_ln.corruptions.published import PublishedPlan, plan_published
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.corruptions.suites import Corruption, Suite, corrupt, list_suites, load_suite, nearest_suite

__all__ = [
    "KERNEL_VERSION",
    "NOISES",
    "Corruption",
    "Degradations",
    "FrostTextures",
    "ImageRng",
    "Noise",
    "NoiseRequest",
    "Preset",
    "PublishedPlan",
    "Ranges",
    "Suite",
    "add_noise",
    "corrupt",
    "degrade",
    "fingerprint",
    "list_presets",
    "list_suites",
    "load_preset",
    "load_suite",
    "nearest_suite",
    "parse_grid",
    "parse_noises",
    "plan_degradations",
    "plan_noises",
    "plan_published",
    "to_float",
    "to_levels",
]
