"""Degraded copies on disk, and the sheet that shows them."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from robustbench_ln.corrupting import plan_corrupted, write_corrupted
from robustbench_ln.corruptions import corrupt
from robustbench_ln.errors import InputError, ResourceError, UsageError
from robustbench_ln.planning import visiting_order
from robustbench_ln.previewing import preview, save_sheet
from tests.conftest import toy_arrays, toy_data


def write(out: Path, **options: object) -> int:
    return write_corrupted(plan_corrupted(toy_data(20, size=32), out, **options))  # type: ignore[arg-type]


def test_an_archive_holds_the_pixels_of_corrupt(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    assert write(out, corruption="fog,contrast", severity="2,4", seed=5, batch_size=3) == 4
    images, labels = toy_arrays(20, size=32)
    with np.load(out) as archive:
        assert set(archive) == {"fog/2", "fog/4", "contrast/2", "contrast/4", "labels", "indices", "settings"}
        assert np.array_equal(archive["labels"], labels)
        assert np.array_equal(archive["indices"], np.arange(20))
        expected = corrupt(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), "fog", 4, seed=5)
        assert archive["fog/4"].dtype == np.uint8
        assert np.array_equal(archive["fog/4"], expected.permute(0, 2, 3, 1).numpy())
    assert not list(tmp_path.glob("*.partial"))


def test_a_limit_takes_the_images_that_eval_scores(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    write(out, corruption="fog", severity=1, seed=7, limit=6)
    whole = tmp_path / "whole.npz"
    write(whole, corruption="fog", severity=1, seed=7)
    chosen = np.sort(visiting_order(7, 20)[:6].numpy())
    with np.load(out) as few, np.load(whole) as many:
        assert np.array_equal(few["indices"], chosen)
        assert np.array_equal(few["fog/1"], many["fog/1"][chosen])
        assert np.array_equal(few["labels"], many["labels"][chosen])


def test_noise_is_clipped_and_rounded(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    write(out, noise="agn", sigma="0,0.5")
    images, _ = toy_arrays(20, size=32)
    with np.load(out) as archive:
        assert set(archive) >= {"agn/0", "agn/0.5"}
        assert np.array_equal(archive["agn/0"], images)
        # x (1 + xi) is centred where nothing is clipped.
        middle = (images > 60) & (images < 100)
        assert abs(archive["agn/0.5"][middle].astype(float).mean() / images[middle].mean() - 1) < 0.03


def test_an_archive_grows_and_is_never_overwritten_by_another_seed(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    assert write(out, corruption="contrast", severity=1) == 1
    before = out.read_bytes()
    assert write(out, corruption="contrast", severity=1) == 0
    assert out.read_bytes() == before
    assert write(out, corruption="contrast,frost", severity="1:2") == 3
    with np.load(out) as archive:
        assert set(archive) >= {"contrast/1", "contrast/2", "frost/1", "frost/2"}
    with pytest.raises(UsageError, match="seed"):
        write(out, corruption="contrast", severity=1, seed=1)
    with pytest.raises(UsageError, match="number of images"):
        write(out, corruption="contrast", severity=1, limit=3)


def test_an_interrupted_archive_goes_on(tmp_path: Path) -> None:
    out, straight = tmp_path / "out.npz", tmp_path / "straight.npz"
    job = plan_corrupted(toy_data(20, size=32), out, corruption="fog,contrast", severity="1:2")
    seen: list[str] = []

    def stop_later(condition: object, _n: int) -> None:
        seen.append(str(condition))
        if len(seen) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_corrupted(job, on_images=stop_later)
    assert not out.exists()
    write_corrupted(job)
    write(straight, corruption="fog,contrast", severity="1:2")
    assert out.read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("layout", ["npz", "cifar10c", "imagenetc"])
def test_a_second_command_on_one_output_waits_and_finds_the_work_done(tmp_path: Path, layout: str) -> None:
    out = tmp_path / ("out.npz" if layout == "npz" else "out")
    job = plan_corrupted(toy_data(20, size=32), out, corruption="contrast", layout=layout)
    made: list[int] = []
    second = threading.Thread(target=lambda: made.append(write_corrupted(job)))

    def start_second(_condition: object, _n: int) -> None:
        if second.ident is None:
            second.start()
        second.join(0.1)
        assert second.is_alive()

    assert write_corrupted(job, on_images=start_second) == 5
    second.join(60)
    assert made == [0]


@pytest.mark.parametrize("layout", ["npz", "cifar10c", "imagenetc"])
def test_what_a_kill_left_is_cleared(tmp_path: Path, layout: str) -> None:
    out = tmp_path / ("out.npz" if layout == "npz" else "out")
    options = {"corruption": "contrast", "layout": layout}
    write(out, **options)
    folder = tmp_path if layout == "npz" else out
    name = {"npz": "out.npz", "cifar10c": "fog.npy", "imagenetc": "lnbench.json"}[layout]
    left, mine = folder / f".{name}.k2j3.tmp", tmp_path / ".mine.npz.k2j3.tmp"
    for path in (left, mine):
        path.write_bytes(b"half")
    assert write(out, **options) == 0
    assert not left.exists()
    assert mine.exists()


@pytest.mark.parametrize("layout", ["npz", "cifar10c", "imagenetc"])
def test_a_run_refused_before_its_first_image_leaves_nothing_to_go_on_from(tmp_path: Path, layout: str) -> None:
    out = tmp_path / ("out.npz" if layout == "npz" else "out")
    severity = "1:5" if layout == "cifar10c" else 5
    options: dict[str, Any] = {
        "corruption": "defocus_blur",
        "severity": severity,
        "suite": "imagenet-c",
        "layout": layout,
    }
    job = plan_corrupted(toy_data(4, size=4), out, **options)
    with pytest.raises(InputError, match="too small"):
        write_corrupted(job)
    assert [path.name for path in tmp_path.rglob("*") if path.name not in ("out", ".lock", ".out.npz.lock")] == []
    assert write(out, **options, seed=1) == (5 if layout == "cifar10c" else 1)


def test_something_else_is_never_overwritten(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    np.savez(out, images=np.zeros(3))
    with pytest.raises(InputError, match="not written by"):
        write(out, corruption="contrast")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="other things"):
        write(tmp_path, corruption="contrast", layout="cifar10c")


def test_the_cifar_layout_is_the_fields(tmp_path: Path) -> None:
    out = tmp_path / "CIFAR-10-C"
    assert write(out, corruption="fog,contrast", layout="cifar10c") == 10
    images, labels = toy_arrays(20, size=32)
    stored = np.load(out / "fog.npy", mmap_mode="r")
    assert stored.shape == (100, 32, 32, 3)
    assert np.array_equal(np.load(out / "labels.npy"), np.tile(labels, 5))
    tensor = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    for severity in range(1, 6):
        expected = corrupt(tensor, "fog", severity).permute(0, 2, 3, 1).numpy()
        assert np.array_equal(stored[20 * (severity - 1) : 20 * severity], expected)
    assert write(out, corruption="fog,contrast,frost", layout="cifar10c") == 5
    with pytest.raises(UsageError, match="seed"):
        write(out, corruption="fog", layout="cifar10c", seed=9)
    with pytest.raises(UsageError, match="1 to 5"):
        write(tmp_path / "other", corruption="fog", severity="1:3", layout="cifar10c")


def test_the_imagenet_layout_is_the_fields(tmp_path: Path) -> None:
    out = tmp_path / "c"
    assert write(out, corruption="contrast", severity="1,3", layout="imagenetc") == 2
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*.JPEG"))
    assert len(files) == 40
    _, labels = toy_arrays(20, size=32)
    assert files[0] == f"contrast/1/{'abcdefghij'[labels[0]]}/00.JPEG"
    with Image.open(out / files[0]) as image:
        assert image.size == (32, 32)
    assert write(out, corruption="contrast", severity="1:3", layout="imagenetc") == 1


def test_requests_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for options, what in (
        ({"layout": "zip"}, "unknown layout"),
        ({"layout": "cifar10c", "noise": "agn"}, "corruptions only"),
        ({"seed": -1}, "--seed"),
        ({"suite": "mnist-c", "corruption": "all"}, "unknown suite"),
        ({"corruption": "fogg"}, "unknown corruption"),
    ):
        with pytest.raises(UsageError, match=what):
            write(tmp_path / "x.npz", **options)
    with pytest.raises(UsageError, match=r"\.npz"):
        write(tmp_path / "x.zip", corruption="fog")


def test_a_full_disk_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = plan_corrupted(toy_data(20, size=32), tmp_path / "out.npz", corruption="contrast", severity=1)

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(ResourceError, match="No space left"):
        write_corrupted(job)
    assert not (tmp_path / "out.npz").exists()


@pytest.mark.parametrize("suffix", [".png", ".html"])
def test_a_sheet_shows_every_cell(tmp_path: Path, suffix: str) -> None:
    sheet = preview(index=3, corruption="fog,contrast", severity="1,5", noise="agn", sigma="0.5")
    assert [(name, [level for level, _ in cells]) for name, cells in sheet.rows] == [
        ("agn", [0.5]),
        ("fog", [1.0, 5.0]),
        ("contrast", [1.0, 5.0]),
    ]
    out = tmp_path / f"sheet{suffix}"
    save_sheet(sheet, out)
    if suffix == ".png":
        with Image.open(out) as image:
            assert min(image.size) > 300
    else:
        text = out.read_text(encoding="utf-8")
        assert text.count("<img ") == 8
        assert "http://" not in text
        assert "https://" not in text


def test_a_sheet_has_room_for_every_warning(tmp_path: Path) -> None:
    sheet = preview(corruption="contrast", severity=1)

    def drawn(*warnings: str) -> Image.Image:
        save_sheet(replace(sheet, warnings=warnings), tmp_path / "sheet.png")
        return Image.open(tmp_path / "sheet.png").convert("RGB")

    none, one, two, long = drawn(), drawn("short"), drawn("short", "other"), drawn("many words " * 40)
    assert none.height < one.height < two.height < long.height
    margin = np.asarray(long)[: long.height - none.height, -4:]
    assert (margin == 255).all()  # nothing runs over the edge


def test_a_sheet_of_an_image_file(tmp_path: Path) -> None:
    name = tmp_path / "<b>photo.png"
    Image.fromarray(toy_arrays(1, size=64)[0][0]).save(name)
    sheet = preview(image=name, corruption="contrast")
    save_sheet(sheet, tmp_path / "sheet.html")
    assert "<b>" not in (tmp_path / "sheet.html").read_text(encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read"):
        preview(image=tmp_path / "missing.png")
    with pytest.raises(UsageError, match="no such image"):
        preview(index=10**6)
    with pytest.raises(UsageError, match=r"\.png or \.html"):
        save_sheet(sheet, tmp_path / "sheet.gif")


def test_settings_are_recorded(tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    write(out, corruption="frost", severity=1, seed=4)
    with np.load(out) as archive:
        settings = json.loads(str(archive["settings"]))
    assert settings["seed"] == 4
    assert settings["suite"] == "cifar10-c"
    assert len(settings["frost textures"]) == 64


@pytest.mark.parametrize("layout", ["npz", "cifar10c"])
def test_frost_textures_are_fixed_from_the_first_frost_on(tmp_path: Path, layout: str) -> None:
    out = tmp_path / ("out.npz" if layout == "npz" else "out")
    textures = tmp_path / "frost"
    textures.mkdir()
    for name in ("frost1.png", "frost2.png", "frost3.png", "frost4.jpg", "frost5.jpg"):
        Image.fromarray(np.full((240, 250, 3), 90, np.uint8)).save(textures / name)
    write(out, corruption="contrast", layout=layout)
    write(out, corruption="frost", layout=layout)
    write(out, corruption="contrast", layout=layout)
    with pytest.raises(UsageError, match="frost textures"):
        write(out, corruption="contrast,frost", layout=layout, frost_textures=textures)
