"""What a lab may send that is not like a model's validation tiles: by name, made from real test tiles or from nothing."""

from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage
from sklearn.datasets import load_sample_images

Tiles = NDArray[np.uint8]

# Optical density in red, green, blue (Ruifrok and Johnston 2001).
_HE = ((0.644211, 0.716556, 0.266844), (0.092789, 0.954111, 0.283111))
_H_DAB = ((0.650, 0.704, 0.286), (0.268, 0.570, 0.776))
_TRICHROME = ((0.799511, 0.591352, 0.105287), (0.099972, 0.737386, 0.668033))  # methyl blue, ponceau fuchsin
_INKS = {"green": (20, 140, 60), "blue": (20, 40, 180), "black": (15, 15, 20), "red": (200, 20, 30)}


def foreign_tiles(tissue: Tiles, num: int, rng: np.random.Generator) -> Iterator[tuple[str, Tiles]]:
    """Yields (name, tiles): ``num`` of each kind of the size of ``tissue``, of which at least ``num`` are wanted."""
    px, own = tissue.shape[1], tissue[:num]
    yield "photographs, cut from three", _photographs(num, px, rng)
    yield "text pages", np.stack([_text(px, rng) for _ in range(num)])
    yield "white noise", rng.integers(0, 256, (num, px, px, 3), dtype=np.uint8)
    smooth = ndimage.gaussian_filter(rng.normal(size=(num, px, px, 3)), (0, 4, 4, 0))
    yield "smooth noise", _levels(128 + 50 * smooth / smooth.std())
    yield "one colour, any", np.broadcast_to(rng.integers(0, 256, (num, 1, 1, 3), dtype=np.uint8), (num, px, px, 3))
    yield "blank glass", rng.integers(240, 256, (num, px, px, 3), dtype=np.uint8)
    yield "greyscale", np.repeat(_levels(own @ np.array([0.299, 0.587, 0.114]))[..., None], 3, axis=3)
    yield "colours inverted", 255 - own
    yield "red and blue swapped", own[..., ::-1]
    yield "H-DAB for H&E", _restained(own, _H_DAB)
    yield "trichrome for H&E", _restained(own, _TRICHROME)
    yield "H and E swapped", _restained(own, _HE[::-1])
    for sigma in (1, 1.5, 2, 3, 5):
        blurred = ndimage.gaussian_filter(own.astype(np.float32), (0, sigma, sigma, 0))
        yield f"blurred, sigma {sigma} px", _levels(blurred)
    for name, ink in _INKS.items():
        yield f"pen, {name}", np.stack([_marked(tile, ink, rng) for tile in own])


def _photographs(num: int, px: int, rng: np.random.Generator) -> Tiles:
    """Windows of 96 px and more, resized: scikit-learn's two photographs and Matplotlib's one."""
    portrait = Path(mpl.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    photographs = [*load_sample_images().images, np.asarray(Image.open(portrait).convert("RGB"))]
    found = []
    for number in range(num):
        whole = photographs[number % len(photographs)]
        side = int(rng.integers(96, min(whole.shape[:2])))
        row, column = (int(rng.integers(0, size - side + 1)) for size in whole.shape[:2])
        window = Image.fromarray(whole[row : row + side, column : column + side])
        found.append(np.asarray(window.resize((px, px), Image.Resampling.BILINEAR)))
    return np.stack(found)


def _text(px: int, rng: np.random.Generator) -> Tiles:
    page = Image.new("RGB", (px, px), (int(rng.integers(240, 256)),) * 3)
    font, draw, top = ImageFont.load_default(int(rng.integers(9, 20))), ImageDraw.Draw(page), 0.0
    while top < px:
        line = "".join(rng.choice(list("abcdefghijklm nopqrstuvwxyz ,."), 30))
        draw.text((2, top), line, fill=(int(rng.integers(0, 60)),) * 3, font=font)
        top += 1.2 * font.size
    return np.asarray(page)


def _restained(tiles: Tiles, stains: tuple[tuple[float, ...], ...]) -> Tiles:
    """The same amounts in other stains; what haematoxylin and eosin do not explain stays as it is."""
    own = _unit(np.vstack([_HE, np.cross(*_HE)]))
    other = np.vstack([_unit(np.array(stains)), own[2]])
    return _levels(255 * 10 ** (np.log10(np.maximum(tiles, 1) / 255) @ np.linalg.inv(own) @ other))


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def _marked(tile: Tiles, ink: tuple[int, int, int], rng: np.random.Generator) -> Tiles:
    """A felt pen's stroke of 8 to 20 px, through which a quarter of the tissue's structure shines."""
    px = len(tile)
    mask = Image.new("L", (2 * px, 2 * px), 0)
    points = [tuple(rng.uniform(0, 2 * px, 2)) for _ in range(3)]
    if rng.random() < 0.5:  # across the whole tile
        points = [(0, points[0][1]), points[1], (2 * px, points[2][1])]
    ImageDraw.Draw(mask).line(points, fill=255, width=int(rng.uniform(16, 40)), joint="curve")
    cover = np.asarray(mask.resize((px, px)))[..., None] / 255
    light = np.minimum(np.array(ink) / 255 * rng.uniform(0.9, 1.3), 1)
    return _levels(tile * (1 - cover) + cover * light * (0.25 * tile + 0.75 * 255))


def _levels(values: NDArray[np.floating]) -> Tiles:
    return np.asarray(np.clip(np.rint(values), 0, 255), dtype=np.uint8)
