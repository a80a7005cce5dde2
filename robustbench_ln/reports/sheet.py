"""The mCE sheet: what stands on a line of it, and the words that every format uses for its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from robustbench_ln.metrics.mce import STANDARD, ErrorTable, Estimate, Scores
from robustbench_ln.reports.details import Flips, Reliability

NO_NORMALISER = "none"


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the sheet: a model under a mode.

    Attributes:
        model: id of the model.
        label: the id without its digest, where that still tells the models apart.
        mode: evaluation mode.
        suite: whose corruptions; empty where there are none.
        clean: clean error.
        table: errors by corruption and severity.
        scores: what they come to.
        pixels: ``published`` or ``regenerated``.
        frost: ``original`` or ``procedural``; None where frost was not run.
        origin: whose figures these are, where we did not measure them; empty otherwise.
        file: where figures of others were read.
        stated_mean: mean corruption error as the origin states it, where it gives no cells.
        calibration: of clean images, and of all degraded ones together; empty where counts are not known.
        flips: which images are lost under degradation; None where predictions were not kept.
    """

    model: str
    label: str
    mode: str
    suite: str
    clean: Estimate | None
    table: ErrorTable
    scores: Scores
    pixels: str
    frost: str | None
    origin: str = ""
    file: str = ""
    stated_mean: float | None = None
    calibration: tuple[Reliability, ...] = ()
    flips: Flips | None = None

    @property
    def name(self) -> str:
        """Model and mode, or the model and who measured it, for the head of a column."""
        return f"{self.label}, {self.origin or self.mode}"

    @property
    def qualifier(self) -> str:
        """What must be said beside mCE: `` (regenerated)``, `` (regenerated, own frost)``, or nothing."""
        if self.pixels == "published":
            return ""
        return " (regenerated, own frost)" if self.frost == "procedural" else " (regenerated)"

    @property
    def mean(self) -> Estimate | None:
        """Mean corruption error, not normalised: over the complete corruptions, or as the origin states it."""
        if self.scores.mean_error is None and self.stated_mean is not None:
            return Estimate(self.stated_mean)
        return self.scores.mean_error

    @property
    def n_corruptions(self) -> int:
        """How many of the 15 the mean is over."""
        return len(STANDARD) if self.is_whole else len(self.scores.complete)

    @property
    def is_whole(self) -> bool:
        """Whether the mean is over all 15."""
        return len(self.scores.complete) == len(STANDARD) or self.stated_mean is not None


@dataclass(frozen=True, slots=True)
class Sheet:
    """The lines of the sheet, and what errors were divided by.

    Attributes:
        entries: in the order of the inputs.
        normaliser: ``alexnet``, ``none``, or the results file that was named.
        asked: whether the user named the normaliser: mCE that is missing then is an incomplete report.
    """

    entries: tuple[Entry, ...]
    normaliser: str
    asked: bool

    @property
    def is_normalised(self) -> bool:
        """Whether there is anything to divide by."""
        return self.normaliser != NO_NORMALISER

    @property
    def normaliser_words(self) -> str:
        """The normaliser, for a reader."""
        if self.normaliser == "alexnet":
            return "AlexNet's published errors on ImageNet-C"
        return f"errors of {self.normaliser}" if self.is_normalised else "none"

    @property
    def ranks(self) -> list[tuple[str, list[Entry]]]:
        """The entries by what may be ranked together: published pixels, regenerated ones, those with our own frost.

        Returns: (qualifier, entries by rising mCE, or by mean error where there is no mCE; the incomplete ones last).
        """
        kinds = dict.fromkeys(entry.qualifier for entry in self.with_corruptions)
        return [
            (kind, sorted((e for e in self.with_corruptions if e.qualifier == kind), key=_headline))
            for kind in sorted(kinds)
        ]

    @property
    def with_corruptions(self) -> list[Entry]:
        """The entries that have a corruption."""
        return [entry for entry in self.entries if entry.table.errors or entry.stated_mean is not None]

    @property
    def corruptions(self) -> list[str]:
        """Every corruption of any entry, the 15 first and in the field's order."""
        return ordered(name for entry in self.entries for name in entry.table.errors)

    @property
    def withheld(self) -> list[Entry]:
        """The entries without mCE although the user asked for it."""
        return [e for e in self.entries if self.asked and self.is_normalised and e.scores.mce is None]


NO_SHEET = Sheet((), NO_NORMALISER, asked=False)


def ordered(names: Iterable[str]) -> list[str]:
    """Corruptions without duplicates, the 15 first and in the field's order, others as they come."""
    found = dict.fromkeys(names)
    return [*(name for name in STANDARD if name in found), *(name for name in found if name not in STANDARD)]


def mean_words(entry: Entry) -> str:
    """What the mean of an entry is over."""
    return "" if entry.is_whole else f"mean over {entry.n_corruptions} of {len(STANDARD)}"


def _headline(entry: Entry) -> tuple[bool, float]:
    best = entry.scores.mce or entry.mean
    return not entry.is_whole, best.value if best else 1.0
