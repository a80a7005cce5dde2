"""What a data set is and what is wrong with it: everything that can be said without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from robustbench_ln.corruptions.published import members, set_of
from robustbench_ln.corruptions.suites import SEVERITIES
from robustbench_ln.data import Dataset, Published, names_published, open_dataset, open_published
from robustbench_ln.data.checksums import ARCHIVES, FILES, PUBLISHED_IMAGES, md5
from robustbench_ln.data.imagefiles import listing, reading
from robustbench_ln.errors import InputError, LnbenchError, UsageError

Level = Literal["bad", "incomplete", "note"]
OnStep = Callable[[str], None]
"""Called with what is looked at."""

_SAMPLE = 64  # images that show what all are like
_ALIKE = 0.5  # correlation of an image with its mildest corruption; other images stay far below, the same far above
_ARCHIVES = r"\.(tar|tgz|zip|tar\.\w+)"
_UNFINISHED = r"\.(part|partial|crdownload|download|aria2|tmp|filepart)"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to know about a data set.

    Attributes:
        level: ``bad`` is refused by an evaluation, or makes its numbers wrong; ``incomplete`` lacks something; all else
            is a ``note``.
        what: in a line.
        found: what there is.
        hint: what to do.
    """

    level: Level
    what: str
    found: str = ""
    hint: str = ""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What :func:`check_data` finds; empty where the data set cannot be opened.

    Attributes:
        data: the text that names it.
        images: number of images; of published corruptions, in each condition.
        classes: number of classes.
        class_counts: images of the smallest and of the largest class.
        image_size: height and width.
        geometry: how images were brought to that size.
        pixels: ``clean``, ``published`` or ``regenerated``.
        mean: mean of each channel over a sample, in [0, 1].
        sha256: the data set's identity in results.
        conditions: severities of each published corruption.
        checksums: how many files are the published ones, byte for byte; None where no checksums are known.
        findings: what to know, the worst first.
    """

    data: str
    images: int = 0
    classes: int = 0
    class_counts: tuple[int, int] = (0, 0)
    image_size: tuple[int, int] = (0, 0)
    geometry: str = ""
    pixels: str = ""
    mean: tuple[float, ...] = ()
    sha256: str = ""
    conditions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    checksums: int | None = None
    findings: tuple[Finding, ...] = ()

    @property
    def verdict(self) -> Literal["fine", "bad", "incomplete"]:
        """The worst of the findings; notes are fine."""
        levels = {finding.level for finding in self.findings}
        return "bad" if "bad" in levels else "incomplete" if "incomplete" in levels else "fine"

    def to_dict(self) -> dict[str, Any]:
        """As ``lnbench check-data --json`` prints it."""
        return {"schema_version": 1, "verdict": self.verdict, **asdict(self)}


def check_data(data: str, *, clean: str | None = None, on_step: OnStep | None = None) -> DataReport:
    """Go through a data set from end to end.

    Args:
        data: what ``--data`` takes.
        clean: the clean images beside published corruptions.
        on_step: called with what is looked at.

    Raises:
        UsageError: a kind that is none, or `clean` beside data that are clean themselves.
        ResourceError: no permission, or a download that failed or is forbidden.
    """
    step = on_step or (lambda _: None)
    step("images")
    if not names_published(data):
        if clean is not None:
            raise UsageError("--clean goes with published corruptions", found=data, hint="--data cifar10c:DIR")
        try:
            dataset = open_dataset(data)
        except InputError as error:
            return DataReport(data, findings=(_bad(error),))
        return _described(data, dataset, [Finding("note", warning) for warning in dataset.warnings])
    findings: list[Finding] = []
    published = None
    try:
        published = open_published(data, clean=None if clean is None else open_dataset(clean))
    except InputError as error:
        findings.append(_bad(error))
    folder = published.folder if published else Path(data.partition(":")[2]).expanduser()
    with reading():
        findings += _remains(folder, step)
        if published is None:
            return DataReport(data, findings=_sorted(findings))
        checksums = _checksums(published, findings, step)
    findings += [Finding("note", warning) for warning in published.warnings if warning not in _told(published)]
    findings += [_bad(problem) for problem in published.problems]
    findings += _versions(published, step)
    findings += _missing(published)
    return _described(data, published, findings, checksums)


def _described(data: str, dataset: Dataset, findings: list[Finding], checksums: int | None = None) -> DataReport:
    counts = np.bincount(dataset.labels, minlength=len(dataset.classes))
    present = counts[counts > 0]
    sample = np.linspace(0, len(dataset) - 1, min(_SAMPLE, len(dataset))).astype(np.int64)
    pixels = dataset.read(sample).float()
    if pixels.max() <= 1:
        findings.append(
            Finding("bad", "images are all but black", f"no value above 1 in {len(sample)} images", "values 0 to 255")
        )
    if len(present) < len(counts):
        findings.append(Finding("note", f"{len(counts) - len(present)} of {len(counts)} classes have no image"))
    return DataReport(
        data,
        images=len(dataset),
        classes=len(dataset.classes),
        class_counts=(int(present.min()), int(present.max())),
        image_size=dataset.image_size,
        geometry=dataset.geometry,
        pixels=dataset.origin.pixels if isinstance(dataset, Published) else "clean",
        mean=tuple(round(value / 255, 4) for value in pixels.mean((0, 2, 3)).tolist()),
        sha256=dataset.sha256,
        conditions=dataset.found if isinstance(dataset, Published) else {},
        checksums=checksums,
        findings=_sorted(findings),
    )


def _bad(error: LnbenchError) -> Finding:
    return Finding("bad", error.what, error.found, error.hint)


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    """Without duplicates (a file that cannot be read is found once a severity), the worst first."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda one: ("bad", "incomplete", "note").index(one.level)))


def _told(published: Published) -> list[str]:
    """Warnings that say what the findings say in more words."""
    return [f"{problem.what}: {problem.found}" for problem in published.problems]


# Published sets


def _versions(published: Published, step: OnStep) -> Iterator[Finding]:
    """Whatever keeps a condition from being evaluated."""
    sample = np.linspace(0, len(published) - 1, min(_SAMPLE, len(published))).astype(np.int64)
    for corruption, severities in published.found.items():
        for severity in severities:
            step(f"{corruption} {severity}")
            try:
                images = published.version(corruption, severity).read(sample)
            except LnbenchError as error:
                yield _bad(error)
                continue
            if images.max() <= 1:
                yield Finding("bad", f"{corruption} {severity} is all but black", f"{len(sample)} images looked at")
    if published.clean is not None:
        with suppress(LnbenchError):  # found above
            alike = _likeness(published, sample)
            if alike < _ALIKE:
                yield Finding(
                    "bad",
                    "the corrupted images do not look like the clean ones",
                    f"a median correlation of {alike:.2f} between {published.clean.source!r} and "
                    f"{published.mildest[0]} {published.mildest[1]}",
                    "the test set that was corrupted, in its order (Tiny-ImageNet-C has none that is public)",
                )


def _likeness(published: Published, sample: np.ndarray[Any, np.dtype[np.int64]]) -> float:
    """Median correlation of clean images with the same images under the mildest condition."""
    pairs = [published.read(sample), published.version(*published.mildest).read(sample)]
    a, b = (images.flatten(1).double() for images in pairs)
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    scale = a.norm(dim=1) * b.norm(dim=1)
    return float(((a * b).sum(1) / scale.clamp(min=1e-9)).median())


def _missing(published: Published) -> Iterator[Finding]:
    """Corruptions and severities that the set has elsewhere."""
    size, found = published.image_size, published.found
    for name in Counter(set_of(corruption, size) for corruption in found):
        main, extra = members(name)
        if absent := [one for one in main if one not in found]:
            there = len(main) - len(absent)
            if there or not any(one in extra for one in found):
                what = f"{len(absent)} of the {len(main)} corruptions of {name} are missing"
                yield Finding("incomplete", what, listing(absent), "the rest of the set, in the same folder")
        if absent := [one for one in extra if one not in found]:
            yield Finding(
                "note", f"extra corruptions of {name} are not there", listing(absent), "mCE needs none of them"
            )
    for corruption, severities in found.items():
        if absent := [str(severity) for severity in SEVERITIES if severity not in severities]:
            yield Finding(
                "incomplete",
                f"severities of {corruption} are missing",
                ", ".join(absent),
                "the archive, unpacked again",
            )


def _remains(folder: Path, step: OnStep) -> Iterator[Finding]:
    """What downloads and archives left: unfinished files, empty ones, archives that were not unpacked or not whole."""
    if not folder.is_dir():
        return
    groups = [folder, *(entry for entry in sorted(folder.iterdir()) if entry.is_dir())]
    files = [file for group in groups for file in sorted(group.iterdir()) if file.is_file() and not file.is_symlink()]
    if unfinished := [file.name for file in files if re.search(_UNFINISHED + "$", file.name.lower())]:
        yield Finding(
            "incomplete", "a download has not ended", listing(unfinished), "go on with it, or remove the file"
        )
    if empty := [file.name for file in files if not file.stat().st_size and not file.name.startswith(".")]:
        yield Finding("bad", "files without content", listing(empty), "download them again")
    archives = [file for file in files if re.search(_ARCHIVES + "$", file.name.lower()) and file.stat().st_size]
    for file in archives:
        if file.name in ARCHIVES:
            step(file.name)
            if md5(file) != ARCHIVES[file.name]:
                yield Finding(
                    "bad", f"{file.name} is not the published archive, or not all of it",
                    f"{file.stat().st_size:,} bytes of another MD5 than {ARCHIVES[file.name]}", "download it again",
                )  # fmt: skip
    if archives:
        names = listing([file.name for file in archives])
        yield Finding("note", "archives lie among the data", names, "remove them when they are unpacked")


def _checksums(published: Published, findings: list[Finding], step: OnStep) -> int | None:
    """How many files are the published ones."""
    known = FILES.get(published.source.partition(":")[0], {})
    present = {name: md5_ for name, md5_ in known.items() if (published.folder / name).is_file()}
    if published.origin.pixels == "regenerated" or not present.keys() - {"labels.npy"}:
        return None
    if len(published) != PUBLISHED_IMAGES:
        findings.append(
            Finding(
                "note",
                "not the published files",
                f"{len(published):,} images a severity, where those have {PUBLISHED_IMAGES:,}",
            )
        )
        return None
    other = []
    for name, published_md5 in present.items():
        step(name)
        other += [name] if md5(published.folder / name) != published_md5 else []
    if other:
        findings.append(
            Finding(
                "bad", f"{len(other)} of {len(present)} files are not the published ones", listing(other),
                "download the archive again; figures of other files do not go with published ones",
            )
        )  # fmt: skip
    return len(present) - len(other)
