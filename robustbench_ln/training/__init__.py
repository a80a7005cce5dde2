"""Training a classifier, from scratch or from a checkpoint, with BatchNorm, LocalNorm or another norm."""

from robustbench_ln.training.loop import Epoch, Progress
from robustbench_ln.training.planning import TrainingPlan, plan_training
from robustbench_ln.training.processes import Processes, processes
from robustbench_ln.training.run import TrainingRun, train, train_plan

__all__ = [
    "Epoch",
    "Processes",
    "Progress",
    "TrainingPlan",
    "TrainingRun",
    "plan_training",
    "processes",
    "train",
    "train_plan",
]
