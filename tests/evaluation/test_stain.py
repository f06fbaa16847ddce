"""Stain clusters follow the dye and not the amount of tissue, and are numbered from pale to dark."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import adjusted_rand_score

from historay.evaluation.stain import stain_clusters, stain_features

EOSIN = np.array([0.2, 0.8, 0.5])


def stained(rng: np.random.Generator, num: int, strength: float, tissue: float = 1.0) -> NDArray[np.uint8]:
    """Tiles of one dye; the amount varies over the pixels, and a share of them is glass."""
    amount = strength * rng.uniform(0.7, 1.3, (num, 32, 32, 1)) * rng.uniform(0.95, 1.05, (num, 1, 1, 1))
    amount = amount * (rng.random((num, 32, 32, 1)) < tissue)
    return np.rint(255 * 10 ** -(amount * EOSIN)).astype(np.uint8)


def test_the_features_are_mean_and_covariance_of_optical_density_over_tissue() -> None:
    tiles = stained(np.random.default_rng(0), 3, 0.6, tissue=0.6)
    for tile, found in zip(tiles, stain_features(tiles), strict=True):
        density = -np.log10(np.maximum(tile[::2, ::2], 1) / 255.0).reshape(-1, 3)
        tissue = density[density.mean(axis=1) > 0.15]
        covariance = np.cov(tissue.T, bias=True)
        np.testing.assert_allclose(found, [*tissue.mean(axis=0), *covariance[np.triu_indices(3)]], atol=1e-6)


def test_a_tile_of_glass_only_has_features_too() -> None:
    white = np.full((2, 16, 16, 3), 255, np.uint8)
    np.testing.assert_allclose(stain_features(white), 0, atol=1e-9)


@pytest.mark.parametrize("strengths", [(0.4, 1.0), (0.35, 0.7, 1.2)])
def test_planted_stains_are_found_and_numbered_from_pale_to_dark(strengths: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    tiles = np.concatenate([stained(rng, 60, strength, tissue=t) for strength in strengths for t in (0.4, 1.0)])
    planted = np.repeat(np.arange(len(strengths)), 120)
    order = rng.permutation(len(tiles))
    names = stain_clusters(stain_features(tiles[order]), seed=0)
    assert adjusted_rand_score(planted[order], names) > 0.98
    numbers = [int(name.split()[2]) for name in names]
    assert np.corrcoef(numbers, planted[order])[0, 1] > 0.98
    assert {name.split(" (")[1] for name in names} == {"pale)", "dark)", *(["medium)"] if len(strengths) == 3 else [])}


def test_the_same_seed_gives_the_same_names_in_any_order_of_clear_clusters() -> None:
    rng = np.random.default_rng(1)
    features = stain_features(np.concatenate([stained(rng, 50, 0.4), stained(rng, 50, 1.1)]))
    names = stain_clusters(features, seed=3)
    np.testing.assert_array_equal(names, stain_clusters(features, seed=3))
    np.testing.assert_array_equal(names[::-1], stain_clusters(features[::-1], seed=3))


@pytest.mark.parametrize("num", [1, 2, 40])
def test_tiles_that_are_alike_are_one_cluster(num: int) -> None:
    features = np.tile(stain_features(stained(np.random.default_rng(0), 1, 0.5)), (num, 1))
    assert set(stain_clusters(features, seed=0)) == {"stain cluster 1"}
