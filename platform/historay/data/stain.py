"""Stain normalisation: a tile takes on the colours of a reference, by Reinhard's or by Macenko's method, on the device.

Optical density is -log10 of the transmitted share of light; amounts of stain add up in it (Beer-Lambert). Statistics are
over tissue, since glass would make a tile look pale. A tile with too little tissue, or one whose two stains cannot be
told apart, stays as it is: no colour is better than an invented one. Nothing here depends on a tile's neighbours in the
batch, or changes with its turns and flips.

Suffixes: B tiles, C channels (RGB), H rows, W columns, P pixels, S stains; float values on [0, 1] or in optical density.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from historay.errors import DataError

StainMethod = Literal["none", "reinhard", "macenko"]
Triple = tuple[float, float, float]

_DARKEST = 1.0 / 255.0  # one level keeps the logarithm finite
MAX_DENSITY = -math.log10(_DARKEST)
_LN_10 = math.log(10.0)
TISSUE = 0.15  # mean optical density from which a pixel is tissue (Macenko et al. 2009)
_MIN_SHARE = 0.05  # of pixels that must be tissue
_MIN_ANGLE = 0.05  # radians between the stains; in H&E they are some 0.4 apart
_EXTREME = 0.01  # Macenko's share of pixels beyond the angle of a pure stain, and beyond its strength
_LARGEST_FACTOR = 4.0  # on a deviation or a strength: beyond, the statistics are at fault
_SQUARINGS = 8  # a matrix to the 256th power has forgotten all but its first eigenvector

# Reinhard et al. 2001: RGB to cone responses, and their logarithms to l (light), alpha (yellow-blue), beta (red-green).
_CONES = ((0.3811, 0.5783, 0.0402), (0.1967, 0.7244, 0.0782), (0.0241, 0.1288, 0.8444))
_CONES_INVERSE = np.linalg.inv(_CONES).tolist()
_OPPONENT = ((1 / 3**0.5,) * 3, (1 / 6**0.5, 1 / 6**0.5, -2 / 6**0.5), (1 / 2**0.5, -1 / 2**0.5, 0.0))


class Reinhard(BaseModel):
    """Mean and deviation of a reference's tissue in l, alpha and beta."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["reinhard"] = "reinhard"
    mean: Triple
    std: Triple


class Macenko(BaseModel):
    """Unit vectors of a reference's haematoxylin and eosin in optical density, and the strength that 1 % of it exceeds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    method: Literal["macenko"] = "macenko"
    stains: tuple[Triple, Triple]
    strengths: tuple[float, float]


class _Stains(NamedTuple):
    vectors_BS3: Tensor  # the third is what neither stain explains
    strengths_BS: Tensor  # of the first two
    found_B: Tensor


def optical_density(tiles_BCHW: Tensor) -> Tensor:
    """Returns -log10, at most 2.4."""
    # In place on its own copy, here and below: fresh memory costs a CPU more than the arithmetic.
    return tiles_BCHW.clamp_min(_DARKEST).log10_().neg_()


def from_density(density_BCHW: Tensor) -> Tensor:
    """Returns the transmitted share of light, on [0, 1]."""
    # exp takes a quarter of the time of pow.
    return (density_BCHW * -_LN_10).exp_().clamp_max_(1.0)


def constant(values: ArrayLike, like: Tensor) -> Tensor:
    """Returns numbers as a tensor of another's device and type; unlike ``new_tensor`` it does not wait for a GPU."""
    return sent(torch.as_tensor(np.asarray(values), dtype=like.dtype), like.device)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Returns a small tensor of the CPU on the device, without waiting until a GPU has done what it was asked before."""
    return tensor.to(device, non_blocking=True)


def measure_stain(reference_BCHW: Tensor, method: Literal["reinhard", "macenko"]) -> Reinhard | Macenko:
    """Measures tiles, on [0, 1], that together are the reference image; DataError if they have too little tissue."""
    joined = reference_BCHW.transpose(0, 1).flatten(1, 2).unsqueeze(0)  # one below the other
    if method == "reinhard":
        mean, std, found = _opponent_statistics(joined)
        measured = (mean.flatten().tolist(), std.flatten().tolist())
    else:
        vectors, strengths, found = _stains_of(joined)
        measured = (vectors[0, :2].tolist(), strengths[0].tolist())
    if not bool(found):
        raise DataError(
            f"stain normalisation by {method}: the {len(reference_BCHW)} reference tiles have under {_MIN_SHARE:.0%} tissue, "
            "or one stain only; use none"
        )
    if method == "reinhard":
        return Reinhard(mean=measured[0], std=measured[1])
    return Macenko(stains=measured[0], strengths=measured[1])


def normalise_stain(tiles_BCHW: Tensor, reference: Reinhard | Macenko | None) -> Tensor:
    """Gives each tile, on [0, 1], the reference's colours."""
    if reference is None:
        return tiles_BCHW
    return _reinhard(tiles_BCHW, reference) if isinstance(reference, Reinhard) else _macenko(tiles_BCHW, reference)


def tissue_of(density_BCHW: Tensor) -> Tensor:
    """Returns 1 where a pixel is tissue, 0 elsewhere: (B, 1, H, W)."""
    return (density_BCHW.mean(dim=1, keepdim=True) > TISSUE).to(density_BCHW.dtype)


def mean_and_std(values_BCHW: Tensor, weight_B1HW: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each channel's weighted mean and deviation (B, C, 1, 1); 0 without any weight."""
    total = weight_B1HW.sum(dim=(2, 3), keepdim=True).clamp_min(1e-12)
    mean = (values_BCHW * weight_B1HW).sum(dim=(2, 3), keepdim=True) / total
    variance = (values_BCHW - mean).square_().mul_(weight_B1HW).sum(dim=(2, 3), keepdim=True) / total
    return mean, variance.sqrt()


def mix_channels(values_BCHW: Tensor, matrix_B33: Tensor) -> Tensor:
    """Multiplies each pixel, a row, by its tile's matrix (B or 1, 3, 3)."""
    return (matrix_B33.transpose(1, 2) @ values_BCHW.flatten(2)).view(values_BCHW.shape)


def _reinhard(tiles_BCHW: Tensor, reference: Reinhard) -> Tensor:
    mean, std, found = _opponent_statistics(tiles_BCHW)
    wanted_mean, wanted_std = (constant(v, tiles_BCHW).view(1, 3, 1, 1) for v in (reference.mean, reference.std))
    factor = (wanted_std / std.clamp_min(1e-6)).clamp(1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    moved = (_to_opponent(tiles_BCHW) - mean) * factor + wanted_mean
    return torch.where(found.view(-1, 1, 1, 1), _from_opponent(moved), tiles_BCHW)


def _opponent_statistics(tiles_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tissue = tissue_of(optical_density(tiles_BCHW))
    mean, std = mean_and_std(_to_opponent(tiles_BCHW), tissue)
    return mean, std, tissue.mean(dim=(1, 2, 3)) >= _MIN_SHARE


def _to_opponent(tiles_BCHW: Tensor) -> Tensor:
    cones = mix_channels(tiles_BCHW.clamp_min(_DARKEST), _columns(_CONES, tiles_BCHW))
    return mix_channels(torch.log10(cones), _columns(_OPPONENT, tiles_BCHW))


def _from_opponent(opponent_BCHW: Tensor) -> Tensor:
    # The opponent matrix is orthogonal: its transpose undoes it.
    cones = torch.pow(10.0, mix_channels(opponent_BCHW, _columns(_OPPONENT, opponent_BCHW).transpose(1, 2)))
    return mix_channels(cones, _columns(_CONES_INVERSE, cones)).clamp(0.0, 1.0)


def _columns(rows: Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Returns the matrix that multiplies pixels as rows, where ``rows`` multiplies them as columns."""
    return constant(rows, like).T.unsqueeze(0)


def _macenko(tiles_BCHW: Tensor, reference: Macenko) -> Tensor:
    vectors, strengths, found = _stains_of(tiles_BCHW)
    wanted = _with_third(constant(reference.stains, tiles_BCHW).unsqueeze(0))
    factor_BS = (constant(reference.strengths, tiles_BCHW) / strengths.clamp_min(1e-6)).clamp(
        1 / _LARGEST_FACTOR, _LARGEST_FACTOR
    )
    factor_BS = F.pad(factor_BS, (0, 1), value=1.0)  # what neither stain explains keeps its amount
    # Unmix, scale each stain, mix with the reference's: one matrix a tile.
    matrix_B33 = _inverse(vectors) @ (factor_BS.unsqueeze(2) * wanted)
    identity = torch.eye(3, dtype=tiles_BCHW.dtype, device=tiles_BCHW.device)
    matrix_B33 = torch.where(found.view(-1, 1, 1), matrix_B33, identity)
    moved = from_density(mix_channels(optical_density(tiles_BCHW), matrix_B33))
    return torch.where(found.view(-1, 1, 1, 1), moved, tiles_BCHW)


def _stains_of(tiles_BCHW: Tensor) -> _Stains:
    """Finds each tile's two stains as the robust extremes of its pixels' directions in their best plane."""
    # Means of 2 x 2 pixels quieten JPEG and quarter the work; at an odd side they would not be symmetric.
    even = tiles_BCHW.shape[2] % 2 == 0 and tiles_BCHW.shape[3] % 2 == 0
    density = optical_density(F.avg_pool2d(tiles_BCHW, 2) if even else tiles_BCHW)
    tissue_BP = tissue_of(density).flatten(1)
    density_BP3 = density.flatten(2).transpose(1, 2)
    plane_B23 = _best_plane(density_BP3 * tissue_BP.unsqueeze(2))
    in_plane_BP2 = density_BP3 @ plane_B23.transpose(1, 2)
    angle_BP = torch.atan2(in_plane_BP2[..., 1], in_plane_BP2[..., 0])
    low_B1, high_B1 = (_quantile(angle_BP, tissue_BP, share) for share in (_EXTREME, 1 - _EXTREME))
    pair_B23 = torch.stack([_direction(low_B1, plane_B23), _direction(high_B1, plane_B23)], dim=1)
    # Haematoxylin is the one that takes more red away.
    first_is_blue = (pair_B23[:, 0, 0] >= pair_B23[:, 1, 0]).view(-1, 1, 1)
    vectors_BS3 = _with_third(torch.where(first_is_blue, pair_B23, pair_B23.flip(1)))
    found_B = (tissue_BP.mean(dim=1) >= _MIN_SHARE) & ((high_B1 - low_B1).squeeze(1) >= _MIN_ANGLE)
    identity = torch.eye(3, dtype=density.dtype, device=density.device)
    vectors_BS3 = torch.where(found_B.view(-1, 1, 1), vectors_BS3, identity)
    amount_BPS = density_BP3 @ _inverse(vectors_BS3)
    strengths = [_quantile(amount_BPS[..., stain], tissue_BP, 1 - _EXTREME) for stain in (0, 1)]
    strengths_BS = torch.cat(strengths, dim=1)
    return _Stains(vectors_BS3, strengths_BS, found_B & (strengths_BS > 0).all(dim=1))


def _direction(angle_B1: Tensor, plane_B23: Tensor) -> Tensor:
    return angle_B1.cos() * plane_B23[:, 0] + angle_B1.sin() * plane_B23[:, 1]


def _best_plane(pixels_BP3: Tensor) -> Tensor:
    """Returns the two first right singular vectors (B, 2, 3), the first along the mean pixel.

    By squaring the 3 x 3 moments over and over, which every device and runtime can do, unlike an eigenvalue problem.
    """
    moment_B33 = pixels_BP3.transpose(1, 2) @ pixels_BP3
    first = _principal(moment_B33)
    identity = torch.eye(3, dtype=first.dtype, device=first.device)
    outside_B33 = identity - first.unsqueeze(2) * first.unsqueeze(1)
    second = _principal(outside_B33 @ moment_B33 @ outside_B33)
    along_mean = (first * pixels_BP3.sum(dim=1)).sum(dim=1, keepdim=True) >= 0
    return torch.stack([torch.where(along_mean, first, -first), second], dim=1)


def _principal(moment_B33: Tensor) -> Tensor:
    power = moment_B33
    identity = torch.eye(3, dtype=power.dtype, device=power.device)
    for _ in range(_SQUARINGS):
        power = power / (power * identity).sum(dim=(1, 2), keepdim=True).clamp_min(1e-30)
        power = power @ power
    longest = power.square().sum(dim=1).argmax(dim=1).view(-1, 1, 1).expand(-1, 3, 1)
    return F.normalize(power.gather(2, longest).squeeze(2), dim=1, eps=1e-30)


def _with_third(pair_B23: Tensor) -> Tensor:
    """Adds the unit vector that is normal to both."""
    normal = _cross(pair_B23[:, 0], pair_B23[:, 1])
    return torch.cat([pair_B23, F.normalize(normal, dim=1, eps=1e-12).unsqueeze(1)], dim=1)


def _inverse(matrix_B33: Tensor) -> Tensor:
    """Inverts by cross products."""
    a, b, c = matrix_B33.unbind(1)
    columns = torch.stack([_cross(b, c), _cross(c, a), _cross(a, b)], dim=2)
    determinant = (a * columns[:, :, 0]).sum(dim=1)
    return columns / determinant.view(-1, 1, 1)


def _cross(a_B3: Tensor, b_B3: Tensor) -> Tensor:
    (a, b, c), (d, e, f) = a_B3.unbind(1), b_B3.unbind(1)
    return torch.stack([b * f - c * e, c * d - a * f, a * e - b * d], dim=1)


def _quantile(values_BP: Tensor, weight_BP: Tensor, share: float) -> Tensor:
    """Returns a quantile (B, 1) of the values whose weight is 1, interpolated as numpy does by default."""
    ordered = torch.where(weight_BP > 0, values_BP, torch.inf).sort(dim=1).values
    place = share * (weight_BP.sum(dim=1, keepdim=True) - 1).clamp_min(0)
    below = place.floor()
    low = ordered.gather(1, below.long())
    high = ordered.gather(1, place.ceil().long())
    return torch.where(torch.isfinite(low), low + (place - below) * (high - low), 0.0)
