"""Published data sets of many conditions: what folders are read as, what is refused, and `lnbench check-data`."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from robustbench_ln import evaluate
from robustbench_ln.checking import DataReport, check_data
from robustbench_ln.corrupting import plan_corrupted, write_corrupted
from robustbench_ln.corruptions.published import SETS, members
from robustbench_ln.data import PUBLISHED, ArrayDataset, Dataset, Published, checksums, digests, open_published
from robustbench_ln.data.imagenet import imagenet_classes
from robustbench_ln.errors import InputError, TrustError, UsageError
from robustbench_ln.gating import Policy, Rule
from robustbench_ln.gating.sequential import gate_model
from robustbench_ln.metrics.mce import STANDARD
from robustbench_ln.planning import plan_run
from robustbench_ln.previewing import preview
from robustbench_ln.reports import FORMATS
from robustbench_ln.reports.building import build
from robustbench_ln.results import load_results
from tests.conftest import random_network, toy_arrays
from tests.test_gate import Run, lnbench

__all__ = ["lnbench"]  # the fixture

N = 20  # images of the made sets


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


# Making sets


def clean_set(size: int = 32, seed: int = 0) -> ArrayDataset:
    images, labels = toy_arrays(N, size=size, seed=seed)
    return ArrayDataset(images, labels, classes=tuple("abcdefghij"))


def darker(images: np.ndarray, severity: int) -> np.ndarray:
    return (images // (1 + severity)).astype(np.uint8)


def arrays(folder: Path, names: Iterable[str] = ("fog", "frost"), size: int = 32) -> Path:
    """A set in CIFAR-10-C's layout, without the record that `lnbench corrupt` leaves."""
    folder.mkdir(parents=True)
    images, labels = toy_arrays(N, size=size)
    for name in names:
        np.save(folder / f"{name}.npy", np.concatenate([darker(images, severity) for severity in range(1, 6)]))
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return folder


def tree(
    folder: Path,
    names: Iterable[str] = ("fog", "frost"),
    severities: Iterable[str] = "12345",
    *,
    classes: str | list[str] = "abcdefghij",
    suffix: str = ".JPEG",
    size: int = 32,
) -> Path:
    """A set in ImageNet-C's layout; PNG in files of any name, so that pixels are known."""
    images, labels = toy_arrays(N, size=size)
    for name in names:
        for severity, level in enumerate(severities, 1):
            for i, image in enumerate(darker(images, severity)):
                path = folder / name / level / classes[labels[i]] / f"{i:02d}{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(path, "PNG")
    return folder


MADE: dict[str, Callable[[Path], Path]] = {"cifar10c": arrays, "cifar100c": arrays, "imagenetc": tree}


@pytest.fixture(params=PUBLISHED)
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Published:
    return open_published(f"{request.param}:{MADE[request.param](tmp_path / 'set')}", clean=clean_set())


# Reading


def test_image_i_of_every_condition_is_test_image_i(opened: Published) -> None:
    images, labels = toy_arrays(N, size=32)
    assert opened.found == {"fog": (1, 2, 3, 4, 5), "frost": (1, 2, 3, 4, 5)}
    assert np.array_equal(opened.labels, labels)
    indices = np.array([7, 0, 19, 7])
    assert np.array_equal(opened.read(indices).permute(0, 2, 3, 1).numpy(), images[indices])
    for name, severities in opened.found.items():
        for severity in severities:
            shown = opened.version(name, severity).read(indices).permute(0, 2, 3, 1).numpy()
            assert np.array_equal(shown, darker(images, severity)[indices])


def test_a_set_can_be_handed_to_another_process(opened: Published) -> None:
    digest = opened.digest("fog", 2)
    copy = pickle.loads(pickle.dumps(opened))
    assert copy.digest("fog", 2) == digest
    assert (copy.version("fog", 2).read([3]) == opened.version("fog", 2).read([3])).all()


def test_the_identity_is_that_of_the_clean_set_and_conditions_have_their_own(opened: Published) -> None:
    assert opened.sha256 == clean_set().sha256
    digests_ = {opened.digest(name, s) for name in opened.found for s in opened.found[name]}
    assert len(digests_) == 5  # fog and frost are made alike here


@pytest.mark.parametrize("kind", PUBLISHED)
def test_without_clean_images_the_mildest_condition_stands_for_them(kind: str, tmp_path: Path) -> None:
    names = ("frost", "fog", "brightness")
    made = MADE[kind](tmp_path / "set", names)  # type: ignore[call-arg]
    opened = open_published(f"{kind}:{made}")
    assert opened.mildest == ("brightness", 1)
    images, _ = toy_arrays(N, size=32)
    place = np.argsort(opened.labels, kind="stable")
    assert np.array_equal(opened.read(place).permute(0, 2, 3, 1).numpy(), darker(images, 1)[place])
    assert any("no clean images" in warning for warning in opened.warnings)


@pytest.mark.parametrize("suffix", [".JPEG", ".jpeg", ".png"])
@pytest.mark.parametrize("inside", ["", "weather", "ImageNet-C", "ImageNet-C/weather"])
def test_group_folders_and_suffixes_make_no_difference(tmp_path: Path, inside: str, suffix: str) -> None:
    tree(tmp_path / "set" / inside, ["fog"], "12", suffix=suffix)
    opened = open_published(f"imagenetc:{tmp_path / 'set'}")
    plain = open_published(f"imagenetc:{tree(tmp_path / 'plain', ['fog'], '12')}")
    assert opened.found == plain.found == {"fog": (1, 2)}
    assert opened.digest("fog", 2) == plain.digest("fog", 2)


def test_the_folder_above_an_unpacked_archive_is_understood(tmp_path: Path) -> None:
    arrays(tmp_path / "CIFAR-10-C")
    assert open_published(f"cifar10c:{tmp_path}").found.keys() == {"fog", "frost"}


def test_severities_may_be_real_numbers(tmp_path: Path) -> None:
    folder = tree(tmp_path / "bar", ["sparkles"], ["0.70", "3.50", "5.60", "6.30", "10.00"])
    tree(folder, ["ripple"], ["5.50", "6.00", "6.50"])
    opened = open_published(f"imagenetc:{folder}", clean=clean_set())
    assert opened.found == {"sparkles": (1, 2, 3, 4, 5)}
    images, _ = toy_arrays(N, size=32)
    shown = opened.version("sparkles", 5).read([2]).permute(0, 2, 3, 1).numpy()
    assert np.array_equal(shown, darker(images, 5)[[2]])
    assert any("severities of ripple cannot be told" in warning for warning in opened.warnings)


def test_labels_are_imagenets_own_where_the_folders_are(tmp_path: Path) -> None:
    wnids = list(imagenet_classes())[::100]
    opened = open_published(f"imagenetc:{tree(tmp_path / 'set', ['fog'], '1', classes=wnids)}")
    _, labels = toy_arrays(N, size=32)
    assert len(opened.classes) == 1000
    assert np.array_equal(opened.labels, 100 * labels)
    named = open_published(f"imagenetc:{tree(tmp_path / 'other', ['fog'], '1')}")
    assert len(named.classes) == len(set(labels.tolist()))


def flat(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (size, size), (90, 80, 70)).save(path, "JPEG")


def test_tiny_imagenet_c_has_its_own_labels_and_its_wrong_frost_is_known(tmp_path: Path) -> None:
    wnids = sorted(imagenet_classes())
    for wnid in wnids[::5]:
        flat(tmp_path / "brightness" / "1" / wnid / "0.JPEG", 64)
    for wnid in wnids:
        flat(tmp_path / "frost" / "1" / wnid / "0.JPEG", 64)
    opened = open_published(f"imagenetc:{tmp_path}")
    assert len(opened.classes) == 200
    assert opened.labels.tolist() == list(range(200))
    assert any("Tiny-ImageNet-C" in warning for warning in opened.warnings)
    with pytest.raises(InputError, match="1000 images of 1000 classes, not 200 of 200") as refused:
        opened.version("frost", 1)
    assert "8206060" in refused.value.hint


def test_images_are_not_resized_again_unless_asked(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set", ["fog"], "1", size=24)
    assert open_published(f"imagenetc:{folder}").geometry == "as stored"
    asked = open_published(f"imagenetc:{folder}", resize=28, crop=24)
    assert (asked.image_size, asked.geometry) == ((24, 24), "resize 28, crop 24, bilinear")
    assert any("are resized again" in warning for warning in asked.warnings)


def test_clean_images_without_a_partner_are_left_out(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set", ["fog"], "12")
    for path in sorted(folder.rglob("*.JPEG")):
        if int(path.stem) % 3 == 0:
            path.unlink()
    opened = open_published(f"imagenetc:{folder}", clean=clean_set())
    images, labels = toy_arrays(N, size=32)
    kept = np.arange(N)[np.arange(N) % 3 != 0]
    assert np.array_equal(opened.labels, labels[kept])
    assert np.array_equal(opened.read(range(len(kept))).permute(0, 2, 3, 1).numpy(), images[kept])
    assert np.array_equal(opened.version("fog", 2).read([4]).permute(0, 2, 3, 1).numpy(), darker(images, 2)[kept[[4]]])
    assert opened.sha256 != clean_set().sha256
    assert any("13 of the 20 clean images" in warning for warning in opened.warnings)


# What is remembered


def test_what_was_found_in_files_is_remembered_until_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "file", []
    file.write_bytes(b"one")

    def find() -> bytes:
        asked.append(file.read_bytes())
        return asked[-1] * 2

    assert digests.remembered([file], "a", find) == b"oneone"
    assert digests.remembered([file], "a", find) == b"oneone"
    assert len(asked) == 2  # a file this young may change once more and keep its time
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    for _ in range(3):
        assert digests.remembered([file], "a", find) == b"oneone"
    assert len(asked) == 3
    digests.remembered([file], "b", find)
    assert len(asked) == 4
    file.write_bytes(b"two")
    assert digests.remembered([file], "a", find) == b"twotwo"
    for kept in (Path(os.environ["XDG_CACHE_HOME"]) / "lnbench" / "digests").iterdir():
        kept.write_bytes(kept.read_bytes()[:-1] + b"?")
    assert digests.remembered([file], "a", find) == b"twotwo"


def test_an_unwritable_cache_only_costs_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").write_bytes(b"")
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    file = tmp_path / "file"
    file.write_bytes(b"one")
    assert digests.remembered([file], "", file.read_bytes) == b"one"


@pytest.mark.parametrize("kind", PUBLISHED)
def test_remembered_digests_are_those_of_the_images(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_SETTLED", -1.0)
    folder = MADE[kind](tmp_path / "set")
    first, again = (open_published(f"{kind}:{folder}").digest("fog", 3) for _ in range(2))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert first == again == open_published(f"{kind}:{folder}").digest("fog", 3)


# Evaluating


def test_regenerated_files_give_what_regenerating_on_the_fly_gives(tmp_path: Path) -> None:
    names = "contrast,gaussian_noise"
    write_corrupted(plan_corrupted("demo", tmp_path / "c", corruption=names, layout="cifar10c"))
    same = {"limit": 60, "corruption": names, "modes": "bn,dynbn-batch:16", "severity": "1,5"}
    made = evaluate("demo:bn", "demo", **same)  # type: ignore[arg-type]
    read = evaluate("demo:bn", f"cifar10c:{tmp_path / 'c'}", clean="demo", out=tmp_path / "run", **same)  # type: ignore[arg-type]
    assert len(made.document.rows) == len(read.document.rows) == 10
    for one, other in zip(made.document.rows, read.document.rows, strict=True):
        assert (one.condition, one.fingerprint, one.counts) == (other.condition, other.fingerprint, other.counts)
        for mine, theirs in zip(made.predictions(one) or (), read.predictions(other) or (), strict=True):
            assert np.array_equal(mine, theirs)
    assert read.document.data.pixels == "regenerated"
    assert read.document.data.sha256 == made.document.data.sha256
    assert any("lnbench corrupt made these images" in warning for warning in read.warnings)
    # The gate that evaluates by itself finds the same files, and the same model is no worse than itself.
    policy = Policy((Rule("accuracy", "accuracy", "max_drop", 0.4),))
    assert gate_model(policy, "demo:bn", load_results(tmp_path / "run")).verdict == "pass"


def test_regenerated_jpegs_are_those_of_jpeg_parity(tmp_path: Path) -> None:
    data = clean_set()
    chosen = {"corruption": "contrast,frost", "severity": 2, "modes": "bn"}
    write_corrupted(plan_corrupted(data, tmp_path / "c", corruption="contrast,frost", severity=2, layout="imagenetc"))
    made = evaluate(random_network(), data, jpeg_parity=True, **chosen)  # type: ignore[arg-type]
    read = evaluate(random_network(), f"imagenetc:{tmp_path / 'c'}", clean=data, **chosen)  # type: ignore[arg-type]
    for one, other in zip(made.document.rows, read.document.rows, strict=True):
        assert (one.condition, one.fingerprint, one.counts) == (other.condition, other.fingerprint, other.counts)
    assert read.document.data.frost == made.document.data.frost
    assert read.document.data.frost_sha256 == made.document.data.frost_sha256


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results on all 15 corruptions of a published set, and one that no suite knows."""
    folder = tmp_path_factory.mktemp("published")
    arrays(folder / "set", [*STANDARD, "pinch_and_twirl"])
    np.savez(folder / "clean.npz", images=clean_set().read(range(N)).permute(0, 2, 3, 1), labels=clean_set().labels)
    evaluate(
        "demo:bn", f"cifar10c:{folder / 'set'}", clean=f"npz:{folder / 'clean.npz'}", modes="bn", out=folder / "run"
    )
    return folder


def test_published_pixels_are_called_so_and_others_corruptions_stay_out_of_mce(run: Path) -> None:
    document = load_results(run / "run").document
    assert (document.data.pixels, document.data.frost, document.data.frost_sha256) == ("published", "original", None)
    suites = {row.condition.name: row.condition.suite for row in document.rows}
    assert suites["fog"] == "cifar10-c"
    assert suites["pinch_and_twirl"] == "cifar10-c-bar"
    alone = build([run / "run"], normaliser="alexnet", suite="cifar10-c")
    entry = alone.sheet.entries[0]
    assert entry.qualifier == ""
    assert entry.scores.mce is not None
    assert entry.scores.relative_mce is not None
    assert "pinch_and_twirl" not in entry.table.errors
    bar = build([run / "run"], suite="cifar10-c-bar")
    assert bar.sheet.entries[0].table.errors.keys() == {"pinch_and_twirl"}
    assert [grid.suite for grid in bar.grids] == ["cifar10-c-bar"]
    for render in FORMATS.values():
        assert "pinch_and_twirl" in render(bar).replace("\\_", "_")


def test_rows_carry_the_digest_of_their_files(run: Path) -> None:
    opened = open_published(f"cifar10c:{run / 'set'}")
    for row in load_results(run / "run").document.rows:
        expected = (
            None if row.condition.kind == "clean" else opened.digest(row.condition.name, int(row.condition.level))
        )
        assert row.extra.get("files_sha256") == expected


def test_without_clean_images_relative_mce_is_null_and_every_report_says_so(run: Path) -> None:
    results = evaluate("demo:bn", f"cifar10c:{run / 'set'}", corruption="common", modes="bn", out=run / "bare")
    assert {row.condition.kind for row in results.document.rows} == {"corruption"}
    summary = build([run / "bare"], normaliser="alexnet")
    assert summary.sheet.entries[0].scores.mce is not None
    assert summary.sheet.entries[0].scores.relative_mce is None
    assert any("no clean images beside" in warning for warning in summary.warnings)
    for render in FORMATS.values():
        assert render(summary)
    document = json.loads(FORMATS["json"](summary))
    assert (document["models"][0]["clean_error"], document["models"][0]["relative_mce"]) == (None, None)


def test_preprocessing_is_tried_on_the_mildest_condition_and_that_is_said(run: Path, bn_file: Path) -> None:
    plan = plan_run(str(bn_file), f"cifar10c:{run / 'set'}", corruption="fog")
    assert any("judged by the images of brightness 1" in warning for warning in plan.manifest.warnings)
    beside = plan_run(str(bn_file), f"cifar10c:{run / 'set'}", clean=clean_set(), corruption="fog")
    assert not any("judged by" in warning for warning in beside.manifest.warnings)


def test_a_run_goes_on_and_takes_further_conditions(run: Path) -> None:
    data = f"cifar10c:{run / 'set'}"
    options = {"modes": "bn", "limit": 6, "out": run / "more"}
    evaluate("demo:bn", data, corruption="frost", severity=1, **options)  # type: ignore[arg-type]
    seen: list[object] = []
    results = evaluate("demo:bn", data, corruption="frost,fog", severity=1, on_event=seen.append, **options)  # type: ignore[arg-type]
    assert [type(event).__name__ for event in seen].count("Finish") == 1
    assert results.document.data.frost == "original"
    evaluate("demo:bn", data, corruption="fog", severity=1, **options)  # type: ignore[arg-type]
    assert load_results(run / "more").document.data.frost == "original"


def test_other_files_are_another_run(tmp_path: Path) -> None:
    folder = arrays(tmp_path / "set", ["fog", "snow"])
    options = {"modes": "bn", "severity": 1}
    evaluate(random_network(), f"cifar10c:{folder}", out=tmp_path / "run", **options)  # type: ignore[arg-type]
    with (folder / "fog.npy").open("r+b") as file:
        file.seek(200)
        file.write(b"other")
    with pytest.raises(UsageError, match="images of fog 1"):
        evaluate(random_network(), f"cifar10c:{folder}", out=tmp_path / "run", **options)  # type: ignore[arg-type]
    evaluate(random_network(), f"cifar10c:{folder}", out=tmp_path / "other", **options)  # type: ignore[arg-type]
    with pytest.raises(TrustError, match="other published images"):
        build([tmp_path / "run", tmp_path / "other"])


def test_published_and_regenerated_pixels_share_no_folder_and_no_ranking(tmp_path: Path) -> None:
    data, options = clean_set(), {"modes": "bn", "corruption": "fog", "severity": "1:5"}
    folder = arrays(tmp_path / "set", ["fog"])
    evaluate(random_network(), f"cifar10c:{folder}", clean=data, out=tmp_path / "files", **options)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="other pixels"):
        evaluate(random_network(), data, out=tmp_path / "files", **options)  # type: ignore[arg-type]
    evaluate(random_network(seed=1), data, out=tmp_path / "made", **options)  # type: ignore[arg-type]
    sheet = build([tmp_path / "files", tmp_path / "made"]).sheet
    assert [kind for kind, _ in sheet.ranks] == ["", " (regenerated)"]


def test_files_that_change_during_a_run_end_it(tmp_path: Path) -> None:
    folder = arrays(tmp_path / "set", ["fog"])

    def change(_event: object) -> None:
        with (folder / "fog.npy").open("r+b") as file:
            file.seek(-10, os.SEEK_END)
            file.write(b"other")

    with pytest.raises(TrustError, match="data changed"):
        evaluate(random_network(), f"cifar10c:{folder}", modes="bn", on_event=change)


# What is asked for


def conditions(tmp_path: Path, **options: object) -> list[tuple[str, float]]:
    folder = tmp_path / "set"
    if not folder.exists():
        tree(folder, ["spatter", "lines", "snow", "fog"], "123")
        tree(folder, ["pixelate"], "1")
    plan = plan_run(random_network(), f"imagenetc:{folder}", **options)  # type: ignore[arg-type]
    return [(one.name, one.level) for one in plan.conditions]


def test_all_conditions_that_are_found_are_taken_unless_named(tmp_path: Path) -> None:
    levels = (1.0, 2.0, 3.0)
    found = conditions(tmp_path)
    assert found == [
        *((name, level) for name in ("snow", "fog") for level in levels),
        ("pixelate", 1.0),
        *((name, level) for name in ("spatter", "lines") for level in levels),
    ]
    assert conditions(tmp_path, corruption="all") == found
    assert {name for name, _ in conditions(tmp_path, corruption="common")} == {"snow", "fog", "pixelate"}
    assert {name for name, _ in conditions(tmp_path, corruption="extra")} == {"spatter"}
    assert conditions(tmp_path, corruption="lines,fog", severity="3,1") == [
        ("lines", 3.0), ("lines", 1.0), ("fog", 3.0), ("fog", 1.0),
    ]  # fmt: skip
    plan = plan_run(random_network(), f"imagenetc:{tmp_path / 'set'}", severity=2)
    assert "not in the folder: pixelate 2" in plan.manifest.warnings


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "agn"}, "--noise does not go with published images"),
        ({"sigma": "0:1:0.5"}, "--sigma does not go"),
        ({"preset": "paper-fig6"}, "--preset does not go"),
        ({"range": "clip"}, "--range does not go"),
        ({"suite": "cifar10-c"}, "--suite does not go"),
        ({"frost_textures": "frost"}, "--frost-textures does not go"),
        ({"jpeg_parity": True}, "--jpeg-parity does not go"),
        ({"repeats": 2}, "--repeats does not go"),
        ({"severity": 6}, "names no severities"),
        ({"severity": 5}, "none of the conditions"),
        ({"corruption": "snwo"}, "unknown corruption in this folder 'snwo'"),
        ({"on_bad_image": "skip"}, "no image of a published set can be skipped"),
    ],
)
def test_what_does_not_go_with_published_images_is_refused(
    tmp_path: Path, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as refused:
        conditions(tmp_path, **options)
    assert refused.value.hint


def test_clean_goes_with_published_sets_only() -> None:
    with pytest.raises(UsageError, match="--clean goes with published corruptions"):
        plan_run("demo:bn", "demo", clean="demo")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_corrupted_images_are_not_corrupted_again(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="corrupted already"):
        plan_corrupted(f"{kind}:{tmp_path}", tmp_path / "out.npz")
    with pytest.raises(UsageError, match="corrupted already"):
        preview(data=f"{kind}:{tmp_path}")


def test_every_set_names_its_corruptions_once() -> None:
    for name in SETS:
        main, _ = members(name)
        assert len(set(main)) == len(main) in (10, 12)
        assert not set(main) & set(STANDARD)


# Bad input


def first_and_open(spec: str, clean: Dataset | None = None) -> None:
    opened = open_published(spec, clean=clean)
    for name, severities in opened.found.items():
        for severity in severities:
            opened.version(name, severity)


def cut(path: Path, n: int) -> None:
    path.write_bytes(path.read_bytes()[:n])


def resave(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    np.save(path, change(np.load(path)), allow_pickle=True)


def one_label_off(labels: np.ndarray) -> np.ndarray:
    labels = labels.copy()
    labels[2 * N + 3] += 1
    return labels


BAD_ARRAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no labels": (lambda f: (f / "labels.npy").unlink(), "no labels.npy"),
    "nothing but labels": (lambda f: [(f / f"{n}.npy").unlink() for n in ("fog", "frost")], "no published corruptions"),
    "truncated": (lambda f: cut(f / "fog.npy", 5000), r"fog.npy cannot be read.*fog.npy should have 307200 bytes"),
    "empty file": (lambda f: cut(f / "fog.npy", 0), "fog.npy cannot be read"),
    "cut in its header": (lambda f: cut(f / "fog.npy", 40), "fog.npy cannot be read"),
    "not numpy": (lambda f: (f / "fog.npy").write_text("fog"), "fog.npy cannot be read"),
    "objects": (lambda f: np.save(f / "fog.npy", np.array([{}]), allow_pickle=True), "Python objects"),
    "floats": (
        lambda f: resave(f / "fog.npy", lambda a: a / np.float32(255)),
        r"fog.npy: images are not uint8.*float32",
    ),
    "channels first": (
        lambda f: resave(f / "fog.npy", lambda a: a.transpose(0, 3, 1, 2).copy()),
        r"\(100, 3, 32, 32\)",
    ),
    "by columns": (lambda f: resave(f / "fog.npy", np.asfortranarray), "fog.npy is stored by columns"),
    "one severity": (lambda f: resave(f / "fog.npy", lambda a: a[:N]), "does not hold the 20 images.*20 images"),
    "other size": (lambda f: resave(f / "fog.npy", lambda a: a[:, :16, :16].copy()), "images differ in size"),
    "labels of one severity": (
        lambda f: resave(f / "labels.npy", lambda a: a[: N + 1]),
        "does not hold five severities",
    ),
    "labels not tiled": (lambda f: resave(f / "labels.npy", one_label_off), "differs between severities.*image 3"),
    "labels as text": (lambda f: resave(f / "labels.npy", lambda a: a.astype(str)), "does not hold integers"),
    "labels in columns": (lambda f: resave(f / "labels.npy", lambda a: a[:, None]), r"integers of shape \(N,\)"),
    "labels as objects": (lambda f: resave(f / "labels.npy", lambda a: a.astype(object)), "labels.npy cannot be read"),
    "labels beyond": (lambda f: resave(f / "labels.npy", lambda a: a + 9), "labels out of range"),
    "a broken record": (lambda f: (f / "lnbench.json").write_text("{}"), "cannot read .*lnbench.json"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused_in_three_lines(case: str, tmp_path: Path) -> None:
    spoil, message = BAD_ARRAYS[case]
    folder = arrays(tmp_path / "set")
    spoil(folder)
    with pytest.raises(InputError, match=f"(?s){message}") as refused:
        first_and_open(f"cifar10c:{folder}")
    assert refused.value.found
    assert refused.value.hint
    assert check_data(f"cifar10c:{folder}").verdict == "bad"


BAD_TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "an image is missing": (lambda f: next(f.glob("frost/3/*/*")).unlink(), "frost 3 holds other images than fog 1"),
    "an image too many": (lambda f: flat(f / "frost/3/a/more.JPEG", 32), "has besides a/more"),
    "an image of another size": (lambda f: flat(next(f.glob("frost/3/*/*")), 16), "frost 3 have several sizes"),
    "a cut image": (lambda f: cut(next(f.glob("frost/3/*/*")), 60), "1 of 20 images cannot be read"),
    "an empty file": (lambda f: cut(next(f.glob("frost/3/*/*")), 0), "1 of 20 images cannot be read"),
    "a link to nothing": (lambda f: relinked(next(f.glob("frost/3/*/*"))), "1 of 20 images cannot be read"),
    "two files of one name": (lambda f: flat(next(f.glob("frost/3/*/*")).with_suffix(".png"), 32), "have one name"),
    "one corruption twice": (lambda f: tree(f / "weather", ["fog"], "1"), "the corruption fog is there twice"),
}


def relinked(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize("case", BAD_TREES)
def test_bad_trees_are_refused_in_three_lines(case: str, tmp_path: Path) -> None:
    spoil, message = BAD_TREES[case]
    folder = tree(tmp_path / "set", severities="123")
    spoil(folder)
    with pytest.raises(InputError, match=f"(?s){message}") as refused:
        first_and_open(f"imagenetc:{folder}")
    assert refused.value.found
    assert refused.value.hint
    assert check_data(f"imagenetc:{folder}").verdict == "bad"


@pytest.mark.parametrize("kind", PUBLISHED)
def test_a_folder_with_nothing_known_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs a folder"):
        open_published(f"{kind}:")
    with pytest.raises(InputError, match="no such file or folder"):
        open_published(f"{kind}:{tmp_path / 'none'}")
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    with pytest.raises(InputError, match=r"no published corruptions|no labels.npy"):
        open_published(f"{kind}:{tmp_path / 'photos'}")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="not a folder"):
        open_published(f"{kind}:{tmp_path / 'file'}")


@pytest.mark.parametrize("kind", PUBLISHED)
def test_other_clean_images_are_refused(kind: str, tmp_path: Path) -> None:
    folder = MADE[kind](tmp_path / "set")
    images, labels = toy_arrays(N, size=32)
    for other in (ArrayDataset(images, (labels + 1) % 10, tuple("abcdefghij")), ArrayDataset(images[:9], labels[:9])):
        with pytest.raises(InputError, match="the clean images are not those"):
            open_published(f"{kind}:{folder}", clean=other)
    smaller = ArrayDataset(images[:, ::2, ::2].copy(), labels, tuple("abcdefghij"))
    with pytest.raises(InputError, match="images differ in size"):
        first_and_open(f"{kind}:{folder}", smaller)


# lnbench check-data


def levels(report: DataReport) -> dict[str, str]:
    return {finding.what: finding.level for finding in report.findings}


def test_a_whole_set_is_fine(run: Path) -> None:
    report = check_data(f"cifar10c:{run / 'set'}", clean=f"npz:{run / 'clean.npz'}")
    assert set(report.conditions) == {*STANDARD, "pinch_and_twirl"}
    assert (report.images, report.classes, report.image_size, report.pixels) == (N, 10, (32, 32), "published")
    found = levels(report)
    assert found["extra corruptions of cifar10-c are not there"] == "note"
    assert found["9 of the 10 corruptions of cifar10-c-bar are missing"] == "incomplete"
    assert "bad" not in found.values()
    assert json.loads(json.dumps(report.to_dict()))["verdict"] == "incomplete"


def test_missing_corruptions_and_severities_are_incomplete(tmp_path: Path) -> None:
    folder = tree(tmp_path / "set", STANDARD[1:], "1235")
    report = check_data(f"imagenetc:{folder}")
    assert report.verdict == "incomplete"
    assert levels(report)[f"severities of {STANDARD[1]} are missing"] == "incomplete"
    assert "1 of the 15 corruptions of cifar10-c are missing" in levels(report)


def test_extra_corruptions_alone_miss_nothing(tmp_path: Path) -> None:
    _, extra = members("cifar10-c")
    assert check_data(f"cifar10c:{arrays(tmp_path / 'set', extra)}").verdict == "fine"


def test_what_downloads_leave_is_found(tmp_path: Path) -> None:
    folder = arrays(tmp_path / "set", STANDARD)
    assert check_data(f"cifar10c:{folder}").verdict == "fine"
    (folder / "old.tar").write_bytes(b"x")
    assert levels(check_data(f"cifar10c:{folder}"))["archives lie among the data"] == "note"
    (folder / "CIFAR-10-C.tar.part").write_bytes(b"x")
    assert levels(check_data(f"cifar10c:{folder}"))["a download has not ended"] == "incomplete"
    (folder / "blur.tar").write_bytes(b"x")
    assert levels(check_data(f"cifar10c:{folder}"))["blur.tar is not the published archive, or not all of it"] == "bad"
    (folder / "empty.txt").write_bytes(b"")
    assert levels(check_data(f"cifar10c:{folder}"))["files without content"] == "bad"


def test_an_archive_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "noise.tar").write_bytes(b"x")
    report = check_data(f"imagenetc:{tmp_path}")
    assert report.verdict == "bad"
    assert levels(report).keys() >= {"no published corruptions", "archives lie among the data"}


def test_known_checksums_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = arrays(tmp_path / "set", STANDARD)
    known = {path.name: checksums.md5(path) for path in folder.iterdir()}
    monkeypatch.setitem(checksums.FILES, "cifar10c", known)
    report = check_data(f"cifar10c:{folder}")
    assert report.checksums is None
    assert levels(report)["not the published files"] == "note"  # 20 images are not 10,000
    monkeypatch.setattr("robustbench_ln.checking.PUBLISHED_IMAGES", N)
    assert check_data(f"cifar10c:{folder}").checksums == 16
    resave(folder / "fog.npy", lambda a: a + 1)
    report = check_data(f"cifar10c:{folder}")
    assert (report.checksums, report.verdict) == (15, "bad")
    assert any(finding.found == "fog.npy" for finding in report.findings)


def test_the_published_checksums_are_of_every_file() -> None:
    for known in checksums.FILES.values():
        assert known.keys() == {f"{name}.npy" for name in (*sum(members("cifar10-c"), ()), "labels")}
        assert {len(md5) for md5 in known.values()} == {32}
        assert len(set(known.values())) == 20


def test_clean_images_that_only_share_their_labels_are_found(tmp_path: Path) -> None:
    folder = arrays(tmp_path / "set", STANDARD)
    images, labels = toy_arrays(N, size=32)
    np.savez(tmp_path / "right.npz", images=images, labels=labels)
    np.savez(tmp_path / "wrong.npz", images=toy_arrays(N, size=32, seed=1)[0], labels=labels)
    assert check_data(f"cifar10c:{folder}", clean=f"npz:{tmp_path / 'right.npz'}").verdict == "fine"
    report = check_data(f"cifar10c:{folder}", clean=f"npz:{tmp_path / 'wrong.npz'}")
    assert levels(report)["the corrupted images do not look like the clean ones"] == "bad"


def test_other_data_are_described_too(tmp_path: Path) -> None:
    report = check_data("demo")
    assert (report.verdict, report.images, report.class_counts, report.pixels) == ("fine", 1000, (100, 100), "clean")
    assert report.sha256 == evaluate("demo:bn", noise="agn", sigma=0, limit=2, modes="bn").document.data.sha256
    np.savez(tmp_path / "dark.npz", images=np.ones((3, 4, 4, 3), np.uint8), labels=[0, 2, 2])
    report = check_data(f"npz:{tmp_path / 'dark.npz'}")
    assert (report.verdict, report.class_counts) == ("bad", (1, 2))
    assert levels(report).keys() == {"images are all but black", "1 of 3 classes have no image"}
    assert check_data(f"npz:{tmp_path / 'none.npz'}").verdict == "bad"
    with pytest.raises(UsageError, match="--clean goes with"):
        check_data("demo", clean="demo")


def test_the_command_leaves_with_what_it_found(lnbench: Run, tmp_path: Path) -> None:
    folder = arrays(tmp_path / "set", STANDARD)
    code, out, _ = lnbench("check-data", f"cifar10c:{folder}", "--quiet")
    assert code == 0
    assert "verdict: fine" in out
    (folder / "fog.npy").unlink()
    code, _, err = lnbench("check-data", f"cifar10c:{folder}", "--quiet")
    assert code == 4
    assert err.splitlines()[-3:] == [
        "error: 1 of the 15 corruptions of cifar10-c are missing",
        "found: fog",
        "try: the rest of the set, in the same folder",
    ]
    cut(folder / "snow.npy", 1000)
    code, out, _ = lnbench("check-data", f"cifar10c:{folder}", "--quiet", "--json")
    assert code == 3
    document = json.loads(out)
    assert (document["schema_version"], document["verdict"]) == (1, "bad")
    assert document["findings"][0]["what"] == "snow.npy cannot be read"


def test_the_command_line_evaluates_published_sets(lnbench: Run, run: Path) -> None:
    code, out, _ = lnbench(
        "eval", "--model", "demo:bn", "--data", f"cifar10c:{run / 'set'}", "--clean", f"npz:{run / 'clean.npz'}",
        "--corruption", "fog", "--severity", "3", "--modes", "bn", "--out", str(run / "cli"), "--json", "--quiet",
    )  # fmt: skip
    assert code == 0
    document = json.loads(out)
    assert [row["condition"]["kind"] for row in document["rows"]] == ["clean", "corruption"]
    assert document["data"]["clean"] == f"npz:{run / 'clean.npz'}"
