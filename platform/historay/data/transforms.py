"""From uint8 tiles to a network's input, and augmentation, both on batches on the device.

Suffixes: B tiles, H rows, W columns, C channels (RGB), all float values on [0, 1] before normalisation.
"""

from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

Augmentation = Literal["none", "d4", "full"]

# Ruifrok and Johnston 2001: optical density is -log10 of the transmitted share of light. One level of uint8 keeps log finite.
_DARKEST = 1.0 / 255.0


class Preprocessing(BaseModel):
    """How pixels become a network's input: side in pixels, and mean and standard deviation per channel on [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input_px: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def to_unit(tiles_BHWC: Tensor) -> Tensor:
    """Turns uint8 (B, H, W, 3) into float32 (B, 3, H, W) on [0, 1]."""
    return tiles_BHWC.permute(0, 3, 1, 2).contiguous().float().div_(255.0)


def normalise(tiles_BCHW: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Subtracts the mean and divides by the standard deviation of each channel."""
    mean = torch.tensor(preprocessing.mean, device=tiles_BCHW.device).view(1, 3, 1, 1)
    std = torch.tensor(preprocessing.std, device=tiles_BCHW.device).view(1, 3, 1, 1)
    return (tiles_BCHW - mean) / std


def to_input(tiles_BHWC: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Turns uint8 tiles (B, H, W, 3) of the right size into the normalised float32 input (B, 3, H, W); no augmentation."""
    return normalise(to_unit(tiles_BHWC), preprocessing)


def augment(tiles_BCHW: Tensor, level: Augmentation, generator: torch.Generator) -> Tensor:
    """Augments square tiles on [0, 1]: ``d4`` turns and flips each at random, ``full`` also jitters stain and brightness.

    The generator lives on the CPU, so that a seed means the same on every device.
    """
    if level == "none":
        return tiles_BCHW
    turned = random_d4(tiles_BCHW, generator)
    return turned if level == "d4" else jitter_stain(turned, generator)


def random_d4(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Applies to each tile one of the 8 symmetries of the square, drawn evenly; pixels are moved, never resampled."""
    element_B = torch.randint(8, (len(tiles_BCHW),), generator=generator).to(tiles_BCHW.device)
    turned = tiles_BCHW.clone()
    for element in range(1, 8):
        chosen = (element_B == element).nonzero().squeeze(1)
        turned[chosen] = apply_d4(tiles_BCHW[chosen], element)
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
    size = (len(tiles_BCHW), 3, 1, 1)
    factor = 1 + strength * (2 * torch.rand(size, generator=generator) - 1)
    offset = shift * (2 * torch.rand(size, generator=generator) - 1)
    density = -torch.log10(tiles_BCHW.clamp_min(_DARKEST))
    jittered = density * factor.to(tiles_BCHW.device) + offset.to(tiles_BCHW.device)
    return torch.pow(10.0, -jittered).clamp_(0.0, 1.0)
