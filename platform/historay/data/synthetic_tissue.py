"""Paints one synthetic tile: stain amounts first, then light through the stains, as a scanner sees it.

Amounts of haematoxylin and eosin are painted as optical densities and mixed by stain vectors (Ruifrok and Johnston 2001).
Nuclei and textures are drawn once per seed into a palette and pasted, which is what makes 500 tiles a second possible.
Arrays are (rows, columns); lengths are in pixels at 0.5 micrometres per pixel.
"""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Plane = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_FIELD_PX = 640  # of the texture fields, from which tiles cut windows
_STAMPS = 160  # nuclei of each kind
# Haematoxylin and eosin, red green blue: the reference vectors of Macenko et al. 2009.
_STAINS = np.array([[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]], dtype=np.float32)
_AREA = {"round": 71.0, "spindle": 33.0, "atypical": 153.0}  # pixels of a nucleus, mean of the palette
_FIBRE_ANGLES = (0, 30, 60, 90, 120, 150)  # degrees


@dataclass(frozen=True)
class Scanner:
    """What a scanner adds of its own."""

    white: NDArray[np.float32]  # (3,), levels of 255 where there is no tissue
    blur: float  # standard deviation in pixels
    noise: float  # levels of 255
    jpeg_quality: int

    @classmethod
    def drawn(cls, rng: np.random.Generator) -> Self:
        """Draws a scanner."""
        return cls(
            white=rng.uniform(236, 250, 3).astype(np.float32),
            blur=float(rng.uniform(0.0, 0.6)),
            noise=float(rng.uniform(1.0, 3.0)),
            jpeg_quality=int(rng.integers(75, 93)),
        )


@dataclass(frozen=True)
class Look:
    """How a site's stains and scanner, and a patient's tissue, show."""

    stains: NDArray[np.float32]  # (2, 3), unit rows
    scanner: Scanner
    haematoxylin: float = 1.0  # strengths
    eosin: float = 1.0
    nuclear_size: float = 1.0

    @classmethod
    def of_site(cls, rng: np.random.Generator, scanner: Scanner) -> Self:
        """Draws a site's stains; its slides go through the given scanner."""
        stains = _STAINS * (1 + rng.normal(0, 0.08, (2, 3)))
        stains = np.clip(stains, 0.02, None)
        return cls((stains / np.linalg.norm(stains, axis=1, keepdims=True)).astype(np.float32), scanner)

    def of_patient(self, rng: np.random.Generator) -> "Look":
        """Draws a patient of this site."""
        strength = rng.uniform(0.75, 1.3, 2)
        size = float(rng.uniform(0.9, 1.12))
        return replace(self, haematoxylin=float(strength[0]), eosin=float(strength[1]), nuclear_size=size)


@dataclass(frozen=True)
class Palette:
    """What tiles are pasted from: fibre and cytoplasm textures, and stamps of nuclei by kind."""

    fibres: list[Plane]  # (F, F), mean 1, one per direction
    cytoplasm: Plane  # (F, F), mean 1
    clumps: Plane  # (F, F), about 0, slow
    nuclei: dict[str, list[Plane]]  # haematoxylin densities, background 0


def make_palette(rng: np.random.Generator) -> Palette:
    """Draws the palette; takes about a second."""
    cytoplasm = _standard(ndimage.gaussian_filter(rng.normal(size=(_FIELD_PX, _FIELD_PX)), 1.6, mode="wrap"))
    clumps = _standard(ndimage.gaussian_filter(rng.normal(size=(_FIELD_PX, _FIELD_PX)), 22, mode="wrap"))
    return Palette(
        fibres=[_fibres(rng, angle) for angle in _FIBRE_ANGLES],
        cytoplasm=(1 + 0.16 * cytoplasm).clip(0.1).astype(np.float32),
        clumps=clumps.astype(np.float32),
        nuclei={
            "round": _stamps(rng, (4.0, 5.4), (0.82, 1.0), bumps=0.04),
            "spindle": _stamps(rng, (3.4, 4.4), (0.32, 0.5), bumps=0.03),
            "atypical": _stamps(rng, (5.2, 9.0), (0.6, 1.0), bumps=0.14, nucleoli=True),
        },
    )


def paint_tile(
    rng: np.random.Generator, palette: Palette, look: Look, tile_px: int, *, tumour: bool, artefact_rate: float
) -> Pixels:
    """Returns one tile (tile_px, tile_px, 3) uint8 RGB."""
    eosin, lumen, nuclei = _ground(rng, palette, tile_px, tumour=tumour)
    haematoxylin = np.zeros((tile_px, tile_px), np.float32)
    for row, column, kind in nuclei:
        _paste(haematoxylin, _stamp(rng, palette, kind, look.nuclear_size), row, column)
    haematoxylin *= 1 - 0.8 * lumen
    # The amount of haematoxylin is drawn, not left to the number and size of the nuclei, which would tell the class by
    # colour alone: nuclei are stained fainter or darker, and the rest lies as haze on the cytoplasm.
    target = rng.uniform(0.10, 0.26)
    haematoxylin *= np.clip(target / max(float(haematoxylin.mean()), 0.02), 0.55, 1.2)
    haze = max(0.0, target - float(haematoxylin.mean()))
    haematoxylin += (haze / max(float(eosin.mean()), 0.05)) * eosin
    density = haematoxylin[..., None] * (look.haematoxylin * look.stains[0])
    density += eosin[..., None] * (look.eosin * 0.75 * look.stains[1])
    if rng.random() < artefact_rate:
        density = _artefact(rng, density)
    return _scanned(rng, density, look)


Nucleus = tuple[float, float, str]  # row, column, kind


def _ground(rng: np.random.Generator, palette: Palette, tile_px: int, *, tumour: bool) -> tuple[Plane, Plane, list[Nucleus]]:
    """Draws eosin, the open lumen of glands, and where nuclei of which kind lie."""
    fibres = _window(rng, palette.fibres[rng.integers(len(palette.fibres))], tile_px)
    cytoplasm = _window(rng, palette.cytoplasm, tile_px)
    clumps = _window(rng, palette.clumps, tile_px)
    share = 1 / (1 + np.exp(-4 * (clumps + rng.normal(0, 0.7))))  # of cellular tissue, against stroma
    eosin = 0.42 * fibres * (1 - share) + 0.30 * cytoplasm * share
    lumen = np.zeros((tile_px, tile_px), np.float32)
    nuclei: list[Nucleus] = []
    for _ in range(rng.poisson(0.9 * (tile_px / 96) ** 2)):
        nuclei += _gland(rng, lumen, tumour=tumour)
    # The area that nuclei cover is drawn without regard to the class, so that a tumour has fewer, larger ones.
    wanted = rng.uniform(0.10, 0.26) * tile_px**2 - sum(_AREA[kind] for *_, kind in nuclei)
    nuclei += _scattered(rng, wanted, share, tumour=tumour)
    return (eosin * (1 - lumen)).astype(np.float32), lumen, nuclei


def _gland(rng: np.random.Generator, lumen: Plane, *, tumour: bool) -> list[Nucleus]:
    """Opens one gland in ``lumen`` and returns the nuclei of its rim: a neat ring, or in a tumour a ragged one."""
    size = lumen.shape[0]
    row, column, radius = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(9, 18)
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    lobes, phase, depth = rng.integers(2, 5), rng.uniform(0, 6), rng.uniform(0.25, 0.5) if tumour else 0.05
    edge = radius * (1 + depth * np.sin(np.arctan2(rows - row, columns - column) * lobes + phase))
    inside = edge - np.hypot(rows - row, columns - column)
    np.maximum(lumen, np.clip(0.5 + inside / 2, 0, 1), out=lumen)
    step, stray = (12.0, 3.5) if tumour else (8.5, 0.4)
    angles = np.arange(0, 2 * np.pi, step / (radius + 6)) + rng.uniform(0, 1)
    reach = radius * (1 + depth * np.sin(angles * lobes + phase)) + 6 + rng.normal(0, stray, len(angles))
    kind = "atypical" if tumour else "round"
    return [(row + r * np.sin(a), column + r * np.cos(a), kind) for r, a in zip(reach, angles, strict=True)]


def _scattered(rng: np.random.Generator, area: float, share: NDArray[np.float64], *, tumour: bool) -> list[Nucleus]:
    """Scatters nuclei over about ``area`` pixels: spindles in stroma, and round or atypical ones where it is cellular."""
    # As many points as the smallest nuclei would need.
    points = rng.uniform(0, share.shape[0], (max(4, int(area / 30)), 2))
    if not tumour:
        points = _apart(points, 9.5)
    found: list[Nucleus] = []
    for row, column in points:
        if area <= 0 and len(found) > 2:
            break
        kind = "spindle"
        if rng.random() < share[int(row), int(column)]:
            # Some cells of a tumour look harmless: a single nucleus does not tell.
            kind = "atypical" if tumour and rng.random() < 0.85 else "round"
        found.append((float(row), float(column), kind))
        area -= _AREA[kind]
    return found


def _apart(points: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
    """Keeps points that are not too near to an earlier one."""
    gaps = np.hypot(*(points[:, None] - points[None]).transpose(2, 0, 1))
    too_near = np.tril(gaps < distance, -1).any(axis=1)
    return np.asarray(points[~too_near])


def _fibres(rng: np.random.Generator, angle: float) -> Plane:
    """Draws wavy fibres in one direction: long noise, warped and turned."""
    size = int(_FIELD_PX * 1.5)
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), (1.1, 11.0), mode="wrap")
    shift = ndimage.gaussian_filter(rng.normal(size=(size, size)), 24, mode="wrap")
    rows, columns = np.mgrid[:size, :size].astype(np.float64)
    wavy = ndimage.map_coordinates(noise, [rows + 5 * _standard(shift), columns], order=1, mode="wrap")
    turned = ndimage.rotate(wavy, angle, reshape=False, order=1, mode="wrap")
    edge = (size - _FIELD_PX) // 2
    field = _standard(turned[edge : edge + _FIELD_PX, edge : edge + _FIELD_PX])
    return (1 + 0.3 * field).clip(0.1).astype(np.float32)


def _stamps(
    rng: np.random.Generator, radii: tuple[float, float], squeezes: tuple[float, float], bumps: float, *, nucleoli: bool = False
) -> list[Plane]:
    """Draws nuclei from the smallest to the largest, so that a patient's size can pick among them."""
    sizes = np.sort(rng.uniform(*radii, _STAMPS))
    return [_nucleus(rng, radius, rng.uniform(*squeezes), bumps, nucleoli=nucleoli) for radius in sizes]


def _nucleus(rng: np.random.Generator, radius: float, squeeze: float, bumps: float, *, nucleoli: bool) -> Plane:
    """Draws one nucleus: outline, darker rim, chromatin and, if asked, nucleoli."""
    half = int(np.ceil(radius * 1.6)) + 1
    rows, columns = np.mgrid[-half : half + 1, -half : half + 1].astype(np.float64)
    turn = rng.uniform(0, np.pi)
    x = columns * np.cos(turn) + rows * np.sin(turn)
    y = (-columns * np.sin(turn) + rows * np.cos(turn)) / squeeze
    angle = np.arctan2(y, x)
    outline = 1 + sum(bumps * rng.normal() * np.sin(k * angle + rng.uniform(0, 6)) for k in (2, 3, 4))
    inside = radius * np.sqrt(1 / squeeze) ** 0.5 * outline - np.hypot(x, y)
    body = np.clip(0.5 + inside / 1.3, 0, 1)
    chromatin = _standard(ndimage.gaussian_filter(rng.normal(size=body.shape), 0.9))
    texture = 1 + (0.28 if nucleoli else 0.18) * chromatin
    rim = 1 + 0.35 * np.exp(-((inside - 1.0) ** 2) / 1.2)
    stamp = body * texture * rim
    if nucleoli:
        for _ in range(rng.integers(1, 3)):
            centre = rng.uniform(-radius / 3, radius / 3, 2)
            stamp += 0.7 * body * np.exp(-((rows - centre[0]) ** 2 + (columns - centre[1]) ** 2) / 1.8)
    return np.asarray(stamp.clip(0), dtype=np.float32)


def _stamp(rng: np.random.Generator, palette: Palette, kind: str, size: float) -> Plane:
    """Takes a nucleus from the palette, turned and perhaps flipped; the patient's size picks smaller or larger ones."""
    stamps = palette.nuclei[kind]
    stamp = stamps[int(min(max(rng.random() + size - 1, 0.0), 0.999) * len(stamps))]
    turn = int(rng.integers(8))
    turned = stamp.T if turn & 1 else stamp
    return turned[:: -1 if turn & 2 else 1, :: -1 if turn & 4 else 1]


def _paste(plane: Plane, stamp: Plane, row: float, column: float) -> None:
    """Lays a stamp over a plane: where nuclei overlap, the darker one shows and a part of the other."""
    top, left = round(row) - stamp.shape[0] // 2, round(column) - stamp.shape[1] // 2
    r0, c0 = max(top, 0), max(left, 0)
    r1, c1 = min(top + stamp.shape[0], plane.shape[0]), min(left + stamp.shape[1], plane.shape[1])
    if r0 < r1 and c0 < c1:
        part, under = stamp[r0 - top : r1 - top, c0 - left : c1 - left], plane[r0:r1, c0:c1]
        plane[r0:r1, c0:c1] = np.maximum(part, under) + 0.2 * np.minimum(part, under)


def _artefact(rng: np.random.Generator, density: NDArray[np.float32]) -> NDArray[np.float32]:
    """A fold, a bubble, a pen stroke, or a blurred field."""
    size = density.shape[0]
    rows, columns = np.mgrid[:size, :size]
    turn, offset = rng.uniform(0, np.pi), rng.uniform(-0.3, 0.3) * size
    distance = np.abs((columns - size / 2) * np.cos(turn) + (rows - size / 2) * np.sin(turn) - offset)
    match rng.integers(4):
        case 0:
            return np.asarray(density * (1 + 0.9 * np.clip(1.5 - distance / 5, 0, 1))[..., None], np.float32)
        case 1:
            ring = np.exp(-((np.hypot(rows - size / 2, columns - offset) - size / 3) ** 2) / 4)
            return np.asarray(density * (1 - 0.4 * (ring > 0.1))[..., None] + 0.35 * ring[..., None], np.float32)
        case 2:
            pen = np.array([[1.2, 0.5, 0.1], [0.2, 1.0, 1.1], [1.1, 0.3, 0.9]])[rng.integers(3)]
            return np.asarray(density + np.clip(1.5 - distance / 8, 0, 1)[..., None] * pen, np.float32)
        case _:
            return np.asarray(ndimage.gaussian_filter(density, (2.5, 2.5, 0)), dtype=np.float32)


def _scanned(rng: np.random.Generator, density: NDArray[np.float32], look: Look) -> Pixels:
    """Light through the stains, with the scanner's blur, white and noise (Beer-Lambert, densities to base 10)."""
    scanner = look.scanner
    if scanner.blur > 0.15:
        density = ndimage.gaussian_filter1d(ndimage.gaussian_filter1d(density, scanner.blur, axis=0), scanner.blur, axis=1)
    levels = scanner.white * np.exp(-np.float32(np.log(10)) * density)
    levels += scanner.noise * rng.standard_normal(levels.shape, dtype=np.float32)
    return np.asarray(np.clip(levels, 0, 255), dtype=np.uint8)


def _window(rng: np.random.Generator, field: Plane, tile_px: int) -> Plane:
    row, column = rng.integers(0, field.shape[0] - tile_px, 2)
    return np.rot90(field[row : row + tile_px, column : column + tile_px], int(rng.integers(4)))


def _standard(field: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((field - field.mean()) / field.std())
