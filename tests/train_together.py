"""Started by `torchrun` in each process: trains what the tests compare with one process.

python -m torch.distributed.run --nproc-per-node 2 -m tests.train_together OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from robustbench_ln.training import TrainingRun, plan_training, processes, train_plan
from tests.conftest import toy_data

CASES: dict[str, dict[str, object]] = {
    "ln fp64": {"norm": "ln", "groups": 4, "precision": "fp64"},
    "ln fp32": {"norm": "ln", "groups": 4, "epochs": 1, "batch_size": 64},
    "ln adamw": {"norm": "ln", "groups": 4, "precision": "fp64", "optimizer": "adamw", "learning_rate": 1e-3},
    "bn fp64": {"norm": "bn", "precision": "fp64"},
    "switchnorm fp64": {"norm": "switchnorm", "precision": "fp64"},
    "groupnorm fp64": {"norm": "groupnorm", "groups": 4, "precision": "fp64"},
}


def train_all(out: Path, names: list[str], stop_after: int | None = None) -> dict[str, TrainingRun]:
    """Train the cases into folders of their names: 5 epochs of 4 steps where nothing else is said."""
    torch.set_num_threads(1)
    runs = {}
    with processes("cpu") as among:
        for name in names:
            settings = {"epochs": 5, "batch_size": 16, "learning_rate": 0.05, **CASES[name]}
            data = toy_data(64, size=16)
            plan = plan_training(data=data, arch="demo-net", eval_data=toy_data(24), among=among, **settings)
            steps = iter(range(1, 1000))
            runs[name] = train_plan(plan, out / name, among=among, stop=lambda steps=steps: next(steps) == stop_after)
    return runs


if __name__ == "__main__":
    train_all(Path(sys.argv[1]), sys.argv[3:], int(sys.argv[2]) or None)
