"""Spoiling on the device is what the real thing does: libjpeg, scipy's blur, stains that scale, colours of a neighbour."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from images import texture
from scipy import ndimage
from torch import Tensor

from historay.data.augmentation import blur, compress, jitter_haematoxylin_eosin, mix_colours, spoil_slightly
from historay.data.corruptions import UNIT_STAINS, corrupt
from historay.data.stain import optical_density
from historay.data.transforms import apply_d4, augment, measure_preprocessing, to_input, to_unit

LEVELS = np.stack([texture(seed, 64) for seed in range(16)])
TILES = to_unit(torch.from_numpy(LEVELS))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("severity", "quality"), [(1, 80.0), (3, 40.0), (5, 10.0)])
def test_compression_leaves_what_libjpeg_leaves(severity: int, quality: float) -> None:
    libjpeg = to_unit(torch.from_numpy(corrupt(LEVELS, "jpeg", severity, 0)))
    ours = compress(TILES, torch.full((16,), quality))
    lost = float((libjpeg - TILES).abs().mean())
    assert (ours - libjpeg).abs().mean() < 0.25 * lost
    assert float((ours - TILES).abs().mean()) == pytest.approx(lost, rel=0.1)


def test_each_tile_is_compressed_at_its_own_quality() -> None:
    quality = torch.linspace(10, 95, 16)
    together = compress(TILES, quality)
    for row in range(16):
        torch.testing.assert_close(together[row : row + 1], compress(TILES[row : row + 1], quality[row : row + 1]))
    lost = (compress(TILES[:1].expand(16, -1, -1, -1), quality) - TILES[:1]).square().mean(dim=(1, 2, 3))
    assert lost[0] > 2 * lost[8] > 2 * lost[15]


@pytest.mark.parametrize("px", [50, 64])
def test_compression_keeps_any_size(px: int) -> None:
    assert compress(TILES[:, :, :px, :px], torch.full((16,), 50.0)).shape == (16, 3, px, px)


def test_each_tile_is_blurred_by_its_own_gaussian() -> None:
    sigma = torch.linspace(0.3, 1.5, 16)
    found = blur(TILES, sigma)
    for tile, ours, s in zip(TILES.numpy(), found.numpy(), sigma.tolist(), strict=True):
        expected = ndimage.gaussian_filter(tile, (0, s, s), mode="mirror", radius=4)
        np.testing.assert_allclose(ours, expected, atol=1e-4)


def test_the_stain_jitter_scales_and_shifts_amounts_of_the_stains_alone() -> None:
    amounts = torch.rand((16, 3, 20, 20), generator=generator()) * 0.4 + 0.1
    stains = torch.from_numpy(UNIT_STAINS).float()
    made = torch.pow(10, -torch.einsum("bshw,sc->bchw", amounts, stains))
    jittered = jitter_haematoxylin_eosin(made, generator(), strength=0.2, shift=0.05)
    found = torch.einsum("bchw,cs->bshw", optical_density(jittered), torch.linalg.inv(stains))
    for before, after in zip(amounts.flatten(0, 1).flatten(1), found.flatten(0, 1).flatten(1), strict=True):
        slope, offset = np.polyfit(before.numpy(), after.numpy(), 1)
        assert 0.8 <= slope <= 1.2
        assert abs(offset) <= 0.05
        np.testing.assert_allclose(after, slope * before + offset, atol=2e-3)


def test_a_mixed_tile_has_colours_between_its_own_and_a_neighbours() -> None:
    dark = 0.75 * TILES[:2] - torch.tensor([0.0, 0.1, 0.2]).view(3, 1, 1) * torch.arange(2).view(2, 1, 1, 1)
    means = optical_density(dark).mean(dim=(2, 3))
    seen_far = False
    for seed in range(20):
        found = optical_density(mix_colours(dark, generator(seed))).mean(dim=(2, 3))
        low, high = means.amin(dim=0) - 0.03, means.amax(dim=0) + 0.03
        assert ((low <= found) & (found <= high)).all()
        seen_far |= bool((found[0] - means[0]).abs().max() > 0.5 * (means[1] - means[0]).abs().max())
    assert seen_far


def test_glass_neither_changes_nor_gives_its_colour() -> None:
    glass = torch.ones(15, 3, 64, 64)
    assert torch.equal(mix_colours(torch.cat([TILES[:1], glass]), generator()), torch.cat([TILES[:1], glass]))


@pytest.mark.parametrize("spoil", [spoil_slightly, jitter_haematoxylin_eosin, mix_colours])
def test_whatever_is_drawn_stays_a_picture_and_the_seed_decides_it(
    spoil: Callable[[Tensor, torch.Generator], Tensor],
) -> None:
    hard = torch.cat([TILES, torch.zeros(1, 3, 64, 64), torch.ones(1, 3, 64, 64), torch.rand(1, 3, 64, 64)])
    for seed in range(5):
        found = spoil(hard, generator(seed))
        assert torch.isfinite(found).all()
        assert 0 <= found.min() <= found.max() <= 1
        assert torch.equal(found, spoil(hard, generator(seed)))
    assert not torch.equal(found, spoil(hard, generator(99)))


def test_the_strong_level_also_turns_tiles() -> None:
    found = augment(TILES, "strong", generator())

    def likeness(a: Tensor, b: Tensor) -> float:
        return float(np.corrcoef(a.flatten().numpy(), b.flatten().numpy())[0, 1])

    best = [
        max(range(8), key=lambda element: likeness(apply_d4(tile[None], element), after))
        for tile, after in zip(TILES, found, strict=True)
    ]
    assert len(set(best)) >= 4


@pytest.mark.parametrize("stain", ["none", "reinhard", "macenko"])
def test_the_measured_preprocessing_makes_the_input_standard(stain: str) -> None:
    tiles = (0.8 * LEVELS).astype(np.uint8)
    made = to_input(torch.from_numpy(tiles), measure_preprocessing(tiles, stain))  # type: ignore[arg-type]
    torch.testing.assert_close(made.mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(made.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-3, rtol=0)
