"""The records of a run: its work, and what comes of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from robustbench_ln.norms.modes import Schedule
from robustbench_ln.planning import Plan, PlannedModel
from robustbench_ln.results import Cell
from robustbench_ln.types import Condition, ResultRow


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run is.

    Attributes:
        condition: at work, or just finished.
        modes: names of the modes being predicted.
        images: how many image predictions are newly done, all models and modes counted; rows that were finished
            before count as well.
    """

    condition: Condition
    modes: tuple[str, ...]
    images: int


@dataclass(frozen=True, slots=True)
class Finish:
    """A row is done, or a part of one.

    Attributes:
        key: of the row; of a part, the row's with a dash and the place where the part begins.
        cell: what was counted.
        replaces: keys of the parts that the row was made of.
    """

    key: str
    cell: Cell
    replaces: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Failure:
    """A row could not be found: what is known of it, with the reason in ``extra``."""

    row: ResultRow


Event = Progress | Finish | Failure


@dataclass(frozen=True, slots=True)
class Task:
    """One row to be found: a model under a mode, and the row's key."""

    model: PlannedModel
    condition: Condition
    mode: Schedule
    key: str


@dataclass(frozen=True, slots=True)
class Job:
    """The smallest piece of work: rows of one condition over one block of the visiting order.

    It names all there is to know beside the plan, so any engine can carry out any jobs in any order, and twice.

    Attributes:
        condition: its place among the plan's.
        first: where in the order its images begin.
        size: how many they are.
        keys: of the rows, or of the parts of rows, to be found.
    """

    condition: int
    first: int
    size: int
    keys: frozenset[str]


Outcome = tuple[Job, "list[Finish] | str"]
"""A job with what it gave, or with the reason why it failed."""


class Executor(Protocol):
    """Where jobs are carried out."""

    def outcomes(self, plan: Plan, jobs: Sequence[Job]) -> Iterator[Outcome | Progress]:
        """Carry out every job, in any order."""
