from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import io
import os
import pickle
import shutil
import tarfile
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torchvision.datasets import CIFAR10, CIFAR100
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

import robustbench_ln.data
from robustbench_ln.data import DATASETS, ArrayDataset, Dataset, DemoDataset, open_dataset
from robustbench_ln.data.demo import draw
from robustbench_ln.errors import InputError, LnbenchError, ResourceError, TrustError, UsageError

# Making data sets


def pixels(n: int, height: int = 8, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def save(path: Path, image: np.ndarray, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, **options)
    return path


def make_folder(root: Path) -> Path:
    for i, image in enumerate(pixels(12)):
        save(root / "abc"[i % 3] / f"{i:02}.png", image)
    return root


def make_imagenet(root: Path) -> Path:
    for i, image in enumerate(pixels(12)):
        save(root / ["n01443537", "n02123045", "n15075141"][i % 3] / f"{i:02}.png", image)
    return root


def make_npz(path: Path, *, save: Callable[..., None] = np.savez, **arrays: object) -> Path:
    save(path, **({"images": pixels(12), "labels": np.arange(12) % 3} | arrays))
    return path


def make_cifar(root: Path, kind: type[CIFAR10], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A few images in the official layout, with torchvision expecting exactly those."""
    folder = root / kind.base_folder
    folder.mkdir(parents=True)
    n_classes, key = (100, "fine_labels") if kind is CIFAR100 else (10, "labels")

    def write(name: str, content: object) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name: str, seed: int) -> list[str]:
        flat = pixels(20, 32, 32, seed).transpose(0, 3, 1, 2).reshape(20, -1)
        return [name, write(name, {"data": flat, key: [(7 * i) % n_classes for i in range(20)]})]

    monkeypatch.setattr(kind, "train_list", [batch(name, i) for i, (name, _) in enumerate(kind.train_list)])
    monkeypatch.setattr(kind, "test_list", [batch(kind.test_list[0][0], 99)])
    meta = write(kind.meta["filename"], {kind.meta["key"]: [f"class {i}" for i in range(n_classes)]})
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta})
    return root


SPECS: dict[str, Callable[[Path, pytest.MonkeyPatch], str]] = {
    "demo": lambda tmp, patch: "demo",
    "cifar10": lambda tmp, patch: f"cifar10:{make_cifar(tmp / 'cifar', CIFAR10, patch)}",
    "cifar100": lambda tmp, patch: f"cifar100:{make_cifar(tmp / 'cifar', CIFAR100, patch)}",
    "imagefolder": lambda tmp, patch: f"imagefolder:{make_folder(tmp / 'test')}",
    "imagenet": lambda tmp, patch: f"imagenet:{make_imagenet(tmp / 'val')}",
    "npz": lambda tmp, patch: f"npz:{make_npz(tmp / 'data.npz')}",
}


@pytest.fixture(scope="module", params=DATASETS)
def spec(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        yield SPECS[request.param](tmp_path_factory.mktemp("data"), patch)


@pytest.fixture(scope="module", params=["as stored", "resized"])
def dataset(request: pytest.FixtureRequest, spec: str) -> Dataset:
    return open_dataset(spec) if request.param == "as stored" else open_dataset(spec, resize=20, crop=16)


# Laws of every data set


def test_labels_are_positions_of_classes(dataset: Dataset) -> None:
    assert dataset.labels.dtype == np.int64
    assert dataset.labels.shape == (len(dataset),)
    assert dataset.labels.min() >= 0
    assert dataset.labels.max() < len(dataset.classes)
    assert all(isinstance(name, str) for name in dataset.classes)


def test_labels_cannot_be_changed_by_accident(dataset: Dataset) -> None:
    with pytest.raises(ValueError, match="read-only"):
        dataset.labels[0] = 1


def test_images_are_contiguous_8_bit_rgb_of_the_announced_size(dataset: Dataset) -> None:
    images = dataset.read([0, 1, 2])
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, *dataset.image_size)
    assert images.is_contiguous()


def test_any_subset_in_any_order_equals_single_reads(dataset: Dataset) -> None:
    singles = [dataset.read([i])[0] for i in range(12)]

    @given(st.lists(st.integers(0, 11), max_size=8))
    @settings(max_examples=20, deadline=None)
    def check(indices: list[int]) -> None:
        images = dataset.read(np.array(indices, dtype=np.int64))
        assert images.shape == (len(indices), 3, *dataset.image_size)
        assert all(torch.equal(image, singles[i]) for image, i in zip(images, indices, strict=True))

    check()


def test_what_a_caller_does_to_images_stays_with_the_caller(dataset: Dataset) -> None:
    before = dataset.read([1])
    dataset.read([1]).zero_()
    assert torch.equal(dataset.read([1]), before)


@pytest.mark.parametrize("index", [-1, 10**6])
def test_an_index_outside_the_data_is_an_error(dataset: Dataset, index: int) -> None:
    with pytest.raises(IndexError):
        dataset.read([0, index])


def test_a_pickled_copy_is_the_same_data(dataset: Dataset) -> None:
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy.read([2, 0]), dataset.read([2, 0]))
    assert np.array_equal(copy.labels, dataset.labels)
    assert (copy.id, copy.sha256, copy.classes) == (dataset.id, dataset.sha256, dataset.classes)


def test_opening_twice_gives_the_same_digest(spec: str) -> None:
    first, second = open_dataset(spec), open_dataset(spec)
    assert first.sha256 == second.sha256
    assert len(first.sha256) == 64


def test_geometry_is_part_of_the_digest(spec: str) -> None:
    opened = [open_dataset(spec), open_dataset(spec, resize=6), open_dataset(spec, resize=6, crop=4)]
    assert len({dataset.sha256 for dataset in opened}) == 3
    assert [dataset.geometry for dataset in opened] == ["as stored", "resize 6, bilinear", "resize 6, crop 4, bilinear"]


def test_names_record_what_was_typed_and_are_safe_in_files(spec: str) -> None:
    dataset = open_dataset(spec)
    assert dataset.source == spec
    assert dataset.id == dataset.id.replace("/", "").replace(":", "").replace(" ", "")
    assert dataset.id.startswith(spec.partition(":")[0])


def test_every_data_set_takes_both_splits(spec: str) -> None:
    train = open_dataset(spec, split="train")
    assert len(train) >= len(open_dataset(spec))
    assert train.read([0]).shape[0] == 1


def test_every_public_name_exists_and_is_documented() -> None:
    for name in robustbench_ln.data.__all__:
        assert getattr(robustbench_ln.data, name).__doc__


# What a user can get wrong


@pytest.mark.parametrize(
    ("spec", "options", "error", "said"),
    [
        ("imagefoldr:x", {}, UsageError, "imagefolder"),
        ("", {}, UsageError, "demo"),
        ("/some/where", {}, UsageError, "imagefolder"),
        ("imagefolder", {}, UsageError, "imagefolder:DIR"),
        ("npz:", {}, UsageError, "npz:"),
        ("demo:5", {}, UsageError, "no argument"),
        ("demo", {"split": "tset"}, UsageError, "test"),
        ("demo", {"on_bad_image": "ignore"}, UsageError, "skip"),
        ("demo", {"interpolation": "bicubic"}, UsageError, "--resize"),
        ("demo", {"resize": 32, "interpolation": "bicubik"}, UsageError, "bicubic"),
        ("demo", {"resize": 0}, UsageError, "at least 1"),
        ("demo", {"crop": -4}, UsageError, "at least 1"),
        ("demo", {"resize": 16, "crop": 20}, UsageError, "larger"),
        ("demo", {"crop": 33}, InputError, "32 x 32"),
        ("npz:/no/such/file.npz", {}, InputError, "no such file"),
        ("npz:/", {}, InputError, "not a file"),
        ("imagefolder:/no/such", {}, InputError, "no such"),
        ("imagefolder:" + "x" * 5000, {}, InputError, "no such"),
        ("imagefolder:/no\x1b[31m\nsuch", {}, InputError, r"\x1b[31m\nsuch"),
        ("imagefolder:~nobody-of-this-name/x", {}, InputError, "no such"),
        ("cifar10:/no/such", {}, InputError, "no such"),
    ],
)
def test_a_wrong_request_is_refused_with_advice(
    spec: str, options: dict[str, object], error: type[LnbenchError], said: str
) -> None:
    with pytest.raises(error) as caught:
        open_dataset(spec, **options)
    assert said in str(caught.value)
    assert "\x1b" not in str(caught.value)


# Arrays


def test_array_classes_default_to_the_numbers_of_the_labels() -> None:
    assert ArrayDataset(pixels(3), [0, 2, 2]).classes == ("0", "1", "2")


@given(st.integers(0, 5), st.integers(0, 8 * 8 * 3 - 1))
@settings(max_examples=25, deadline=None)
def test_every_pixel_and_every_label_is_in_the_digest(index: int, position: int) -> None:
    images, labels = pixels(6), np.arange(6)
    whole = ArrayDataset(images, labels)
    images = images.copy()
    images[index].reshape(-1)[position] ^= 1
    relabelled = labels.copy()
    relabelled[index] += 1
    assert len({whole.sha256, ArrayDataset(images, labels).sha256, ArrayDataset(pixels(6), relabelled).sha256}) == 3


def test_order_and_shape_are_in_the_digest_and_names_are_not() -> None:
    images = pixels(6, 4, 8)
    digest = ArrayDataset(images, [0] * 6).sha256
    assert ArrayDataset(images[::-1], [0] * 6).sha256 != digest
    assert ArrayDataset(images.reshape(6, 8, 4, 3), [0] * 6).sha256 != digest
    assert ArrayDataset(images, [0] * 6, ["cat"], id="cats").sha256 == digest


BAD_ARRAYS: list[tuple[dict[str, object], str]] = [
    ({"images": pixels(12).astype(np.float32)}, "float32 (12, 8, 8, 3)"),
    ({"images": pixels(12).transpose(0, 3, 1, 2)}, "uint8 (12, 3, 8, 8)"),
    ({"images": pixels(12)[..., 0]}, "uint8 (12, 8, 8)"),
    ({"images": pixels(0)}, "uint8 (0, 8, 8, 3)"),
    ({"labels": np.arange(11)}, "12 images, 11 labels"),
    ({"labels": np.zeros(12)}, "float64 (12,)"),
    ({"labels": np.zeros(12, bool)}, "bool (12,)"),
    ({"labels": np.eye(12, dtype=int)}, "int64 (12, 12)"),
    ({"labels": np.arange(12) - 1}, "labels from -1 to 10"),
    ({"labels": np.full(12, 2**64 - 1, np.uint64)}, "to 18446744073709551615"),
    ({"classes": np.array(["a", "b"])}, "labels from 0 to 2"),
]


@pytest.mark.parametrize(("change", "found"), BAD_ARRAYS)
def test_unfit_arrays_are_refused_saying_what_was_found(change: dict[str, object], found: str, tmp_path: Path) -> None:
    arrays: dict[str, object] = {"images": pixels(12), "labels": np.arange(12) % 3} | change
    with pytest.raises(InputError) as in_memory:
        ArrayDataset(**arrays)  # type: ignore[arg-type]
    for saver in (np.savez, np.savez_compressed):
        with pytest.raises(InputError) as in_file:
            open_dataset(f"npz:{make_npz(tmp_path / 'bad.npz', save=saver, **arrays)}")
        assert found in in_file.value.found
    assert found in in_memory.value.found


# Files of arrays


@pytest.mark.parametrize("saver", [np.savez, np.savez_compressed])
def test_npz_images_come_back_as_they_were_saved(saver: Callable[..., None], tmp_path: Path) -> None:
    dataset = open_dataset(f"npz:{make_npz(tmp_path / 'a b.npz', save=saver, classes=np.array(['x', 'y', 'z']))}")
    assert np.array_equal(dataset.read(range(12)).permute(0, 2, 3, 1).numpy(), pixels(12))
    assert dataset.labels.tolist() == [0, 1, 2] * 4
    assert dataset.classes == ("x", "y", "z")
    assert dataset.id == "npz-a-b"
    assert dataset.sha256 == ArrayDataset(pixels(12), np.arange(12) % 3).sha256


def test_npz_arrays_in_column_order_are_read_right(tmp_path: Path) -> None:
    dataset = open_dataset(f"npz:{make_npz(tmp_path / 'f.npz', images=np.asfortranarray(pixels(12)))}")
    assert np.array_equal(dataset.read(range(12)).permute(0, 2, 3, 1).numpy(), pixels(12))


def test_uncompressed_npz_images_stay_on_disk(tmp_path: Path) -> None:
    path = make_npz(tmp_path / "big.npz", images=pixels(2000, 32, 32), labels=np.zeros(2000, int))
    dataset = open_dataset(f"npz:{path}")
    assert len(pickle.dumps(dataset)) < path.stat().st_size / 50
    assert np.array_equal(dataset.read([1999])[0].permute(1, 2, 0).numpy(), pixels(2000, 32, 32)[1999])


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "not a zip"),
        (b"<html>404</html>", "not a zip"),
        (b"PK\x03\x04" + bytes(100), "not a zip"),
    ],
)
def test_a_file_that_is_no_npz_is_refused(content: bytes, found: str, tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(InputError, match=found):
        open_dataset(f"npz:{tmp_path / 'x.npz'}")


def test_missing_arrays_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=pixels(3), labels=np.arange(3))
    with pytest.raises(InputError, match="missing: images") as caught:
        open_dataset(f"npz:{tmp_path / 'x.npz'}")
    assert "'x', 'labels'" in caught.value.found


class Dangerous:
    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (66,)


@pytest.mark.parametrize("name", ["images", "labels", "classes"])
def test_objects_in_a_file_are_never_loaded(name: str, tmp_path: Path) -> None:
    path = make_npz(tmp_path / "x.npz", **{name: np.array([Dangerous()] * 12, dtype=object)})
    with pytest.raises(InputError, match="never loaded"):
        open_dataset(f"npz:{path}")


def test_a_header_that_promises_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "|u1", "fortran_order": False, "shape": (10**12, 32, 32, 3)})
    path = make_npz(tmp_path / "x.npz")
    with zipfile.ZipFile(path) as archive:
        labels = archive.read("labels.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images.npy", buffer.getvalue() + bytes(100))
        archive.writestr("labels.npy", labels)
    with pytest.raises(InputError, match="should have 3072000000000000 bytes"):
        open_dataset(f"npz:{path}")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_npz_is_refused_or_unharmed(tmp_path: Path, data: st.DataObject) -> None:
    saver = data.draw(st.sampled_from([np.savez, np.savez_compressed]))
    content = bytearray(
        make_npz(tmp_path / "whole.npz", save=saver, images=pixels(3), labels=np.arange(3)).read_bytes()
    )
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    (tmp_path / "damaged.npz").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(InputError, TrustError):
            dataset = open_dataset(f"npz:{tmp_path / 'damaged.npz'}")
            assert len(dataset.read(range(len(dataset)))) == len(dataset)


def test_an_npz_that_changes_during_a_run_is_noticed(tmp_path: Path) -> None:
    path = make_npz(tmp_path / "x.npz")
    dataset = open_dataset(f"npz:{path}")
    make_npz(path, images=pixels(12, seed=1))
    with pytest.raises(TrustError, match="changed"):
        dataset.read([3])
    path.write_bytes(b"short")
    with pytest.raises(TrustError, match="changed"):
        dataset.read([3])
    path.unlink()
    with pytest.raises(TrustError, match="changed"):
        dataset.read([3])


# Folders of images


def test_class_folders_in_order_are_the_labels_and_files_are_sorted(tmp_path: Path) -> None:
    for i, name in enumerate(
        ["b/2.PNG", "b/deep/1.png", "b/10.png", "B/x.jpeg", "a/z.gif", "b/.hidden.png", ".git/h.png"]
    ):
        save(tmp_path / name, np.full((4, 4, 3), 10 * i, np.uint8))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.classes == ("B", "a", "b")
    assert dataset.labels.tolist() == [0, 1, 2, 2, 2]
    assert dataset.read([2, 3, 4])[:, 0, 0, 0].tolist() == [20, 0, 10]  # 10.png, 2.PNG, deep/1.png
    assert dataset.warnings == ()


def test_the_place_of_a_folder_is_not_in_its_digest_but_its_content_is(tmp_path: Path) -> None:
    first = open_dataset(f"imagefolder:{make_folder(tmp_path / 'one')}")
    assert open_dataset(f"imagefolder:{make_folder(tmp_path / 'two')}").sha256 == first.sha256
    (tmp_path / "two" / "a" / "00.png").rename(tmp_path / "two" / "b" / "00.png")
    assert open_dataset(f"imagefolder:{tmp_path / 'two'}").sha256 != first.sha256
    save(tmp_path / "one" / "a" / "00.png", pixels(1, seed=9)[0])
    assert open_dataset(f"imagefolder:{tmp_path / 'one'}").sha256 != first.sha256


def bad_files(root: Path) -> dict[str, str]:
    """Files that cannot be read, and the reason that must be given."""
    good = save(root / "a" / "good.jpg", pixels(1, 40, 40)[0]).read_bytes()
    (root / "b").mkdir()
    save(root / "b" / "good.png", pixels(1, 40, 40)[0])
    (root / "a" / "cut.jpg").write_bytes(good[: len(good) // 2])
    (root / "a" / "empty.jpg").write_bytes(b"")
    (root / "a" / "page.jpg").write_text("<html>404 Not Found</html>")
    (root / "b" / "script.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\n")
    Image.fromarray(np.full((40, 40), 40_000, np.uint16)).save(root / "b" / "deep.png")
    (root / "b" / "gone.png").symlink_to(root / "nowhere.png")
    os.mkfifo(root / "b" / "pipe.png")
    return {
        "a/cut.jpg": "truncated",
        "a/empty.jpg": "not an image",
        "a/page.jpg": "not an image",
        "b/deep.png": "16-bit",
        "b/gone.png": "No such file",
        "b/pipe.png": "not a file",
        "b/script.png": "not an image",
    }


def test_unreadable_images_stop_with_their_number_and_the_first_names(tmp_path: Path) -> None:
    reasons = bad_files(tmp_path)
    with pytest.raises(InputError) as caught:
        open_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.what == "7 of 9 images cannot be read"
    assert "--on-bad-image skip" in caught.value.hint
    for name, reason in list(reasons.items())[:5]:
        assert f"{name} (" in caught.value.found
        assert reason in caught.value.found
    assert "pipe" not in caught.value.found
    assert caught.value.found.endswith("and 2 more")


def test_unreadable_images_can_be_skipped_with_a_warning(tmp_path: Path) -> None:
    bad_files(tmp_path)
    dataset = open_dataset(f"imagefolder:{tmp_path}", on_bad_image="skip")
    assert dataset.labels.tolist() == [0, 1]
    assert dataset.read([0, 1]).shape == (2, 3, 40, 40)
    assert dataset.warnings == ("7 of 9 images cannot be read and are left out",)


def test_a_folder_of_bad_images_only_is_refused_even_when_skipping(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    with pytest.raises(InputError, match="1 of 1"):
        open_dataset(f"imagefolder:{tmp_path}", on_bad_image="skip")


def test_a_decompression_bomb_counts_as_unreadable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path)
    save(tmp_path / "a" / "bomb.png", pixels(1, 12, 12)[0])
    save(tmp_path / "a" / "huge.png", pixels(1, 30, 30)[0])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow warns above it and refuses above twice as much
    dataset = open_dataset(f"imagefolder:{tmp_path}", on_bad_image="skip")
    assert len(dataset) == 12
    assert dataset.warnings == ("2 of 14 images cannot be read and are left out",)


KINDS = [
    ("png", {}), ("gif", {}), ("bmp", {}), ("webp", {}), ("tiff", {}), ("ppm", {}), ("jpg", {}),
    ("jpg", {"progressive": True}), ("jpg", {"subsampling": 0, "restart_marker_rows": 1}),
]  # fmt: skip


@given(st.sampled_from(KINDS), st.sampled_from([(8, 8), (50, 23)]), st.integers(1, 8), st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_image_is_refused_just_where_pillow_cannot_decode_it(
    tmp_path: Path, kind: tuple[str, dict[str, object]], size: tuple[int, int], turned: int, data: st.DataObject
) -> None:
    shutil.rmtree(tmp_path / "a", ignore_errors=True)
    exif = Image.Exif()
    exif[0x0112] = turned
    suffix, options = kind
    path = save(tmp_path / "a" / f"x.{suffix}", pixels(1, *size)[0], exif=exif, **options)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4)) if content else 0):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                readable = image.mode[0] not in "IF"
                expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        except Exception:
            readable = False
        try:
            dataset = open_dataset(f"imagefolder:{tmp_path}")
        except InputError:
            assert not readable
            return
        assert np.array_equal(dataset.read([0])[0].permute(1, 2, 0).numpy(), expected)


def test_names_in_errors_cannot_act_on_the_terminal(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    folder.mkdir()
    for name in (b"\x1b[31mred.png", b"new\nline.png", b"\xff\xfe.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"")
    with pytest.raises(InputError) as caught:
        open_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.found.isprintable()
    caught.value.found.encode()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "no class folders"),
        (["1.png", "2.png"], "2 images and no folder"),
        (["a/readme.txt"], "no images"),
    ],
)
def test_a_folder_without_classes_or_images_says_what_is_expected(files: list[str], said: str, tmp_path: Path) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match=said) as caught:
        open_dataset(f"imagefolder:{tmp_path}")
    assert caught.value.hint


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"")
    with pytest.raises(InputError, match="not a folder"):
        open_dataset(f"imagefolder:{tmp_path / 'x'}")


def test_empty_classes_keep_their_labels_and_stray_images_are_mentioned(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "aa").mkdir()
    save(tmp_path / "stray.png", pixels(1)[0])
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.classes == ("a", "aa", "b", "c")
    assert set(dataset.labels.tolist()) == {0, 2, 3}
    assert "aa" in dataset.warnings[0]
    assert "1 images outside" in dataset.warnings[1]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="permissions do not bind this user")
def test_a_folder_that_may_not_be_listed_is_a_resource_error(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "b").chmod(0)
    try:
        with pytest.raises(ResourceError):
            open_dataset(f"imagefolder:{tmp_path}")
    finally:
        (tmp_path / "b").chmod(0o700)


def test_links_in_circles_come_to_an_end(tmp_path: Path) -> None:
    make_folder(tmp_path)
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "self").symlink_to(tmp_path / "a")
    (tmp_path / "a" / "knot").symlink_to(tmp_path / "a" / "knot")
    (tmp_path / "b" / "deep").mkdir()
    (tmp_path / "b" / "deep" / "back").symlink_to(tmp_path / "b")
    assert len(open_dataset(f"imagefolder:{tmp_path}")) == 12


def test_images_that_change_during_a_run_are_noticed(tmp_path: Path) -> None:
    dataset = open_dataset(f"imagefolder:{make_folder(tmp_path)}")
    save(tmp_path / "a" / "00.png", pixels(1, seed=5)[0])
    with pytest.raises(TrustError, match="changed"):
        dataset.read([0])
    (tmp_path / "a" / "00.png").unlink()
    with pytest.raises(TrustError, match="changed"):
        dataset.read([0])
    assert dataset.read([1]).shape[0] == 1


def test_pictures_are_turned_as_their_exif_says(tmp_path: Path) -> None:
    image = pixels(1, 6, 10)[0]
    turned = Image.Exif()
    turned[0x0112] = 6  # to be rotated 90 degrees clockwise for display
    save(tmp_path / "a" / "x.png", image, exif=turned)
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.image_size == (10, 6)
    assert np.array_equal(dataset.read([0])[0].permute(1, 2, 0).numpy(), np.rot90(image, -1))


def test_every_kind_of_8_bit_image_becomes_rgb(tmp_path: Path) -> None:
    image = Image.fromarray(pixels(1, 16, 16)[0])
    (tmp_path / "a").mkdir()
    for mode, suffix in [("L", "png"), ("P", "gif"), ("1", "png"), ("CMYK", "jpg"), ("RGB", "bmp"), ("RGB", "webp")]:
        image.convert(mode).save(tmp_path / "a" / f"{mode}.{suffix}")
    image.save(tmp_path / "a" / "several.tiff", save_all=True, append_images=[image.rotate(90)])
    image.save(tmp_path / "a" / "portable.ppm")
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.read(range(len(dataset))).shape == (8, 3, 16, 16)


def test_alpha_is_dropped_and_not_blended(tmp_path: Path) -> None:
    image = np.dstack([pixels(1)[0], np.arange(64, dtype=np.uint8).reshape(8, 8)])
    save(tmp_path / "a" / "x.png", image)
    read = open_dataset(f"imagefolder:{tmp_path}").read([0])[0].permute(1, 2, 0).numpy()
    assert np.array_equal(read, image[..., :3])


def test_different_sizes_are_brought_to_224_with_a_warning(tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(300, 400), (280, 260)]):
        save(tmp_path / "a" / f"{i}.png", pixels(1, height, width)[0])
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    assert dataset.image_size == (224, 224)
    assert dataset.geometry == "resize 256, crop 224, bilinear"
    assert "2 different sizes" in dataset.warnings[0]


INTERPOLATIONS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


@given(
    size=st.tuples(st.integers(20, 70), st.integers(20, 70)),
    resize=st.integers(9, 60),
    crop=st.integers(1, 9),
    interpolation=st.sampled_from(sorted(INTERPOLATIONS)),
)
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_geometry_equals_torchvision(
    tmp_path: Path, size: tuple[int, int], resize: int, crop: int, interpolation: str
) -> None:
    image = pixels(1, *size)[0]
    save(tmp_path / "a" / "x.png", image)
    options = {"resize": resize, "crop": crop, "interpolation": interpolation}
    read = open_dataset(f"imagefolder:{tmp_path}", **options).read([0])[0].permute(1, 2, 0).numpy()
    transform = Compose([Resize(resize, INTERPOLATIONS[interpolation]), CenterCrop(crop)])
    assert np.array_equal(read, np.asarray(transform(Image.fromarray(image))))
    in_memory = make_npz(tmp_path / "x.npz", images=image[None], labels=np.zeros(1, int))
    assert np.array_equal(read, open_dataset(f"npz:{in_memory}", **options).read([0])[0].permute(1, 2, 0).numpy())


def test_images_that_stay_different_or_grow_out_of_bounds_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", pixels(1, 20, 40)[0])
    save(tmp_path / "a" / "1.png", pixels(1, 20, 30)[0])
    with pytest.raises(InputError, match="still differ") as caught:
        open_dataset(f"imagefolder:{tmp_path}", resize=16)
    assert caught.value.hint == "--resize 16 --crop 16"
    with pytest.raises(InputError, match="smaller than the crop"):
        open_dataset(f"imagefolder:{tmp_path}", crop=24)
    save(tmp_path / "a" / "2.png", pixels(1, 1, 5000)[0])
    with pytest.raises(InputError, match="too large after resizing"):
        open_dataset(f"imagefolder:{tmp_path}")


def test_large_images_read_on_threads_are_the_same(tmp_path: Path) -> None:
    images = pixels(20, 80, 80)
    for i, image in enumerate(images):
        save(tmp_path / "a" / f"{i:02}.png", image)
    dataset = open_dataset(f"imagefolder:{tmp_path}")
    order = np.random.default_rng(0).permutation(20)
    assert np.array_equal(dataset.read(order).permute(0, 2, 3, 1).numpy(), images[order])


def test_real_jpeg_images_are_read_as_pillow_decodes_them(tmp_path: Path) -> None:
    shared = os.environ.get("LNBENCH_SHARED")
    if not shared:
        pytest.skip("LNBENCH_SHARED does not name the folder with real images")
    with tarfile.open(Path(shared) / "data" / "cifar10-jpeg-test.tar.gz") as archive:
        wanted = ((m, m.name.split("/")) for m in archive if m.isfile())
        some = [m for m, parts in wanted if parts[1] in ("airplane", "automobile") and parts[2] < "0050.jpg"]
        archive.extractall(tmp_path, some, filter="data")
    dataset = open_dataset(f"imagefolder:{tmp_path / 'test'}")
    assert dataset.classes == ("airplane", "automobile")
    assert dataset.image_size == (32, 32)
    assert len(dataset) == len(some) > 20
    first = np.asarray(Image.open(sorted((tmp_path / "test" / "airplane").iterdir())[0]))
    assert np.array_equal(dataset.read([0])[0].permute(1, 2, 0).numpy(), first)


# CIFAR


@pytest.mark.parametrize(("name", "kind"), [("cifar10", CIFAR10), ("cifar100", CIFAR100)])
def test_cifar_is_what_torchvision_reads(
    name: str, kind: type[CIFAR10], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cifar(tmp_path, kind, monkeypatch)
    for split in ("test", "train"):
        expected = kind(tmp_path, train=split == "train")
        for folder in (tmp_path, tmp_path / kind.base_folder):
            dataset = open_dataset(f"{name}:{folder}", split=split)
            assert np.array_equal(dataset.read(range(20)).permute(0, 2, 3, 1).numpy(), expected.data[:20])
            assert dataset.labels.tolist() == expected.targets
            assert list(dataset.classes) == expected.classes
            assert dataset.id == (name if split == "test" else f"{name}-train")


def test_cifar_files_that_are_missing_or_altered_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"data_batch_1 .* missing"):
        open_dataset(f"cifar10:{tmp_path}")
    folder = make_cifar(tmp_path, CIFAR10, monkeypatch) / CIFAR10.base_folder
    (folder / "data_batch_2").write_bytes(pickle.dumps(Dangerous()))
    (folder / "batches.meta").unlink()
    with pytest.raises(InputError) as caught:
        open_dataset(f"cifar10:{tmp_path}")
    assert "batches.meta missing, data_batch_2 altered" in caught.value.found


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A web server with a small CIFAR-10 in an empty home; the folder that it serves."""
    site = make_cifar(tmp_path / "site", CIFAR10, monkeypatch)
    archive = site / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(site / CIFAR10.base_folder, CIFAR10.base_folder)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    monkeypatch.setattr(CIFAR10, "url", f"http://127.0.0.1:{running.server_port}/{CIFAR10.filename}")
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("LNBENCH_OFFLINE", raising=False)
    yield site
    running.shutdown()
    running.server_close()


def cached(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "lnbench" / "data" / CIFAR10.base_folder


def test_cifar_is_downloaded_once_and_prints_nothing(
    server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = open_dataset("cifar10")
    assert capsys.readouterr().out == ""
    assert not (cached(tmp_path).parent / CIFAR10.filename).exists()
    shutil.rmtree(server)
    monkeypatch.setenv("LNBENCH_OFFLINE", "1")
    assert open_dataset("cifar10").sha256 == first.sha256
    assert first.source == "cifar10"


def test_a_download_can_be_forbidden(server: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LNBENCH_OFFLINE", "1")
    with pytest.raises(ResourceError, match="LNBENCH_OFFLINE"):
        open_dataset("cifar10")
    assert not cached(tmp_path).exists()


@pytest.mark.parametrize("damage", ["gone", "cut", "other"])
def test_a_failed_download_says_why_and_leaves_the_next_one_clean(server: Path, tmp_path: Path, damage: str) -> None:
    archive = server / CIFAR10.filename
    whole = archive.read_bytes()
    if damage == "gone":
        archive.unlink()
    else:
        archive.write_bytes(whole[: len(whole) // 2] if damage == "cut" else b"<html>maintenance</html>")
    with pytest.raises(ResourceError, match="cannot be downloaded") as caught:
        open_dataset("cifar10")
    assert ("404" if damage == "gone" else "corrupted") in caught.value.found
    archive.write_bytes(whole)
    assert len(open_dataset("cifar10")) == 20


@pytest.mark.parametrize("lost", ["test_batch", "batches.meta"])
def test_a_half_unpacked_download_is_repaired(server: Path, tmp_path: Path, lost: str) -> None:
    digest = open_dataset("cifar10").sha256
    (cached(tmp_path) / lost).unlink()
    assert open_dataset("cifar10").sha256 == digest


def test_a_cache_that_cannot_be_written_is_a_resource_error(server: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"a file where the folder should be")
    with pytest.raises(ResourceError, match="cache"):
        open_dataset("cifar10")


# Demo


@pytest.fixture(scope="module")
def demo() -> DemoDataset:
    return DemoDataset()


@pytest.fixture(scope="module")
def demo_train() -> DemoDataset:
    return DemoDataset("train")


def test_demo_pixels_are_the_same_bytes_on_every_machine(demo: DemoDataset) -> None:
    first = demo.read(range(16)).permute(0, 2, 3, 1).contiguous().numpy()
    assert (
        hashlib.sha256(first.tobytes()).hexdigest()
        == "d810f4f6d82249e4d2ddef9dd46f89ccefe72479ec470fbb6b9858cc8a722985"
    )
    assert demo.sha256 == "6d3b69945ec037dc9335fce4603ff1f7a3e1d2048ac5a65334dda6d7958a7265"


def test_demo_classes_are_balanced(demo: DemoDataset, demo_train: DemoDataset) -> None:
    assert (len(demo), len(demo_train)) == (1_000, 8_000)
    assert np.bincount(demo.labels).tolist() == [100] * 10
    assert np.bincount(demo_train.labels).tolist() == [800] * 10
    assert len(demo.classes) == 10


def test_no_demo_image_is_in_training_and_test(demo: DemoDataset, demo_train: DemoDataset) -> None:
    seen = {image.tobytes() for data in (demo, demo_train) for image in data.read(range(len(data))).numpy()}
    assert len(seen) == 9_000


@given(st.lists(st.integers(0, 999), min_size=1, max_size=6))
@settings(max_examples=20, deadline=None)
def test_a_demo_image_depends_on_its_index_only(demo: DemoDataset, indices: list[int]) -> None:
    drawn = torch.from_numpy(draw(np.array(indices), "test")).permute(0, 3, 1, 2)
    assert torch.equal(drawn, demo.read(indices))
