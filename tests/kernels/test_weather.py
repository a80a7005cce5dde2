"""Snow, frost, fog and spatter: each step recomputed in plain NumPy or SciPy, and the same bytes for any batch."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import scipy.ndimage as ndi
import torch
from PIL import Image
from torch import Tensor

from robustbench_ln.corruptions.kernels import weather
from robustbench_ln.corruptions.kernels.textures import (
    ORIGINAL_FILES,
    FrostTextures,
    load_textures,
    procedural_textures,
    resize_bilinear,
    scaled_atlas,
)
from robustbench_ln.corruptions.rng import ImageRng
from robustbench_ln.errors import InputError

SNOW = {"loc": 0.15, "scale": 0.3, "zoom": 1.75, "threshold": 0.55, "radius": 10, "sigma": 4, "mix": 0.9}
WATER = {"loc": 0.65, "std": 0.3, "sigma": 1.0, "threshold": 0.69, "mix": 0.5, "mud": False}
MUD = {"loc": 0.65, "std": 0.1, "sigma": 0.7, "threshold": 0.69, "mix": 0.6, "mud": True}
FOG = {"amount": 0.75, "wibble": 2.5, "map_size": 32}
FROST = {"image_weight": 0.9, "frost_weight": 0.4, "texture_scale": 0.2}

Kernel = Callable[[Tensor, ImageRng], Tensor]
KERNELS: dict[str, Kernel] = {
    "snow": lambda x, rng: weather.snow(x, rng, **SNOW),
    "frost": lambda x, rng: weather.frost(x, rng, **FROST, textures=procedural_textures()),
    "fog": lambda x, rng: weather.fog(x, rng, **FOG),
    "water": lambda x, rng: weather.spatter(x, rng, **WATER),
    "mud": lambda x, rng: weather.spatter(x, rng, **MUD),
}
CPU = torch.device("cpu")


def pictures(n: int, height: int = 32, width: int = 32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def streams(n: int, start: int = 0) -> ImageRng:
    return ImageRng(3, "test", torch.arange(start, start + n))


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return KERNELS[request.param]


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class TestAllKernels:
    def test_batch_size_changes_no_pixel(self, kernel: Kernel) -> None:
        images = pictures(64)
        whole = kernel(images, streams(64))
        sevens = torch.cat([kernel(images[i : i + 7], streams(len(images[i : i + 7]), i)) for i in range(0, 64, 7)])
        assert torch.equal(whole, sevens)
        assert torch.equal(whole[41:42], kernel(images[41:42], streams(1, 41)))

    @pytest.mark.usefixtures("two_threads")
    def test_threads_change_no_pixel(self, kernel: Kernel) -> None:
        images = pictures(5, 71, 90)
        two = kernel(images, streams(5))
        torch.set_num_threads(1)
        assert torch.equal(kernel(images, streams(5)), two)

    @pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 4), (33, 47), (64, 31), (230, 9), (1, 40)])
    def test_any_size(self, kernel: Kernel, size: tuple[int, int]) -> None:
        images = pictures(2, *size)
        before = images.clone()
        out = kernel(images, streams(2))
        assert (out.shape, out.dtype, out.is_contiguous()) == (images.shape, torch.uint8, True)
        assert torch.equal(images, before)

    def test_no_images(self, kernel: Kernel) -> None:
        assert kernel(pictures(0), streams(0)).shape == (0, 3, 32, 32)

    def test_redraw_differs(self, kernel: Kernel) -> None:
        images = pictures(1).expand(2, -1, -1, -1).contiguous()
        first, second = kernel(images, streams(2))
        assert not torch.equal(first, second)


class TestFields:
    def test_normal_steps_are_standard_normal(self) -> None:
        drawn = weather._normal_steps(streams(20), 100, 99) / weather._STEPS
        assert abs(float(drawn.mean())) < 0.01
        assert abs(float(drawn.std()) - 1) < 0.01
        assert float((drawn.abs() < 1.959964).double().mean()) == pytest.approx(0.95, abs=0.002)

    def test_normal_steps_stay_below_12_bits(self) -> None:
        assert float(weather._normal_quantiles(CPU).abs().max()) < 1 << 12

    @pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0])
    def test_smoothing_is_the_gaussian_filter(self, sigma: float) -> None:
        maps = weather._normal_steps(streams(3), 45, 70)
        smooth = weather._smooth_columns(maps, sigma) / weather._WEIGHT
        expected = ndi.gaussian_filter1d(maps.double().numpy(), sigma, axis=2, mode="nearest", truncate=4)
        assert np.abs(smooth.numpy() - expected).max() < 2  # of 512 steps
        rows = weather._smooth_rows(maps.permute(2, 1, 0).contiguous(), sigma) / weather._WEIGHT
        assert torch.equal(rows.permute(2, 1, 0), smooth)


class TestSnow:
    def test_without_flakes_and_whitening_nothing_changes(self) -> None:
        images = pictures(4)
        assert torch.equal(weather.snow(images, streams(4), **{**SNOW, "threshold": 9.0, "mix": 1.0}), images)

    def test_flakes_fall_twice_the_second_time_turned(self) -> None:
        snow = weather.snow(torch.zeros(8, 3, 40, 40, dtype=torch.uint8), streams(8), **{**SNOW, "mix": 1.0})
        assert torch.equal(snow, snow.flip(2, 3))
        assert 0 < float(snow.double().mean()) < 100

    def test_whitening_is_the_formula(self) -> None:
        images = pictures(4)
        x = images.double() / 255
        grey = (0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]).unsqueeze(1)
        expected = (0.7 * x + 0.3 * torch.maximum(x, 1.5 * grey + 0.5)).clamp(0, 1) * 255
        assert float((weather._whiten(images, 0.7) - expected).abs().max()) < 1.001

    @pytest.mark.parametrize(("size", "zoom"), [(32, 1.0), (32, 1.75), (32, 2.25), (224, 4.0), (224, 4.5), (33, 3.0)])
    def test_enlargement_is_scipys_zoom_of_the_middle(self, size: int, zoom: float) -> None:
        n = math.ceil(size / zoom)
        enlarged = ndi.zoom(np.eye(n), (zoom, 1), order=1)
        start = (len(enlarged) - size) // 2
        ours = weather._enlargement(size, zoom, CPU).double() / weather._WEIGHT
        assert np.abs(ours.numpy() - enlarged[start : start + size])[:-1].max() < 1e-3
        # SciPy's last point may fall outside by a rounding error, and is then 0.
        assert torch.allclose(ours.sum(dim=1), torch.ones(size, dtype=torch.float64), atol=1e-3)


def coordinate_textures() -> FrostTextures:
    """Five textures whose pixels tell texture, row and column."""
    rows, columns = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    images = tuple(torch.stack([torch.full_like(rows, i), rows, columns]).to(torch.uint8) for i in range(5))
    return FrostTextures("procedural", "test", images)


class TestFrost:
    def test_pieces_are_cut_as_the_generators_cut_them(self) -> None:
        black = torch.zeros(4000, 3, 40, 50, dtype=torch.uint8)
        constants = {"image_weight": 1.0, "frost_weight": 1.0, "texture_scale": 1.0}
        frost = weather.frost(black, streams(4000), **constants, textures=coordinate_textures())
        which, top, left = frost[:, :, 0, 0].unbind(1)
        assert which.bincount().min() > 700
        # randint(0, 60 - 40) and randint(0, 80 - 50) leave out the last possible row and column.
        assert (top.min(), top.max(), left.min(), left.max()) == (0, 19, 0, 29)
        assert torch.equal(
            frost[:, 1], (top[:, None] + torch.arange(40))[:, :, None].expand(-1, -1, 50).to(torch.uint8)
        )
        assert torch.equal(frost[:, 2], (left[:, None] + torch.arange(50))[:, None].expand(-1, 40, -1).to(torch.uint8))

    @pytest.mark.parametrize(("image_weight", "frost_weight"), [(1.0, 0.2), (0.85, 0.4), (0.6, 0.75)])
    def test_blend_is_cut_off_in_double_precision(self, image_weight: float, frost_weight: float) -> None:
        table = weather._blend_table(image_weight, frost_weight, CPU).view(256, 256)
        for image, texture in ((0, 0), (255, 255), (20, 30), (100, 200), (173, 91)):
            value = int(min(image_weight * image + frost_weight * texture, 255))
            assert table[image, texture] == value

    def test_textures_grow_where_an_image_would_not_fit(self) -> None:
        _, corners = scaled_atlas(coordinate_textures(), 0.2, 70, 70, CPU)
        assert int(corners[:, 1:].min()) >= 1

    def test_levels_cut_the_same_pieces(self) -> None:
        black = torch.zeros(3, 3, 32, 32, dtype=torch.uint8)
        light, heavy = (
            weather.frost(black, streams(3), **{**FROST, "frost_weight": weight}, textures=procedural_textures())
            for weight in (0.5, 1.0)
        )
        assert torch.equal(heavy // 2, light)

    def test_resize_is_bilinear_without_antialiasing(self) -> None:
        image = pictures(1, 50, 70)[0]
        small = resize_bilinear(image, 0.3)
        assert small.shape == (3, 15, 21)
        rows, columns = ((np.arange(n) + 0.5) / 0.3 - 0.5 for n in (15, 21))
        grid = np.meshgrid(rows, columns, indexing="ij")
        expected = [ndi.map_coordinates(plane, grid, order=1, mode="nearest") for plane in image.double().numpy()]
        assert np.abs(small.double().numpy() - np.stack(expected)).max() < 1.0


class TestTextures:
    def test_ours_are_the_same_bytes_everywhere(self) -> None:
        textures = procedural_textures()
        assert textures.sha256 == "dd175e4af2784abe82c138ead11a5df45043f45285e034a606cc63f182be9615"
        assert textures.kind == "procedural"

    def test_ours_have_the_originals_mean_and_contrast(self) -> None:
        # Mean and standard deviation of the five photographs.
        originals = ((130.8, 43.2), (206.9, 22.7), (206.9, 22.7), (151.9, 31.1), (123.5, 44.1))
        for texture, (mean, std) in zip(procedural_textures().images, originals, strict=True):
            values = texture.double()
            assert float(values.mean()) == pytest.approx(mean, abs=2)
            assert float(values.std()) == pytest.approx(std, rel=0.1)

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        for i, name in enumerate(ORIGINAL_FILES):
            Image.fromarray(np.full((70, 90, 3), 40 * i, np.uint8)).save(tmp_path / name)
        return tmp_path

    def test_originals_are_read(self, folder: Path) -> None:
        textures = load_textures(folder)
        assert textures.kind == "original"
        assert [image.shape for image in textures.images] == [(3, 70, 90)] * 5
        assert [int(image[0, 0, 0]) for image in textures.images] == [0, 40, 80, 120, 160]
        Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(folder / "frost6.jpg")
        assert load_textures(folder).sha256 == textures.sha256
        Image.fromarray(np.zeros((70, 90, 3), np.uint8)).save(folder / "frost3.png")
        assert load_textures(folder).sha256 != textures.sha256

    def test_missing_folder(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="no folder"):
            load_textures(tmp_path / "nowhere")

    def test_missing_file_is_named(self, folder: Path) -> None:
        (folder / "frost4.jpg").unlink()
        with pytest.raises(InputError, match=r"frost4\.jpg"):
            load_textures(folder)

    def test_small_texture(self, folder: Path) -> None:
        Image.fromarray(np.zeros((70, 20, 3), np.uint8)).save(folder / "frost2.png")
        with pytest.raises(InputError, match=r"frost2\.png .*\n.*20 x 70"):
            load_textures(folder)

    @pytest.mark.parametrize("damage", ["noise", "empty", "cut", "bomb", "other"])
    def test_hostile_file(self, folder: Path, damage: str) -> None:
        path = folder / "frost1.png"
        whole = path.read_bytes()
        size = (60_000).to_bytes(4, "big")
        content = {
            "noise": os.urandom(500),
            "empty": b"",
            "cut": whole[: len(whole) // 2],
            "bomb": whole[:16] + size + size + whole[24:],
            "other": b"P6 70 90 255 ",
        }[damage]
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"frost1\.png"):
            load_textures(folder)


class TestFog:
    def test_refine_is_one_step_of_diamond_square(self) -> None:
        generator = torch.Generator().manual_seed(1)
        n = 4
        corners, *noise = (torch.randn(1, n, n, generator=generator) for _ in range(4))
        grid = np.zeros((2 * n, 2 * n))
        grid[::2, ::2] = corners[0]
        centre, top, left = (part[0].numpy() for part in noise)

        def mean(*points: tuple[int, int]) -> float:
            return sum(grid[row % (2 * n), column % (2 * n)] for row, column in points) / 4

        odd = range(1, 2 * n, 2)
        for i in odd:
            for j in odd:
                grid[i, j] = (
                    mean((i - 1, j - 1), (i - 1, j + 1), (i + 1, j - 1), (i + 1, j + 1)) + centre[i // 2, j // 2]
                )
        for i in range(2 * n):
            for j in range(2 * n):
                if (i + j) % 2:
                    own = (top if i % 2 == 0 else left)[i // 2, j // 2]
                    grid[i, j] = mean((i - 1, j), (i + 1, j), (i, j - 1), (i, j + 1)) + own
        refined = weather._refine(corners, *(part.clone() for part in noise))
        assert np.abs(refined[0].numpy() - grid).max() < 1e-5

    def test_noise_shrinks_by_wibble_squared(self) -> None:
        plasma = weather._plasma(streams(3000), 2, 2.0)
        # The first centre is uniform on -10000 to 10000 around the corner at 0.
        assert float(plasma[:, 0, 0].abs().max()) == 0
        assert float(plasma[:, 2, 2].std()) == pytest.approx(1e4 / math.sqrt(3), rel=0.03)
        second = plasma[:, 1, 1] - (plasma[:, 0, 0] + plasma[:, 0, 2] + plasma[:, 2, 0] + plasma[:, 2, 2]) / 4
        assert float(second.std()) == pytest.approx(1e4 / 4 / math.sqrt(3), rel=0.03)

    def test_thickness_runs_from_nothing_to_everything(self) -> None:
        images = torch.full((6, 3, 32, 32), 100, dtype=torch.uint8)
        out = weather.fog(images, streams(6), amount=1.0, wibble=2.0, map_size=32)
        keep = 100 / (100 + 255)
        assert out.amin(dim=(1, 2, 3)).tolist() == [int(100 * keep)] * 6
        assert all(value in (99, 100) for value in out.amax(dim=(1, 2, 3)).tolist())
        assert torch.equal(out[:, 0], out[:, 2])

    def test_black_stays_black(self) -> None:
        black = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
        assert torch.equal(weather.fog(black, streams(2), **FOG), black)

    def test_levels_share_their_map_where_detail_fades_alike(self) -> None:
        images = torch.full((1, 3, 32, 32), 200, dtype=torch.uint8)
        thin, thick = (
            weather.fog(images, streams(1), amount=amount, wibble=3.0, map_size=32)[0, 0].double().flatten()
            for amount in (0.2, 0.5)
        )
        assert float(torch.corrcoef(torch.stack([thin, thick]))[0, 1]) > 0.99


def by_image(maps: Tensor) -> np.ndarray:
    """``(H, W, 1)`` to ``(H, W)``."""
    return maps[:, :, 0].numpy()


def canny(level: np.ndarray, low: int, high: int) -> np.ndarray:
    """Canny's edges, pixel by pixel."""
    dx = ndi.sobel(level.astype(int), axis=1, mode="nearest")
    dy = ndi.sobel(level.astype(int), axis=0, mode="nearest")
    strength = np.pad(np.abs(dx) + np.abs(dy), 1)
    peaks = np.zeros(level.shape, dtype=int)
    for i, j in np.ndindex(*level.shape):
        m = strength[i + 1, j + 1]
        angle = math.degrees(math.atan2(abs(dy[i, j]), abs(dx[i, j])))
        if angle < 22.5:
            peak = m > strength[i + 1, j] and m >= strength[i + 1, j + 2]
        elif angle > 67.5:
            peak = m > strength[i, j + 1] and m >= strength[i + 2, j + 1]
        else:
            side = -1 if dx[i, j] * dy[i, j] < 0 else 1
            peak = m > strength[i, j + 1 - side] and m > strength[i + 2, j + 1 + side]
        peaks[i, j] = m if peak and m > low else 0
    labels, _ = ndi.label(peaks, np.ones((3, 3)))
    return np.isin(labels, np.unique(labels[peaks > high])) & (peaks > 0)


class TestSpatter:
    @pytest.fixture
    def level(self) -> Tensor:
        """An 8-bit height of water, ``(40, 50, 1)`` int16."""
        noise = ndi.gaussian_filter(np.random.default_rng(4).normal(0.65, 0.3, (40, 50)), 1.5)
        return torch.from_numpy(np.where(noise < 0.66, 0, noise * 255).astype(np.int16)).unsqueeze(2)

    def test_canny(self, level: Tensor) -> None:
        ours = weather._canny(level, 50, 150)
        expected = canny(by_image(level), 50, 150)
        assert 50 < expected.sum() < 1000
        assert np.array_equal(by_image(ours), expected)

    def test_canny_follows_weak_edges_from_strong_ones(self) -> None:
        ramp = torch.linspace(0, 60, 50).to(torch.int16)  # an edge that grows from nothing to strong
        level = torch.zeros(30, 50, dtype=torch.int16)
        level[15:] = ramp
        ours = by_image(weather._canny(level.unsqueeze(2), 50, 150))
        assert np.array_equal(ours, canny(level.numpy(), 50, 150))
        assert 30 < ours.sum() < 50

    def test_distance_is_the_shortest_chamfer_path(self) -> None:
        marks = torch.zeros(60, 50, 1, dtype=torch.uint8)
        spots = [(3, 4), (40, 45), (30, 8)]
        for row, column in spots:
            marks[row, column] = 1
        rows, columns = np.mgrid[:60, :50]
        distances = []
        for row, column in spots:
            far, near = (
                np.maximum(abs(rows - row), abs(columns - column)),
                np.minimum(abs(rows - row), abs(columns - column)),
            )
            knights = np.minimum(near, far - near)
            distances.append(2.197 * knights + np.where(2 * near <= far, far - 2 * near, 1.4 * (2 * near - far)))
        expected = np.minimum(np.min(distances, axis=0), 20)
        assert np.abs(by_image(weather._distance_to(marks)) / 1000 - expected).max() < 1e-9

    def test_no_mark_is_twenty_pixels_away(self) -> None:
        assert weather._distance_to(torch.zeros(8, 9, 2, dtype=torch.uint8)).unique().tolist() == [20_000]

    def test_box_means(self, level: Tensor) -> None:
        values = by_image(level).astype(float)
        expected = np.rint(ndi.uniform_filter(values, 3, mode="mirror"))
        assert np.array_equal(by_image(weather._box_mean(level)), expected)
        depth = torch.randint(0, 21, (40, 50, 1)).to(torch.int16) * 1000
        total = ndi.convolve(by_image(depth).astype(int), np.ones((3, 3), int), mode="mirror")
        assert np.array_equal(by_image(weather._truncated_box_mean(depth)), total // 9000)

    def test_emboss(self, level: Tensor) -> None:
        kernel = np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])
        expected = ndi.correlate(by_image(level).astype(int), kernel, mode="mirror").clip(0, 255)
        assert np.array_equal(by_image(weather._emboss(level)), expected)

    def test_equalize_is_by_image(self) -> None:
        maps = torch.randint(3, 21, (30, 40, 3), generator=torch.Generator().manual_seed(2)).to(torch.int16)
        maps[..., 2] = 7
        ours = weather._equalize(maps)
        for i in range(2):
            values = maps[..., i].numpy()
            counts = np.bincount(values.ravel(), minlength=21)
            first = np.flatnonzero(counts)[0]
            table = np.rint(np.float32(255 / (values.size - counts[first])) * (np.cumsum(counts) - counts[first]))
            assert np.array_equal(ours[..., i].numpy(), table[values])
        assert ours[..., 2].unique().tolist() == [7]

    @pytest.mark.parametrize("constants", [WATER, MUD], ids=["water", "mud"])
    def test_dry_image_stays_as_it_is(self, constants: dict[str, float]) -> None:
        images = pictures(3)
        assert torch.equal(weather.spatter(images, streams(3), **{**constants, "threshold": 5.0}), images)

    def test_water_adds_turquoise(self) -> None:
        images = torch.zeros(8, 3, 64, 64, dtype=torch.uint8)
        water = weather.spatter(images, streams(8), **WATER).double()
        assert torch.equal(water[:, 1], water[:, 2])
        # The brightest spot of every image has all of `mix`.
        assert water[:, 0].amax(dim=(1, 2)).tolist() == [87.0] * 8  # 0.5 * 175
        assert water[:, 1].amax(dim=(1, 2)).tolist() == [119.0] * 8  # 0.5 * 238

    def test_mud_is_brown_and_soft(self) -> None:
        images = torch.full((4, 3, 64, 64), 200, dtype=torch.uint8)
        mud = weather.spatter(images, streams(4), **{**MUD, "loc": 0.9, "threshold": 0.65})
        for channel, colour in enumerate((63, 42, 20)):
            values = mud[:, channel].unique().tolist()
            assert values[0] in (colour - 1, colour)
            # Cover below 0.8 is none.
            assert all(value <= colour + 0.2 * (200 - colour) or value == 200 for value in values)

    def test_higher_threshold_covers_less_of_the_same(self) -> None:
        images = torch.full((4, 3, 32, 32), 255, dtype=torch.uint8)
        much, little = (weather.spatter(images, streams(4), **{**MUD, "threshold": t}) for t in (0.65, 0.69))
        assert int((little < much).sum()) == 0
        assert int((little > much).sum()) > 0


def test_textures_digest_covers_shape_and_pixels() -> None:
    digest = hashlib.sha256()
    for image in procedural_textures().images:
        planes = image.permute(1, 2, 0).contiguous()
        digest.update(repr(tuple(planes.shape)).encode() + planes.numpy().tobytes())
    assert digest.hexdigest() == procedural_textures().sha256
