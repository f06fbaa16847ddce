"""Tiles grouped by how they are stained, for a model may fail on the pale or the dark ones whatever their site is called."""

import numpy as np
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from sklearn.preprocessing import StandardScaler

from historay.evaluation.metrics import Floats

_STEP = 2  # every second row and column, as for colour histograms
_DARKEST = 1.0  # level of 255; its optical density is 2.4
_DENSITY = -np.log10(np.maximum(np.arange(256), _DARKEST) / 255).astype(np.float32)  # of each level
_TISSUE = 0.15  # mean optical density from which a pixel is tissue (Macenko et al. 2009)
_NUM_CLUSTERS = (2, 3, 4, 5)
_MAX_SILHOUETTE = 2000  # tiles: the silhouette compares all pairs
_MAX_FIT = 20_000
_UPPER = np.triu_indices(3)
# From the palest to the darkest.
_SHADES = {
    2: ("pale", "dark"),
    3: ("pale", "medium", "dark"),
    4: ("pale", "rather pale", "rather dark", "dark"),
    5: ("pale", "rather pale", "medium", "rather dark", "dark"),
}


def stain_features(tiles_BHWC: NDArray[np.uint8]) -> Floats:
    """Returns (B, 9): mean optical density of R, G and B over a tile's tissue, then its covariance (rr rg rb gg gb bb).

    Glass is left out, so that a tile with little tissue is not taken for a pale one; a tile without tissue counts whole.
    """
    return stain_moments(*tissue_pixels(tiles_BHWC))


def tissue_pixels(tiles_BHWC: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Returns the optical density of every second row's and column's pixels (B, P, 3), and which of them are tissue (B, P)."""
    density_BP3 = _DENSITY.take(tiles_BHWC[:, ::_STEP, ::_STEP]).reshape(len(tiles_BHWC), -1, 3)
    # Slices: numpy takes 15 times as long for the mean over an axis of three.
    total_BP = density_BP3[..., 0] + density_BP3[..., 1] + density_BP3[..., 2]
    return density_BP3, total_BP > 3 * _TISSUE


def stain_moments(density_BP3: NDArray[np.float32], tissue_BP: NDArray[np.bool_]) -> Floats:
    """Returns what ``stain_features`` does, from the pixels' optical densities."""
    counted_BP = tissue_BP | ~tissue_BP.any(axis=1, keepdims=True)
    share_BP = (counted_BP / counted_BP.sum(axis=1, keepdims=True)).astype(np.float32)
    mean_B13 = share_BP[:, None] @ density_BP3
    centred_BP3 = density_BP3 - mean_B13
    covariance_B33 = (centred_BP3 * share_BP[..., None]).transpose(0, 2, 1) @ centred_BP3
    return np.concatenate([mean_B13[:, 0], covariance_B33[:, *_UPPER]], axis=1).astype(np.float64)


def optical_density(levels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Returns -log10 of the transmitted share of light, elementwise; 0 at level 255."""
    return np.asarray(_DENSITY[levels])


def stain_clusters(features_N9: Floats, seed: int) -> NDArray[np.str_]:
    """Names each tile's cluster, such as ``stain cluster 1 (pale)``, numbered from the palest to the darkest.

    k-means on standardised features with 2 to 5 clusters, whichever have the largest mean silhouette (Rousseeuw 1987);
    tiles that are all alike are one cluster. Clusters are found where there are none, too: they only say where to look.
    """
    scaled = StandardScaler().fit_transform(features_N9)
    order = np.random.default_rng(seed).permutation(len(scaled))
    fitted, compared = scaled[order[:_MAX_FIT]], scaled[order[:_MAX_SILHOUETTE]]
    num_distinct = len(np.unique(compared, axis=0))
    best, best_silhouette = None, -1.0
    for num in _NUM_CLUSTERS:
        if num >= num_distinct:
            break
        model = KMeans(num, n_init=3, random_state=seed).fit(fitted)
        assigned = model.predict(compared)
        silhouette = float(silhouette_score(compared, assigned)) if len(np.unique(assigned)) > 1 else -1.0
        if silhouette > best_silhouette:
            best, best_silhouette = model, silhouette
    if best is None:
        return np.full(len(scaled), "stain cluster 1")
    return _named(best.predict(scaled), features_N9[:, :3].mean(axis=1))


def _named(cluster_N: NDArray[np.int64], density_N: Floats) -> NDArray[np.str_]:
    """Numbers and names clusters by their mean optical density; one that has no tile gets no number."""
    _, cluster_N = np.unique(cluster_N, return_inverse=True)
    density_K = np.bincount(cluster_N, density_N) / np.bincount(cluster_N)
    rank_K = density_K.argsort().argsort()
    shades = _SHADES[len(rank_K)]
    names = np.array([f"stain cluster {rank + 1} ({shade})" for rank, shade in enumerate(shades)])
    return names[rank_K[cluster_N]]
