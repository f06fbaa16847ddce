"""What a tile's pixels say of it before any network: how it is stained, how much tissue it has, how sharp it is, which colours.

Suffixes: B tiles, H rows, W columns, C channels (RGB); N tiles of a split, S stain figures, K colour bins.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from historay.evaluation.metrics import Floats
from historay.evaluation.stain import optical_density, stain_moments, tissue_pixels

STAIN_NAMES = (
    *(f"optical density {channel}" for channel in ("red", "green", "blue")),
    *(f"contrast {channel}" for channel in ("red", "green", "blue")),
    *(f"correlation {pair}" for pair in ("red-green", "red-blue", "green-blue")),
)
_STEP = 2  # every second row and column, as for colour histograms
# Keep logarithms of a tile of one colour finite; well below the density of pale tissue.
_LEAST_DENSITY, _LEAST_CONTRAST, _LEAST_VARIANCE = 0.02, 0.01, 1e-6
_MOST_CORRELATION = 0.999  # of grey it is 1, of H&E seldom above 0.99: the distance between them is what tells grey
# Variance of the rounding and of JPEG, in squared levels: below it there is no detail, only noise.
_NOISE_FINE, _NOISE_COARSE = 1.0, 10.0
_BITS = 5  # of each channel of a colour that is looked up
_SATURATED = 0.15  # chroma in optical density from which a pixel has a hue
_DARK = 0.75  # least optical density of the three channels from which a pixel is dark, whatever its hue
_DARKEST = 2.41  # of level 1
_HUE_DEGREES = 5
_DARK_STEP = 0.1
NUM_HUES = 360 // _HUE_DEGREES  # the first bins, round the circle; then the dark ones, from the palest
_NUM_DARK = round((_DARKEST - _DARK) / _DARK_STEP) + 1
NUM_COLOURS = NUM_HUES + _NUM_DARK + 1  # the last: neither saturated nor dark


class TileStatistics(NamedTuple):
    """Figures of B tiles, each from its own pixels alone."""

    stain_BS: Floats  # in the order of STAIN_NAMES
    tissue_B: Floats  # share of pixels that are tissue
    detail_B: Floats  # log of fine over coarse detail; a blur lowers it, whatever the contrast
    colours_BK: Floats  # share of pixels in each colour bin


def tile_statistics(tiles_BHWC: NDArray[np.uint8]) -> TileStatistics:
    """Measures uint8 tiles of at least 8 x 8 pixels."""
    density_BP3, tissue_BP = tissue_pixels(tiles_BHWC)
    return TileStatistics(
        stain_BS=_stain_figures(stain_moments(density_BP3, tissue_BP)),
        tissue_B=tissue_BP.mean(axis=1),
        detail_B=_detail(tiles_BHWC),
        colours_BK=_colours(tiles_BHWC[:, ::_STEP, ::_STEP]),
    )


def join_statistics(parts: list[TileStatistics]) -> TileStatistics:
    """Puts the figures of several batches one after the other."""
    return TileStatistics(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _stain_figures(features_B9: Floats) -> Floats:
    """Logs of mean densities and spreads, and Fisher's z of correlations: near to normal, as distances presume."""
    mean_B3 = features_B9[:, :3]
    spread_B3 = np.sqrt(np.maximum(features_B9[:, [3, 6, 8]], _LEAST_VARIANCE))
    correlation_B3 = features_B9[:, [4, 5, 7]] / (spread_B3[:, [0, 0, 1]] * spread_B3[:, [1, 2, 2]])
    z_B3 = np.arctanh(np.clip(correlation_B3, -_MOST_CORRELATION, _MOST_CORRELATION))
    return np.concatenate([np.log(mean_B3 + _LEAST_DENSITY), np.log(spread_B3 + _LEAST_CONTRAST), z_B3], axis=1)


def _detail(tiles_BHWC: NDArray[np.uint8]) -> Floats:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000) over that at half the resolution, so that content cancels out.

    On green, which haematoxylin and eosin both absorb most.
    """
    side_H, side_W = (side // 2 * 2 for side in tiles_BHWC.shape[1:3])
    fine_BHW = tiles_BHWC[:, :side_H, :side_W, 1].astype(np.float32)
    coarse_BHW = fine_BHW[:, ::2, ::2] + fine_BHW[:, 1::2, ::2] + fine_BHW[:, ::2, 1::2] + fine_BHW[:, 1::2, 1::2]
    coarse_BHW /= 4
    ratio_B = (_laplacian_variance(fine_BHW) + _NOISE_FINE) / (_laplacian_variance(coarse_BHW) + _NOISE_COARSE)
    return np.log(ratio_B.astype(np.float64))


def _laplacian_variance(plane_BHW: NDArray[np.float32]) -> NDArray[np.float32]:
    laplacian_BHW = 4 * plane_BHW[:, 1:-1, 1:-1]
    laplacian_BHW -= plane_BHW[:, :-2, 1:-1] + plane_BHW[:, 2:, 1:-1]
    laplacian_BHW -= plane_BHW[:, 1:-1, :-2] + plane_BHW[:, 1:-1, 2:]
    return np.asarray(laplacian_BHW.var(axis=(1, 2)))


def _colours(tiles_BHWC: NDArray[np.uint8]) -> Floats:
    quantised = (tiles_BHWC >> (8 - _BITS)).astype(np.int32)
    code_BHW = (quantised[..., 0] << (2 * _BITS)) | (quantised[..., 1] << _BITS) | quantised[..., 2]
    num_tiles = len(tiles_BHWC)
    bin_BP = _colour_bins()[code_BHW].reshape(num_tiles, -1) + NUM_COLOURS * np.arange(num_tiles)[:, None]
    counts = np.bincount(bin_BP.ravel(), minlength=num_tiles * NUM_COLOURS).reshape(num_tiles, NUM_COLOURS)
    return np.asarray(counts / bin_BP.shape[1])


@cache
def _colour_bins() -> NDArray[np.int32]:
    """The bin of each colour of 5 bits a channel: its darkness if it is dark, else its hue in optical density if any."""
    levels = (np.arange(1 << _BITS) << (8 - _BITS)) + (1 << (7 - _BITS))
    density_D = optical_density(levels.astype(np.uint8))
    red, green, blue = np.meshgrid(density_D, density_D, density_D, indexing="ij")
    across, along = np.sqrt(3) / 2 * (red - blue), green - (red + blue) / 2
    hue = ((np.degrees(np.arctan2(across, along)) % 360) // _HUE_DEGREES).astype(np.int32)
    least = np.minimum(np.minimum(red, green), blue)
    dark = NUM_HUES + ((least - _DARK) / _DARK_STEP).clip(0, _NUM_DARK - 1).astype(np.int32)
    saturated = np.hypot(across, along) > _SATURATED
    return np.where(least > _DARK, dark, np.where(saturated, hue, NUM_COLOURS - 1)).ravel().astype(np.int32)
