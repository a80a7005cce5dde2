"""Models: from a file or a name to a network in eval(), with its architecture and preprocessing known."""

from robustbench_ln.models.architectures import ARCHITECTURES
from robustbench_ln.models.checkpoint import DIALECTS, Checkpoint, read_checkpoint, save_model
from robustbench_ln.models.classifier import Classifier
from robustbench_ln.models.loading import (
    SOURCES,
    Geometry,
    LoadedModel,
    build_network,
    load_model,
    state_sha256,
    wrap_module,
)
from robustbench_ln.models.preprocessing import (
    PREPROCESSINGS,
    Choice,
    Preprocessing,
    choose_preprocessing,
    doubt,
    parse_normalize,
)

__all__ = [
    "ARCHITECTURES",
    "DIALECTS",
    "PREPROCESSINGS",
    "SOURCES",
    "Checkpoint",
    "Choice",
    "Classifier",
    "Geometry",
    "LoadedModel",
    "Preprocessing",
    "build_network",
    "choose_preprocessing",
    "doubt",
    "load_model",
    "parse_normalize",
    "read_checkpoint",
    "save_model",
    "state_sha256",
    "wrap_module",
]
