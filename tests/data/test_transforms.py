"""Augmentation moves pixels and never invents a tile; normalisation is one formula."""

import numpy as np
import pytest
import torch
from images import texture

from historay.data.transforms import Preprocessing, apply_d4, augment, jitter_stain, random_d4, to_input, to_unit

TILES = torch.from_numpy(np.stack([texture(seed, 48) for seed in range(64)]))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_input_is_normalised_per_channel() -> None:
    preprocessing = Preprocessing(input_px=48, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    mean, std = np.reshape([0.1, 0.2, 0.3], (3, 1, 1)), np.reshape([0.5, 0.6, 0.7], (3, 1, 1))
    expected = (TILES.numpy().transpose(0, 3, 1, 2) / 255.0 - mean) / std
    assert np.allclose(to_input(TILES, preprocessing).numpy(), expected, atol=1e-6)


def test_the_eight_symmetries_are_eight() -> None:
    tile = to_unit(TILES[:1])
    assert len({apply_d4(tile, element).contiguous().numpy().tobytes() for element in range(8)}) == 8


def test_each_tile_becomes_one_of_its_own_symmetries_exactly() -> None:
    unit = to_unit(TILES)
    for before, after in zip(unit, random_d4(unit, generator()), strict=True):
        assert any(torch.equal(apply_d4(before[None], element)[0], after) for element in range(8))


def test_all_symmetries_are_drawn_about_evenly() -> None:
    unit = to_unit(TILES[:1]).expand(4000, -1, -1, -1)[:, :, :6, :6].contiguous()
    drawn = random_d4(unit, generator())
    counts = [sum(torch.equal(tile, apply_d4(unit[:1], element)[0]) for tile in drawn) for element in range(8)]
    assert sum(counts) == 4000
    assert min(counts) > 400


def test_stain_jitter_stays_a_picture_and_spares_the_shape() -> None:
    unit = to_unit(TILES)
    jittered = jitter_stain(unit, generator())
    assert 0 <= float(jittered.min()) <= float(jittered.max()) <= 1
    assert not torch.equal(jittered, unit)
    a, b = unit[:, 0].flatten(1), jittered[:, 0].flatten(1)
    assert all(np.corrcoef(x, y)[0, 1] > 0.98 for x, y in zip(a.numpy(), b.numpy(), strict=True))


@pytest.mark.parametrize("level", ["none", "d4", "full"])
def test_the_same_seed_augments_alike(level: str) -> None:
    unit = to_unit(TILES)
    assert torch.equal(augment(unit, level, generator(3)), augment(unit, level, generator(3)))  # type: ignore[arg-type]
