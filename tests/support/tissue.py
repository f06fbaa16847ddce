"""Synthetic H&E tiles of one site, and what may be uploaded instead of such."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

from historay.data.synthetic_tissue import Look, Palette, Scanner, make_palette, paint_tile

Tiles = NDArray[np.uint8]


@cache
def _palette() -> Palette:
    return make_palette(np.random.default_rng(0))


def tissue(seed: int, num: int, px: int = 96) -> Tiles:
    """Tiles of patients of one site, half of them tumour; another seed gives other patients of the same site."""
    site = np.random.default_rng(7)
    look, rng = Look.of_site(site, Scanner.drawn(site)), np.random.default_rng(seed)
    return np.stack(
        [
            paint_tile(rng, _palette(), look.of_patient(rng), px, tumour=number % 2 == 0, artefact_rate=0.0)
            for number in range(num)
        ]
    )


def grey(tiles: Tiles) -> Tiles:
    return np.repeat((tiles @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=3).astype(np.uint8)


def marked(tiles: Tiles, ink: tuple[int, int, int]) -> Tiles:
    """A stroke of ink across each tile."""
    drawn = tiles.copy()
    drawn[:, 30:50] = ink
    return drawn
