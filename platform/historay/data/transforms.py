"""From uint8 tiles to a network's input, and augmentation, both on batches on the device.

Suffixes: B tiles, H rows, W columns, C channels (RGB), all float values on [0, 1] before normalisation.
"""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from historay.data.augmentation import spoil_slightly, symmetric
from historay.data.stain import (
    Macenko,
    Reinhard,
    StainMethod,
    constant,
    from_density,
    measure_stain,
    normalise_stain,
    optical_density,
    sent,
)
from historay.errors import DataError

Augmentation = Literal["none", "d4", "full", "strong"]

_REFERENCE_TILES = 64  # that together are the image whose stain the others take on


class Preprocessing(BaseModel):
    """How pixels become a network's input: side, stain, then mean and standard deviation per channel on [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_px: int  # pixels
    stain: Reinhard | Macenko | None = None  # the reference whose colours each tile takes on
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def measure_preprocessing(tiles_BHWC: NDArray[np.uint8], stain: StainMethod = "none") -> Preprocessing:
    """Measures what a network's input needs on square training tiles, whose first 64 are the reference of the stain.

    Raises DataError if a channel is the same everywhere, or the reference lacks tissue.
    """
    tiles = torch.from_numpy(tiles_BHWC)
    reference = None if stain == "none" else measure_stain(to_unit(tiles[:_REFERENCE_TILES]), stain)
    unit_NC = torch.cat([_pixels(normalise_stain(to_unit(part), reference)) for part in torch.split(tiles, _REFERENCE_TILES)])
    mean, std = unit_NC.double().mean(dim=0).tolist(), unit_NC.double().std(dim=0).tolist()
    if min(std) == 0:
        raise DataError("a colour channel is the same in all training tiles; there is nothing to learn")
    return Preprocessing(input_px=tiles.shape[1], stain=reference, mean=tuple(mean), std=tuple(std))


def _pixels(tiles_BCHW: Tensor) -> Tensor:
    return tiles_BCHW.permute(0, 2, 3, 1).reshape(-1, 3)


def to_unit(tiles_BHWC: Tensor) -> Tensor:
    """Turns uint8 (B, H, W, 3) into float32 (B, 3, H, W) on [0, 1]."""
    return tiles_BHWC.permute(0, 3, 1, 2).contiguous().float().div_(255.0)


def normalise(tiles_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Subtracts the mean and divides by the standard deviation of each channel."""
    mean, std = (constant(values, tiles_BCHW).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    return (tiles_BCHW - mean).div_(std)


def to_input(tiles_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turns uint8 tiles (B, H, W, 3) of the right size into the normalised float32 input (B, 3, H, W); no augmentation."""
    return normalise(normalise_stain(to_unit(tiles_BHWC), preprocessing.stain), preprocessing)


def augment(tiles_BCHW: Tensor, level: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments square tiles on [0, 1]: ``d4`` turns and flips each at random, ``full`` also jitters stain and brightness.

    ``strong`` instead jitters haematoxylin and eosin, by more, mixes colours within the batch, blurs and compresses. The
    generator lives on the CPU, so that a seed means the same on every device.
    """
    if level == "none":
        return tiles_BCHW
    turned = random_d4(tiles_BCHW, generator)
    if level == "strong":
        return spoil_slightly(turned, generator)
    return turned if level == "d4" else jitter_stain(turned, generator)


def random_d4(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Applies to each tile one of the 8 symmetries of the square, drawn evenly; pixels are moved, never resampled."""
    element_B = torch.randint(8, (len(tiles_BCHW),), generator=generator)
    turned = torch.empty_like(tiles_BCHW)
    for element in range(8):
        chosen = sent((element_B == element).nonzero().squeeze(1), tiles_BCHW.device)
        turned.index_copy_(0, chosen, apply_d4(tiles_BCHW[chosen], element))
    return turned


def apply_d4(tiles_BCHW: Tensor, element: int) -> Tensor:
    """Turns by ``element % 4`` quarter turns, after a flip if ``element`` is 4 or more."""
    flipped = tiles_BCHW.flip(3) if element >= 4 else tiles_BCHW
    return flipped.rot90(element % 4, (2, 3))


def jitter_stain(tiles_BCHW: Tensor, generator: torch.Generator, strength: float = 0.15, shift: float = 0.04) -> Tensor:
    """Scales and shifts each tile's optical density per channel, as stain strength and light do from one lab to another.

    Factors are uniform on 1 +- strength, shifts on +- shift (in optical density); after Tellez et al. 2018, in RGB
    optical density instead of HED, which needs no fixed stain vectors.
    """
    size, device = (len(tiles_BCHW), 3, 1, 1), tiles_BCHW.device
    factor = sent(1 + strength * symmetric(size, generator), device)
    offset = sent(shift * symmetric(size, generator), device)
    return from_density(optical_density(tiles_BCHW).mul_(factor).add_(offset))
