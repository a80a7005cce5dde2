"""Models: from a file or a name to a network in eval(), with its architecture and preprocessing known."""

from robustbench_ln.models.architectures import ARCHITECTURES
from robustbench_ln.models.checkpoint import Checkpoint, model_bytes, save_model
from robustbench_ln.models.classifier import Classifier
from robustbench_ln.models.dialects import DIALECTS
from robustbench_ln.models.loaded import Geometry, LoadedModel, state_sha256
from robustbench_ln.models.loading import SOURCES, build_network, load_model, recorded_name, wrap_module
from robustbench_ln.models.preprocessing import (
    PREPROCESSINGS,
    Choice,
    Preprocessing,
    choose_preprocessing,
    doubt,
    parse_normalize,
)
from robustbench_ln.models.reading import read_checkpoint

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
    "model_bytes",
    "parse_normalize",
    "read_checkpoint",
    "recorded_name",
    "save_model",
    "state_sha256",
    "wrap_module",
]
