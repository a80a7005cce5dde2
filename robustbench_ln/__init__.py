"""lnbench: how robust image classifiers are, under noise, corruptions and every normalisation mode.

>>> from robustbench_ln import evaluate
>>> results = evaluate("demo:ln", noise="agn", sigma="0:1:0.5", limit=100)
>>> results.accuracy("ln-batch", "agn", 0.5)  # doctest: +SKIP
0.78
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustbench_ln._version import __version__
    from robustbench_ln.api import evaluate
    from robustbench_ln.converting import Conversion, convert
    from robustbench_ln.corruptions import corrupt
    from robustbench_ln.data import ArrayDataset, Dataset, open_dataset
    from robustbench_ln.errors import LnbenchError
    from robustbench_ln.models import Classifier, load_model, save_model
    from robustbench_ln.norms import (
        EVAL_MODES,
        EvalMode,
        LocalNorm1d,
        LocalNorm2d,
        LocalNorm3d,
        convert_norms,
        convert_to_localnorm,
    )
    from robustbench_ln.reports import report
    from robustbench_ln.results import Results, load_results
    from robustbench_ln.training import TrainingRun, train
    from robustbench_ln.types import Condition, ResultRow

# Names are imported when they are first used: `lnbench --help` must not wait for torch.
_HOMES = {
    "__version__": "_version",
    "evaluate": "api",
    "Conversion": "converting",
    "convert": "converting",
    "corrupt": "corruptions",
    "ArrayDataset": "data",
    "Dataset": "data",
    "open_dataset": "data",
    "LnbenchError": "errors",
    "Classifier": "models",
    "load_model": "models",
    "save_model": "models",
    "EVAL_MODES": "norms",
    "EvalMode": "norms",
    "LocalNorm1d": "norms",
    "LocalNorm2d": "norms",
    "LocalNorm3d": "norms",
    "convert_norms": "norms",
    "convert_to_localnorm": "norms",
    "report": "reports",
    "Results": "results",
    "load_results": "results",
    "TrainingRun": "training",
    "train": "training",
    "Condition": "types",
    "ResultRow": "types",
}

__all__ = [
    "EVAL_MODES",
    "ArrayDataset",
    "Classifier",
    "Condition",
    "Conversion",
    "Dataset",
    "EvalMode",
    "LnbenchError",
    "LocalNorm1d",
    "LocalNorm2d",
    "LocalNorm3d",
    "ResultRow",
    "Results",
    "TrainingRun",
    "__version__",
    "convert",
    "convert_norms",
    "convert_to_localnorm",
    "corrupt",
    "evaluate",
    "load_model",
    "load_results",
    "open_dataset",
    "report",
    "save_model",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
