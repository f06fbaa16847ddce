"""A tile's figures are its own, and each means what it is called."""

import numpy as np
import pytest
from tissue import grey, tissue

from historay.data.corruptions import corrupt
from historay.evaluation.stain import optical_density
from historay.evaluation.tile_statistics import (
    NUM_COLOURS,
    NUM_HUES,
    STAIN_NAMES,
    TileStatistics,
    join_statistics,
    tile_statistics,
)

TILES = tissue(1, 12)


def solid(*levels: int, num: int = 1) -> np.ndarray:
    return np.broadcast_to(np.array(levels, np.uint8), (num, 32, 32, 3))


def test_a_tile_has_the_same_figures_in_any_batch() -> None:
    together = tile_statistics(TILES)
    for apart in (join_statistics([tile_statistics(TILES[n : n + 1]) for n in range(12)]), tile_statistics(TILES[::-1])):
        ordered = apart if apart.tissue_B[0] == together.tissue_B[0] else TileStatistics(*(part[::-1] for part in apart))
        for one, other in zip(together, ordered, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_densities_contrasts_and_correlations_are_those_of_the_tissue() -> None:
    density = optical_density(TILES[:, ::2, ::2]).reshape(12, -1, 3).astype(float)
    found = tile_statistics(TILES).stain_BS
    assert found.shape == (12, len(STAIN_NAMES))
    for row in range(12):
        pixels = density[row][density[row].mean(axis=1) > 0.15]
        np.testing.assert_allclose(np.exp(found[row, :3]) - 0.02, pixels.mean(axis=0), rtol=1e-4)
        np.testing.assert_allclose(np.exp(found[row, 3:6]) - 0.01, pixels.std(axis=0), rtol=1e-3)
        np.testing.assert_allclose(np.tanh(found[row, 6:]), np.corrcoef(pixels.T)[[0, 0, 1], [1, 2, 2]], atol=1e-3)


def test_grey_is_told_by_channels_that_go_together_entirely() -> None:
    assert np.allclose(tile_statistics(grey(TILES)).stain_BS[:, 6:], np.arctanh(0.999))
    assert (tile_statistics(TILES).stain_BS[:, 6:].min(axis=1) < np.arctanh(0.99)).all()


def test_blur_takes_detail_and_contrast_or_brightness_do_not() -> None:
    sharp = tile_statistics(TILES).detail_B
    for severity in (2, 3, 4, 5):
        assert tile_statistics(corrupt(TILES, "blur", severity, 0)).detail_B.max() < sharp.min() - 0.5
    faded = tile_statistics((TILES * 0.6 + 80).astype(np.uint8)).detail_B
    assert np.abs(faded - sharp).max() < 0.3


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_turning_a_tile_changes_neither_detail_nor_much_of_its_colours(turns: int) -> None:
    plain, turned = (tile_statistics(tiles) for tiles in (TILES, np.rot90(TILES, turns, axes=(1, 2))))
    np.testing.assert_allclose(turned.detail_B, plain.detail_B, rtol=1e-3)
    assert np.abs(turned.colours_BK - plain.colours_BK).max() < 0.05


def test_each_pixel_is_counted_once_dark_ones_by_darkness_and_saturated_ones_by_hue() -> None:
    np.testing.assert_allclose(tile_statistics(TILES).colours_BK.sum(axis=1), 1)
    bins = {
        name: int(tile_statistics(solid(*levels)).colours_BK[0].argmax())
        for name, levels in {
            "white": (255, 255, 255),
            "grey": (150, 150, 150),
            "black": (0, 0, 0),
            "dark": (35, 35, 35),
            "pink": (230, 130, 180),
            "green": (60, 180, 70),
            "blue": (40, 60, 220),
        }.items()
    }
    assert bins["white"] == bins["grey"] == NUM_COLOURS - 1
    assert NUM_HUES <= bins["dark"] < bins["black"] < NUM_COLOURS - 1
    hues = {bins[name] for name in ("pink", "green", "blue")}
    assert len(hues) == 3
    assert max(hues) < NUM_HUES


def test_glass_is_no_tissue() -> None:
    assert tile_statistics(solid(245, 244, 246)).tissue_B == 0
    assert tile_statistics(solid(200, 120, 180)).tissue_B == 1
    half = np.concatenate([solid(245, 244, 246), solid(200, 120, 180)], axis=2)
    assert tile_statistics(half).tissue_B == 0.5
