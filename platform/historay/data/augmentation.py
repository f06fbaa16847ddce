"""What laboratories and scanners do to a tile's colours and sharpness, drawn at random on batches on the device.

Suffixes: B tiles, C channels (RGB), H rows, W columns; float values on [0, 1]. Random numbers come from a generator on the
CPU, so that a seed means the same on every device.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from historay.data.corruptions import UNIT_STAINS
from historay.data.stain import from_density, mean_and_std, mix_channels, optical_density, tissue_of

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


def spoil_slightly(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Jitters the stain of every tile; gives some the colours of another, blurs some, and compresses some as JPEG."""
    size = len(tiles_BCHW)
    tiles_BCHW = jitter_haematoxylin_eosin(tiles_BCHW, generator)
    mixed = _drawn(size, _MIXED, generator, tiles_BCHW)
    tiles_BCHW = torch.where(mixed.view(-1, 1, 1, 1), mix_colours(tiles_BCHW, generator), tiles_BCHW)
    for share, spoil, (low, high) in ((_BLURRED, blur, _SIGMA_PX), (_COMPRESSED, compress, _QUALITY)):
        chosen = _drawn(size, share, generator, tiles_BCHW).nonzero().squeeze(1)
        level_B = (low + (high - low) * torch.rand(size, generator=generator)).to(tiles_BCHW)
        if len(chosen):
            tiles_BCHW = tiles_BCHW.index_copy(0, chosen, spoil(tiles_BCHW[chosen], level_B[chosen]))
    return tiles_BCHW


def jitter_haematoxylin_eosin(
    tiles_BCHW: Tensor, generator: torch.Generator, strength: float = _STRENGTH, shift: float = _SHIFT
) -> Tensor:
    """Scales and shifts each tile's amounts of haematoxylin, eosin and the rest (Tellez et al. 2018).

    Factors are uniform on 1 +- strength, shifts on +- shift in optical density; stain vectors are Ruifrok and Johnston's.
    """
    size = (len(tiles_BCHW), 3)
    factor_BS = (1 + strength * _symmetric(size, generator)).to(tiles_BCHW)
    shift_BS = (shift * _symmetric(size, generator)).to(tiles_BCHW)
    stains_S3 = torch.from_numpy(UNIT_STAINS).to(tiles_BCHW)
    # Unmix, scale, mix again: one matrix a tile.
    matrix_B33 = torch.linalg.inv(stains_S3) @ (factor_BS.unsqueeze(2) * stains_S3)
    moved = mix_channels(optical_density(tiles_BCHW), matrix_B33) + (shift_BS @ stains_S3).view(-1, 3, 1, 1)
    return from_density(moved)


def mix_colours(tiles_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Moves each tile's mean and deviation of optical density over tissue some way to those of another tile of the batch.

    The share is uniform on [0, 1]; as MixStyle does with features (Zhou et al. 2021). A tile beside one without tissue
    stays as it is.
    """
    size = len(tiles_BCHW)
    partner = torch.randperm(size, generator=generator).to(tiles_BCHW.device)
    share = torch.rand((size, 1, 1, 1), generator=generator).to(tiles_BCHW)
    density = optical_density(tiles_BCHW)
    tissue = tissue_of(density)
    mean, std = mean_and_std(density, tissue)
    usable = (std.amin(dim=1, keepdim=True) > 1e-3) & (std[partner].amin(dim=1, keepdim=True) > 1e-3)
    wanted_mean, wanted_std = mean.lerp(mean[partner], share), std.lerp(std[partner], share)
    moved = (density - mean) * (wanted_std / std.clamp_min(1e-3)) + wanted_mean
    return torch.where(usable, from_density(moved), tiles_BCHW)


def blur(tiles_BCHW: Tensor, sigma_B: Tensor) -> Tensor:
    """Blurs each tile with a Gaussian of its own deviation, in pixels; beyond 4 pixels it is cut, the rim is mirrored."""
    offset = torch.arange(-_RADIUS_PX, _RADIUS_PX + 1, device=tiles_BCHW.device, dtype=tiles_BCHW.dtype)
    kernel_BK = torch.softmax(-0.5 * (offset / sigma_B.unsqueeze(1)) ** 2, dim=1)
    size = len(tiles_BCHW)
    # One group for each tile: its channels are its batch.
    one_by_one = F.pad(tiles_BCHW, (_RADIUS_PX,) * 4, mode="reflect").transpose(0, 1)
    rows = F.conv2d(one_by_one, kernel_BK.view(size, 1, -1, 1), groups=size)
    blurred = F.conv2d(rows, kernel_BK.view(size, 1, 1, -1), groups=size).transpose(0, 1)
    return blurred.clamp(0.0, 1.0)  # the weights add up to 1 but for rounding


def compress(tiles_BCHW: Tensor, quality_B: Tensor) -> Tensor:
    """Returns what is left after JPEG at each tile's quality (1 to 100), with halved colour resolution (4:2:0)."""
    height, width = tiles_BCHW.shape[2:]
    padded = F.pad(255 * tiles_BCHW, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = mix_channels(padded, padded.new_tensor(_YCC).T.unsqueeze(0)).round()
    ycc[:, 0] -= 128
    # libjpeg's scaling of the tables: 50 leaves them, 100 makes them all 1.
    percent_B = torch.where(quality_B < 50, 5000 / quality_B, 200 - 2 * quality_B).floor().view(-1, 1, 1)
    luminance, chrominance = (
        (_table(text, percent_B) * percent_B + 50).div(100).floor() for text in (_LUMINANCE, _CHROMINANCE)
    )
    light = _quantised(ycc[:, :1], luminance.clamp(1, 255)) + 128
    colour = _quantised(F.avg_pool2d(ycc[:, 1:], 2), chrominance.clamp(1, 255))
    colour = F.interpolate(colour, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = mix_channels(torch.cat([light, colour], dim=1), padded.new_tensor(_RGB).T.unsqueeze(0))
    return (rgb[:, :, :height, :width].round() / 255).clamp(0.0, 1.0)


def _quantised(planes_BCHW: Tensor, steps_B88: Tensor) -> Tensor:
    """Rounds the cosine transform of each block of 8 x 8 to multiples of its steps."""
    size, channels, height, width = planes_BCHW.shape
    cosines = _cosines(planes_BCHW)
    blocks = planes_BCHW.view(size, channels, height // 8, 8, width // 8, 8).transpose(3, 4)
    steps = steps_B88.view(size, 1, 1, 1, 8, 8)
    rounded = (cosines @ blocks @ cosines.T / steps).round() * steps
    return (cosines.T @ rounded @ cosines).transpose(3, 4).reshape(planes_BCHW.shape)


def _cosines(like: Tensor) -> Tensor:
    """Returns the orthonormal matrix of the cosine transform of 8 values, whose scale is JPEG's."""
    rows = [[math.cos((2 * x + 1) * u * math.pi / 16) * (0.5 if u else 0.125**0.5) for x in range(8)] for u in range(8)]
    return like.new_tensor(rows)


def _table(text: str, like: Tensor) -> Tensor:
    return like.new_tensor([float(word) for word in text.split()]).view(1, 8, 8)


def _drawn(size: int, share: float, generator: torch.Generator, like: Tensor) -> Tensor:
    return (torch.rand(size, generator=generator) < share).to(like.device)


def _symmetric(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(size, generator=generator) - 1
