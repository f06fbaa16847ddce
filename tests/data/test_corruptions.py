"""Corruptions are as large as they say, grow with severity, and depend on nothing but the tile and the seed."""

import numpy as np
import pytest
from images import texture
from numpy.typing import NDArray

from historay.data.corruptions import _STAINS, CORRUPTIONS, SEVERITIES, corrupt
from historay.data.synthetic_tissue import Look, Scanner, make_palette, paint_tile

RANDOM = ("exposure", "stain", "rotation")


def tissue(num: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(0)
    palette, look = make_palette(rng), Look.of_site(rng, Scanner.drawn(rng))
    return np.stack([paint_tile(rng, palette, look, 96, tumour=bool(i % 2), artefact_rate=0) for i in range(num)])


TILES = tissue(12)


def apply(name: str, level: float, tiles: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    return CORRUPTIONS[name].apply(tiles, level, seed)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_step_is_farther_from_the_tile_than_the_one_before(name: str) -> None:
    original = TILES.copy()
    spoilt = [corrupt(TILES, name, severity, seed=1) for severity in SEVERITIES]
    assert all(tiles.shape == TILES.shape and tiles.dtype == np.uint8 for tiles in spoilt)
    distance = [np.abs(tiles.astype(float) - TILES).mean() for tiles in spoilt]
    assert distance[0] > 0.5
    # Turned fibres and nuclei soon differ by as much as those of another place, and then no more.
    assert (np.diff(distance) > (-0.5 if name == "rotation" else 0.2)).all(), distance
    np.testing.assert_array_equal(TILES, original)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_tile_is_spoilt_alike_in_any_batch_and_order(name: str) -> None:
    together = corrupt(TILES, name, 3, seed=7)
    order = np.random.default_rng(0).permutation(len(TILES))
    np.testing.assert_array_equal(corrupt(TILES[order], name, 3, seed=7), together[order])
    np.testing.assert_array_equal(corrupt(TILES[4:5], name, 3, seed=7), together[4:5])


@pytest.mark.parametrize("name", RANDOM)
def test_another_seed_draws_other_directions(name: str) -> None:
    assert not np.array_equal(corrupt(TILES, name, 3, seed=0), corrupt(TILES, name, 3, seed=1))


def test_blur_spreads_a_point_by_its_standard_deviation() -> None:
    tile = np.zeros((1, 61, 61, 3), np.uint8)
    tile[0, 28:33, 28:33] = 255  # a square of 5: variance (25 - 1) / 12
    rows = np.arange(61) - 30
    for sigma in (1.0, 2.0, 3.0):
        profile = apply("blur", sigma, tile)[0, :, :, 1].sum(axis=1).astype(float)
        spread = np.sqrt((profile * rows**2).sum() / profile.sum())
        assert spread == pytest.approx(np.sqrt(sigma**2 + 2), rel=0.05)


def test_jpeg_at_full_quality_is_nearly_the_tile() -> None:
    smooth = np.stack([texture(seed, 96) for seed in range(3)])
    assert np.abs(apply("jpeg", 100, smooth).astype(float) - smooth).mean() < 2


@pytest.mark.parametrize("stops", [0.2, 0.6, 1.2])
def test_one_stop_of_exposure_doubles_or_halves_the_light(stops: float) -> None:
    tiles = np.random.default_rng(0).integers(90, 130, (200, 8, 8, 3), dtype=np.uint8)
    light = [np.mean((part / 255.0) ** 2.2, axis=(1, 2, 3)) for part in (tiles, apply("exposure", stops, tiles))]
    found = np.log2(light[1] / light[0])
    assert np.abs(np.abs(found) - stops).max() < 0.02
    assert 60 < (found > 0).sum() < 140  # half of 200, give or take 5 standard deviations


@pytest.mark.parametrize("factor", [1.1, 1.5, 2.0])
def test_stain_amounts_move_by_the_stated_factor_in_all_directions(factor: float) -> None:
    """Painted with known amounts by Beer-Lambert, read back by least squares."""
    rng = np.random.default_rng(0)
    unit = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
    amounts = rng.uniform(0.25, 0.4, (100, 16, 16, 2))
    tiles = np.rint(255 * 10 ** -(amounts @ unit)).astype(np.uint8)
    density = -np.log10(apply("stain", factor, tiles) / 255.0).reshape(100, -1, 3)
    found = np.stack([np.linalg.lstsq(unit.T, one.T)[0].mean(axis=1) for one in density])
    move = np.log(found / amounts.mean(axis=(1, 2)))
    np.testing.assert_allclose(np.hypot(*move.T), np.log(factor), atol=0.02)
    angle = np.arctan2(*move.T)
    assert len(np.unique(np.floor(angle / (np.pi / 2)))) == 4, "every quadrant: both up, both down, one against the other"


def test_a_quarter_turn_moves_pixels_exactly() -> None:
    turned = apply("rotation", 90, TILES, seed=1)
    left, right = np.rot90(TILES, 1, (1, 2)), np.rot90(TILES, -1, (1, 2))
    sides = [(np.array_equal(tile, a), np.array_equal(tile, b)) for tile, a, b in zip(turned, left, right, strict=True)]
    assert {(True, False), (False, True)} == set(sides)


def test_turning_leaves_the_disc_that_fits_and_fills_the_corners_with_tissue() -> None:
    rows, columns = np.mgrid[:96, :96] - 47.5
    rings = (128 + 80 * np.cos(np.hypot(rows, columns) / 4)).astype(np.uint8)[None, :, :, None].repeat(3, axis=3)
    turned = apply("rotation", 30, rings)
    inside = np.hypot(rows, columns) < 45
    assert np.abs(turned.astype(float) - rings)[0, inside].max() < 3
    white = np.full((1, 96, 96, 3), 240, np.uint8)
    np.testing.assert_array_equal(apply("rotation", 45, white), white)


def test_the_levels_grow_worse_and_have_a_unit_to_print() -> None:
    for name, corruption in CORRUPTIONS.items():
        steps = np.diff(corruption.levels)
        assert (steps < 0).all() if name == "jpeg" else (steps > 0).all()
        assert corruption.title
        assert corruption.parameter
