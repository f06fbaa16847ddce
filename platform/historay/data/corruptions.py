"""What befalls tiles between the microscope and the model, in five steps of a physical size each, to test robustness.

Tiles are uint8 (B, H, W, 3) RGB at the network's input size. What is random about a tile (a sign, a direction) follows
from the seed and its own pixels, so neither the batch nor the order matters.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from scipy import ndimage

Tiles = NDArray[np.uint8]

SEVERITIES = (1, 2, 3, 4, 5)

# Ruifrok and Johnston 2001, optical density of haematoxylin and eosin in red, green, blue; the third row is what neither
# explains, and stays as it is.
_STAINS = np.array([[0.644211, 0.716556, 0.266844], [0.092789, 0.954111, 0.283111]])
UNIT_STAINS = np.vstack([_STAINS, np.cross(*_STAINS)])
UNIT_STAINS /= np.linalg.norm(UNIT_STAINS, axis=1, keepdims=True)
_DARKEST = 1.0  # level of 255 below which light is not told from none; its optical density is 2.4
_DISPLAY_GAMMA = 2.2  # sRGB is close to it: light is (level / 255) ** 2.2


@dataclass(frozen=True)
class Corruption:
    """One way to spoil a tile; ``levels`` are the physical parameter at severity 1 to 5, growing worse."""

    title: str
    parameter: str  # with its unit, as the axis of a plot says it
    levels: tuple[float, float, float, float, float]
    apply: Callable[[Tiles, float, int], Tiles]  # tiles, level, seed


def corrupt(tiles_BHWC: Tiles, name: str, severity: int, seed: int) -> Tiles:
    """Returns spoilt tiles of the same shape; ``name`` is a key of CORRUPTIONS, ``severity`` is 1 (slight) to 5."""
    corruption = CORRUPTIONS[name]
    return corruption.apply(tiles_BHWC, corruption.levels[SEVERITIES.index(severity)], seed)


def _blurred(tiles_BHWC: Tiles, sigma_px: float, _: int) -> Tiles:
    """Out of focus. Gaussian, the same on all channels."""
    blurred = ndimage.gaussian_filter(tiles_BHWC.astype(np.float32), (0, sigma_px, sigma_px, 0), mode="reflect")
    return _levels(blurred)


def _compressed(tiles_BHWC: Tiles, quality: float, _: int) -> Tiles:
    """Stored as JPEG with halved colour resolution (4:2:0), as scanners do, and decoded again."""
    tiles = [simplejpeg.encode_jpeg(np.ascontiguousarray(tile), int(quality), "RGB", "420") for tile in tiles_BHWC]
    return np.stack([simplejpeg.decode_jpeg(data, colorspace="RGB") for data in tiles])


def _exposed(tiles_BHWC: Tiles, stops: float, seed: int) -> Tiles:
    """Lamp or shutter off by this many stops (doublings of light), up for half of the tiles, down for the others."""
    signed_B = np.array([stops * generator.choice([-1, 1]) for generator in _generators(tiles_BHWC, seed)])
    return _levels(tiles_BHWC * 2 ** (signed_B / _DISPLAY_GAMMA)[:, None, None, None])


def _restained(tiles_BHWC: Tiles, factor: float, seed: int) -> Tiles:
    """Amounts of haematoxylin and eosin off by a factor.

    Their logarithms move by log(factor) in a direction drawn for each tile: both up (thick or dark), both down, or one
    against the other (bluer or redder). Optical density is additive over stains (Beer-Lambert), so it is unmixed there.
    """
    angle_B = np.array([generator.uniform(0, 2 * np.pi) for generator in _generators(tiles_BHWC, seed)])
    change_B3 = np.exp(np.log(factor) * np.stack([np.cos(angle_B), np.sin(angle_B), np.zeros_like(angle_B)], axis=1))
    # unmix, scale each stain, mix again: one matrix a tile
    change_B33 = np.linalg.inv(UNIT_STAINS) @ (change_B3[:, :, None] * UNIT_STAINS)
    density = -np.log10(np.maximum(tiles_BHWC, _DARKEST) / 255)
    return _levels(255 * 10 ** -np.einsum("bhwc,bcd->bhwd", density, change_B33))


def _rotated(tiles_BHWC: Tiles, degrees: float, seed: int) -> Tiles:
    """Turned about its centre, left or right; corners are filled by reflection. Cubic, since linear would also blur."""
    turned = np.empty_like(tiles_BHWC)
    centre = (np.array(tiles_BHWC.shape[1:3]) - 1) / 2
    for row, generator in enumerate(_generators(tiles_BHWC, seed)):
        angle = np.deg2rad(degrees * generator.choice([-1, 1]))
        matrix = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        for channel in range(3):
            plane = tiles_BHWC[row, :, :, channel].astype(np.float32)
            found = ndimage.affine_transform(plane, matrix, centre - matrix @ centre, order=3, mode="reflect")
            turned[row, :, :, channel] = _levels(found)
    return turned


def _generators(tiles_BHWC: Tiles, seed: int) -> list[np.random.Generator]:
    """Makes one generator a tile, from the seed and the tile's pixels."""
    return [np.random.default_rng([seed, zlib.crc32(tile.tobytes())]) for tile in tiles_BHWC]


def _levels(values: NDArray[np.floating]) -> Tiles:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)


CORRUPTIONS = {
    "blur": Corruption("Blur", "standard deviation of the blur, pixels", (0.5, 1.0, 1.5, 2.0, 3.0), _blurred),
    "jpeg": Corruption("JPEG compression", "JPEG quality (of 100)", (80, 60, 40, 20, 10), _compressed),
    "exposure": Corruption("Brightness", "exposure error, stops", (0.2, 0.4, 0.6, 0.8, 1.2), _exposed),
    "stain": Corruption("Stain shift", "factor on stain amounts", (1.1, 1.25, 1.5, 1.75, 2.0), _restained),
    "rotation": Corruption("Rotation", "angle, degrees", (5, 10, 20, 30, 45), _rotated),
}
