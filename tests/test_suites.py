"""Suites read from YAML, and laws that hold for every corruption of every suite."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustbench_ln.corruptions import corrupt, list_suites, load_suite, nearest_suite
from robustbench_ln.corruptions.conditions import parse_corruptions, parse_severities, plan_corruptions
from robustbench_ln.corruptions.suites import FAMILIES, SEVERITIES, kernels
from robustbench_ln.errors import InputError, UsageError

COMMON = [
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
]
EXTRA = ["speckle_noise", "gaussian_blur", "spatter", "saturate"]
DETERMINISTIC = {
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
}


def pictures(n: int, size: int | tuple[int, int] = 32, seed: int = 0) -> torch.Tensor:
    """Smooth random 8-bit images, with saturated and flat regions."""
    height, width = (size, size) if isinstance(size, int) else size
    coarse = torch.from_numpy(np.random.default_rng(seed).uniform(-60, 315, (n, 3, 5, 5)).astype(np.float32))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return smooth.clamp(0, 255).to(torch.uint8)


# What is in the suites


@pytest.mark.parametrize("name", ["cifar10-c", "tiny-imagenet-c", "imagenet-c"])
def test_a_shipped_suite_has_the_nineteen_corruptions_in_the_fields_order(name: str) -> None:
    suite = load_suite(name)
    assert list(suite.corruptions) == COMMON + EXTRA
    assert [one.name for one in suite.corruptions.values() if one.extra] == EXTRA
    assert {one.name for one in suite.corruptions.values() if not one.is_random} == DETERMINISTIC
    assert all(len(one.constants) == 5 and one.family in FAMILIES for one in suite.corruptions.values())


def test_constants_are_the_generators() -> None:
    assert [c["std"] for c in load_suite("cifar10-c")["gaussian_noise"].constants] == [0.04, 0.06, 0.08, 0.09, 0.10]
    assert load_suite("imagenet-c")["elastic_transform"].constants[0] == {
        "multiplier": 244.0,
        "alpha": 2.0,
        "sigma": 0.7,
        "affine": 0.1,
    }
    assert load_suite("tiny-imagenet-c")["glass_blur"].constants[3] == {"sigma": 0.7, "max_delta": 2, "iterations": 1}


def test_every_kernel_is_used_by_a_suite() -> None:
    used = {one.kernel for name in list_suites() for one in load_suite(name).corruptions.values()}
    assert used == set(kernels())


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (8, "cifar10-c"),
        (44, "cifar10-c"),
        (46, "tiny-imagenet-c"),
        (64, "tiny-imagenet-c"),
        (224, "imagenet-c"),
        (500, "imagenet-c"),
    ],
)
def test_the_suite_nearest_in_size_is_taken(size: int, expected: str) -> None:
    assert nearest_suite((size, size + 100)).name == expected


# A user's own

GOOD = """
description: mine
size: 32
corruptions:
  hiss: {kernel: noise.gaussian_noise, family: noise, std: [0.1, 0.2, 0.3, 0.4, 0.5]}
  soft: {kernel: blur.gaussian_blur, family: blur, sigma: 1}
"""


def test_a_users_suite_works_and_is_named_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    suite = load_suite(str(path))
    assert suite.name.startswith("mine@")
    images = pictures(3)
    soft = corrupt(images, "soft", 1, suite=str(path))
    assert torch.equal(soft, corrupt(images, "soft", 5, suite=str(path)))
    path.write_text(GOOD.replace("sigma: 1", "sigma: 2"))
    assert load_suite(str(path)).name != suite.name


@pytest.mark.parametrize(
    ("old", "new", "line", "what"),
    [
        ("sigma: 1", "sigmas: 1", 6, "sigma"),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", "[0.1, 0.2]", 5, "wrong count"),
        ("sigma: 1", "sigma: wide", 6, "not a number"),
        ("sigma: 1", "sigma: .nan", 6, "not a number"),
        ("sigma: 1", "sigma: 1e9", 6, "not a number"),
        ("blur.gaussian_blur", "blur.gausian_blur", 6, "gausian"),
        ("blur.gaussian_blur", "os.system", 6, "os.system"),
        ("family: blur", "family: fuzz", 6, "family"),
        ("size: 32", "size: big", 3, "pixels"),
        ("size: 32", "size: 32\nsize: 64", 4, "twice"),
        ("size: 32", "size: 32\ncolour: red", 4, "colour"),
        ("size: 32", "size: &a 32", 3, "anchors"),
        ("size: 32", "size: !!python/name:os.system", 3, "tags"),
        *(("  soft: {", f"  {name}: {{", 6, "meaning already") for name in ("clean", "all", "common", "extra", "agn")),
        ("  soft: {", "  Soft: {", 6, "not a name"),
        ("[0.1, 0.2, 0.3, 0.4, 0.5]", "[0.1, 0.2, -0.3, 0.4, 0.5]", 5, "not a number from 0 to"),
        ("family: blur, ", "family: blur, extra: 1, ", 6, "true nor false"),
    ],
)
def test_a_suite_with_a_mistake_is_refused_with_its_line(
    tmp_path: Path, old: str, new: str, line: int, what: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(InputError) as caught:
        load_suite(str(path))
    assert f"line {line}" in str(caught.value)
    assert what in str(caught.value)


@pytest.mark.parametrize(
    ("corruption", "constant", "value"),
    [
        *(("gaussian_noise", "std", -0.1), ("speckle_noise", "std", -0.1), ("shot_noise", "photons", 0)),
        *(("impulse_noise", "amount", -0.1), ("impulse_noise", "amount", 1.1)),
        *(("gaussian_blur", "sigma", -1), ("defocus_blur", "radius", -1), ("zoom_blur", "step", 0)),
        *(("glass_blur", "max_delta", -1), ("glass_blur", "max_delta", 0), ("glass_blur", "iterations", -1)),
        *(("snow", "zoom", 0.5), ("snow", "mix", 2), ("fog", "amount", -1), ("fog", "wibble", 0)),
        *(("jpeg_compression", "quality", 0), ("jpeg_compression", "quality", 96), ("pixelate", "factor", 1.5)),
        # Sound for larger images only.
        *(("glass_blur", "max_delta", 16), ("pixelate", "factor", 0.01), ("defocus_blur", "radius", 40)),
    ],
)
def test_constants_without_sense_are_found_before_the_work(
    tmp_path: Path, corruption: str, constant: str, value: float
) -> None:
    one = load_suite("cifar10-c")[corruption]
    line = {"kernel": one.kernel, "family": one.family, **one.constants[0], constant: value}
    path = tmp_path / "mine.yaml"
    path.write_text(f"description: mine\nsize: 32\ncorruptions:\n  mine: {json.dumps(line)}\n")
    with pytest.raises(InputError, match=r"line 4: corruptions\.mine"):
        load_suite(str(path))


@pytest.mark.parametrize("content", ["", "[1, 2]", "size: 3", "{", "a: b: c", "x" * (2**20 + 1), "\x00"])
def test_what_is_no_suite_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(content)
    with pytest.raises(InputError):
        load_suite(str(path))


def test_an_unknown_suite_and_a_missing_file_are_told() -> None:
    with pytest.raises(UsageError, match="imagenet-c"):
        load_suite("imagenet-d")
    with pytest.raises(InputError, match="No such file"):
        load_suite("missing.yaml")


# What is asked for


def test_groups_and_names() -> None:
    suite = load_suite("cifar10-c")
    assert parse_corruptions("all", suite) == COMMON + EXTRA
    assert parse_corruptions("common", suite) == COMMON
    assert parse_corruptions("fog,extra,fog", suite) == ["fog", *EXTRA]
    with pytest.raises(UsageError, match="glass_blur"):
        parse_corruptions("glas_blur", suite)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1:5", (1, 2, 3, 4, 5)),
        ("3", (3,)),
        ("5,1:2", (5, 1, 2)),
        (4, (4,)),
        ([2, 3], (2, 3)),
        (np.int64(4), (4,)),
        (np.float32(2), (2,)),
    ],
)
def test_severities(text: str | int | list[int], expected: tuple[int, ...]) -> None:
    assert parse_severities(text) == expected


@pytest.mark.parametrize("text", ["0", "6", "2:1", "1:2:3", "1.5", "", "x", "1:", "-1", "nan", "٣"])
def test_bad_severities(text: str) -> None:
    with pytest.raises(UsageError):
        parse_severities(text)


def test_only_random_corruptions_are_repeated() -> None:
    suite = load_suite("cifar10-c")
    planned = plan_corruptions(["fog", "contrast"], (1, 2), suite, repeats=3)
    assert [(one.name, one.level, one.repeat) for one in planned] == [
        *(("fog", level, repeat) for level in (1.0, 2.0) for repeat in range(3)),
        ("contrast", 1.0, 0),
        ("contrast", 2.0, 0),
    ]


# Laws over every corruption


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    return pictures(8)


@pytest.mark.parametrize("name", COMMON + EXTRA)
class TestEveryCorruption:
    def test_keeps_form_and_leaves_its_input_alone(self, name: str, batch: torch.Tensor) -> None:
        before = batch.clone()
        for severity in SEVERITIES:
            made = corrupt(batch, name, severity)
            assert made.dtype == torch.uint8
            assert made.shape == batch.shape
            assert made.data_ptr() != batch.data_ptr()
        assert torch.equal(batch, before)

    def test_does_not_depend_on_how_images_lie_in_memory(self, name: str, batch: torch.Tensor) -> None:
        expected = corrupt(batch, name, 3)
        wide = torch.cat([batch, batch], dim=3)
        for same in (
            batch.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),
            batch.contiguous(memory_format=torch.channels_last),
            wide[..., :32],
        ):
            assert not same.is_contiguous()
            assert torch.equal(corrupt(same, name, 3), expected)

    def test_is_the_same_for_an_image_alone_and_in_any_company(self, name: str, batch: torch.Tensor) -> None:
        whole = corrupt(batch, name, 5, seed=3)
        order = torch.tensor([5, 2, 7])
        part = corrupt(batch[order], name, 5, seed=3, indices=order)
        alone = corrupt(batch[2:3], name, 5, seed=3, indices=torch.tensor([2]))
        assert torch.equal(part, whole[order])
        assert torch.equal(alone, whole[2:3])

    def test_draws_by_seed_image_and_repeat(self, name: str, batch: torch.Tensor) -> None:
        made = corrupt(batch, name, 3, seed=1)
        assert torch.equal(made, corrupt(batch, name, 3, seed=1))
        others = (
            corrupt(batch, name, 3, seed=2),
            corrupt(batch, name, 3, seed=1, repeat=1),
            corrupt(batch, name, 3, seed=1, indices=torch.arange(8) + 100),
        )
        for other in others:
            assert torch.equal(made, other) == (name in DETERMINISTIC)

    def test_does_not_depend_on_threads(self, name: str, batch: torch.Tensor) -> None:
        made = []
        before = torch.get_num_threads()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            made.append(corrupt(batch, name, 4))
        torch.set_num_threads(before)
        assert torch.equal(*made)

    @pytest.mark.parametrize("size", [(24, 40), (33, 31), (70, 50)])
    def test_runs_at_other_sizes(self, name: str, size: tuple[int, int]) -> None:
        images = pictures(2, size)
        made = corrupt(images, name, 3)
        assert made.shape == images.shape
        assert not torch.equal(made, images)

    def test_runs_at_224(self, name: str) -> None:
        images = pictures(2, 224)
        made = corrupt(images, name, 1, seed=0)
        assert torch.equal(made[1:], corrupt(images[1:], name, 1, seed=0, indices=torch.tensor([1])))

    def test_an_image_of_one_pixel_works_or_is_refused_in_words(self, name: str) -> None:
        for size in (1, 2, 3, 5):
            try:
                made = corrupt(pictures(1, size), name, 5)
            except InputError:
                continue
            assert made.shape == (1, 3, size, size)

    def test_an_empty_batch_stays_empty(self, name: str) -> None:
        assert corrupt(pictures(0), name, 2).shape == (0, 3, 32, 32)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(COMMON + EXTRA),
    severity=st.sampled_from(SEVERITIES),
    value=st.tuples(*[st.integers(0, 255)] * 3),
    seed=st.integers(0, 2**40),
)
def test_flat_images_are_no_special_case(name: str, severity: int, value: tuple[int, int, int], seed: int) -> None:
    flat = torch.tensor(value, dtype=torch.uint8)[None, :, None, None].expand(2, 3, 32, 32).contiguous()
    made = corrupt(flat, name, severity, seed=seed)
    assert made.shape == flat.shape


def test_wrong_images_and_severities_are_refused() -> None:
    with pytest.raises(InputError, match="8-bit RGB"):
        corrupt(pictures(1).float(), "fog", 1)
    with pytest.raises(InputError, match="8-bit RGB"):
        corrupt(pictures(1)[:, :1], "fog", 1)
    with pytest.raises(UsageError, match="severity"):
        corrupt(pictures(1), "fog", 6)
    with pytest.raises(UsageError, match="fog"):
        corrupt(pictures(1), "fogg", 1)


def test_jpeg_parity_is_a_round_trip_at_quality_85() -> None:
    import io

    from PIL import Image

    images = pictures(2)
    plain = corrupt(images, "fog", 2)
    made = corrupt(images, "fog", 2, jpeg_parity=True)
    for one, expected in zip(made, plain, strict=True):
        content = io.BytesIO()
        Image.fromarray(expected.permute(1, 2, 0).numpy()).save(content, "JPEG", quality=85)
        assert np.array_equal(one.permute(1, 2, 0).numpy(), np.asarray(Image.open(content)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", COMMON + EXTRA)
def test_cuda_gives_the_same_pixels(name: str) -> None:
    images = pictures(4, 64)
    here, there = corrupt(images, name, 3), corrupt(images.cuda(), name, 3).cpu()
    difference = (here.int() - there.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 1e-4
