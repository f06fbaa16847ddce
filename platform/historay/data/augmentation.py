"""What laboratories and scanners do to a tile's colours and sharpness, drawn at random on batches on the device.

Suffixes: B tiles, C channels (RGB), H rows, W columns; float values on [0, 1]. Random numbers come from a generator on the
CPU, so that a seed means the same on every device.
"""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from historay.data.corruptions import UNIT_STAINS
from historay.data.stain import (
    MAX_DENSITY,
    constant,
    from_density,
    mean_and_std,
    mix_channels,
    optical_density,
    sent,
    tissue_of,
)

_STRENGTH = 0.25  # of the jitter of each stain's amount, as a share
_SHIFT = 0.05  # and in optical density
_MIXED, _BLURRED, _COMPRESSED = 0.5, 0.25, 0.25  # shares of the tiles
_SIGMA_PX = (0.3, 1.5)
_QUALITY = (40.0, 95.0)
_RADIUS_PX = 4

# ISO/IEC 10918-1, annex K: quantisation of luminance and chrominance at quality 50.
_LUMINANCE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMINANCE = "17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66" + " 99" * 38
# ITU-R BT.601, as JFIF has it: luminance, blue and red difference.
_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
# The orthonormal matrix of the cosine transform of 8 values, whose scale is JPEG's; a row is a frequency.
_COSINES = [[math.cos((2 * x + 1) * u * math.pi / 16) * (0.5 if u else 0.125**0.5) for x in range(8)] for u in range(8)]


def spoil_slightly(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Jitters the stain of every tile; gives some the colours of another, blurs some, and compresses some as JPEG."""
    size = len(tiles_BCHW)
    # One logarithm and one exponential for both steps; between them is what a tile on [1 / 255, 1] can have.
    density = _jittered(optical_density(tiles_BCHW), generator, _STRENGTH, _SHIFT).clamp_(0.0, MAX_DENSITY)
    mixed_B = torch.rand(size, generator=generator) < _MIXED
    tiles_BCHW = from_density(_mixed(density, mixed_B, generator))
    for share, spoil, (low, high) in ((_BLURRED, blur, _SIGMA_PX), (_COMPRESSED, compress, _QUALITY)):
        # Counted on the CPU, since a GPU would have to be waited for.
        chosen = (torch.rand(size, generator=generator) < share).nonzero().squeeze(1)
        level_B = low + (high - low) * torch.rand(size, generator=generator)
        if len(chosen):
            there = sent(chosen, tiles_BCHW.device)
            tiles_BCHW.index_copy_(0, there, spoil(tiles_BCHW[there], sent(level_B[chosen], tiles_BCHW.device)))
    return tiles_BCHW


def jitter_haematoxylin_eosin(
    tiles_BCHW: Tensor, generator: torch.Generator, strength: float = _STRENGTH, shift: float = _SHIFT
) -> Tensor:
    """Scales and shifts each tile's amounts of haematoxylin, eosin and the rest (Tellez et al. 2018).

    Factors are uniform on 1 +- strength, shifts on +- shift in optical density; stain vectors are Ruifrok and Johnston's.
    """
    return from_density(_jittered(optical_density(tiles_BCHW), generator, strength, shift))


def _jittered(density_BCHW: Tensor, generator: torch.Generator, strength: float, shift: float) -> Tensor:
    size = (len(density_BCHW), 3)
    factor_BS = 1 + strength * symmetric(size, generator)
    shift_BS = shift * symmetric(size, generator)
    stains_S3, unmix_3S = (torch.from_numpy(matrix).float() for matrix in (UNIT_STAINS, np.linalg.inv(UNIT_STAINS)))
    # Unmix, scale, mix again: one matrix a tile.
    matrix_B33 = unmix_3S @ (factor_BS.unsqueeze(2) * stains_S3)
    moved = mix_channels(density_BCHW, sent(matrix_B33, density_BCHW.device))
    return moved.add_(sent((shift_BS @ stains_S3).view(-1, 3, 1, 1), density_BCHW.device))


def mix_colours(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each tile's mean and deviation of optical density over tissue some way to those of another tile of the batch.

    The share is uniform on [0, 1]; as MixStyle does with features (Zhou et al. 2021). A tile beside one without tissue
    stays as it is.
    """
    before, everyone_B = optical_density(tiles_BCHW), torch.ones(len(tiles_BCHW), dtype=torch.bool)
    after = _mixed(before.clone(), everyone_B, generator)
    return torch.where(after == before, tiles_BCHW, from_density(after))


def _mixed(density_BCHW: Tensor, mixed_B: Tensor, generator: torch.Generator) -> Tensor:
    """Mixes the colours of some tiles, in place."""
    size, device = len(density_BCHW), density_BCHW.device
    partner = sent(torch.randperm(size, generator=generator), device)
    share = sent(torch.rand((size, 1, 1, 1), generator=generator), device)
    mean, std = mean_and_std(density_BCHW, tissue_of(density_BCHW))
    usable = (std.amin(dim=1, keepdim=True) > 1e-3) & (std[partner].amin(dim=1, keepdim=True) > 1e-3)
    usable &= sent(mixed_B, device).view(-1, 1, 1, 1)
    factor = torch.where(usable, std.lerp(std[partner], share) / std.clamp_min(1e-3), 1.0)
    offset = torch.where(usable, mean.lerp(mean[partner], share) - factor * mean, 0.0)
    return density_BCHW.mul_(factor).add_(offset)


def blur(tiles_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Blurs each tile with a Gaussian of its own deviation, in pixels; beyond 4 pixels it is cut, the rim is mirrored."""
    offset = torch.arange(-_RADIUS_PX, _RADIUS_PX + 1, device=tiles_BCHW.device, dtype=tiles_BCHW.dtype)
    kernel_BK = torch.softmax(-0.5 * (offset / sigma_B.unsqueeze(1)) ** 2, dim=1)
    padded = F.pad(tiles_BCHW, (_RADIUS_PX,) * 4, mode="reflect")
    # The weights add up to 1 but for rounding.
    return _weighted(_weighted(padded, kernel_BK, 2), kernel_BK, 3).clamp_(0.0, 1.0)


def _weighted(tiles_BCHW: Tensor, kernel_BK: Tensor, dim: int) -> Tensor:
    """Convolves each tile along one side with its own symmetric kernel, which takes the rim away.

    Sums of shifted tiles: on a CPU three to six times as fast as a convolution with one group a tile.
    """
    side = tiles_BCHW.shape[dim] - 2 * _RADIUS_PX
    weights = kernel_BK.view(len(kernel_BK), 1, 1, 1, -1).unbind(4)
    total = tiles_BCHW.narrow(dim, _RADIUS_PX, side) * weights[_RADIUS_PX]
    for low in range(_RADIUS_PX):
        both = tiles_BCHW.narrow(dim, low, side) + tiles_BCHW.narrow(dim, 2 * _RADIUS_PX - low, side)
        total.addcmul_(both, weights[low])
    return total


def compress(tiles_BCHW: Tensor, quality_B: Tensor) -> Tensor:
    """Returns what is left after JPEG at each tile's quality (1 to 100), with halved colour resolution (4:2:0)."""
    height, width = tiles_BCHW.shape[2:]
    padded = F.pad(255 * tiles_BCHW, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = mix_channels(padded, constant(_YCC, padded).T.unsqueeze(0)).round_()
    ycc[:, 0] -= 128
    # libjpeg's scaling of the tables: 50 leaves them, 100 makes them all 1.
    percent_B = torch.where(quality_B < 50, 5000 / quality_B, 200 - 2 * quality_B).floor().view(-1, 1, 1)
    luminance, chrominance = (
        (_table(text, percent_B) * percent_B + 50).div(100).floor() for text in (_LUMINANCE, _CHROMINANCE)
    )
    light = _quantised(ycc[:, :1], luminance.clamp(1, 255)) + 128
    colour = _quantised(F.avg_pool2d(ycc[:, 1:], 2), chrominance.clamp(1, 255))
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = mix_channels(torch.cat([light, colour], dim=1), constant(_RGB, padded).T.unsqueeze(0))
    return rgb[:, :, :height, :width].round().div_(255).clamp_(0.0, 1.0)


def _quantised(planes_BCHW: Tensor, steps_B88: Tensor) -> Tensor:
    """Rounds the cosine transform of each block of 8 x 8 to multiples of its steps."""
    size, channels, height, width = planes_BCHW.shape
    cosines = constant(_COSINES, planes_BCHW)
    blocks = planes_BCHW.view(size, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = steps_B88.view(size, 1, 1, 1, 8, 8)
    rounded = (cosines @ blocks @ cosines.T).div_(steps).round_().mul_(steps)
    return (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(planes_BCHW.shape)


def _table(text: str, like: Tensor) -> Tensor:
    return constant([float(word) for word in text.split()], like).view(1, 8, 8)


def symmetric(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draws evenly from -1 to 1, on the CPU."""
    return 2 * torch.rand(size, generator=generator) - 1
