"""Synthetic H&E: tiles with a known truth that only morphology tells, to try, test and show everything without data.

Normal tissue has small round nuclei, evenly spread, fibres, and glands with an orderly rim; a tumour has large, irregular,
crowded nuclei with nucleoli and broken glands. Patients differ in stain strength and nuclear size, sites in stain vectors,
scanners in white, sharpness, noise and JPEG quality. The amount of haematoxylin is drawn without regard to the class, so
that colour says little.
It looks like tissue and is none: nothing learnt from it holds for patients.
"""

import functools
import hashlib
import io
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
import simplejpeg
from numpy.typing import NDArray
from pydantic import Field

from historay.config import Config
from historay.data.synthetic_tissue import Look, Palette, Scanner, make_palette, paint_tile
from historay.log import log_event, track
from historay.storage import Store, open_store

CLASSES = ("normal", "tumour")
_README = """Synthetic H&E tiles, drawn by Historay (historay synth) with seed {seed}. No patient stands behind them.
manifest.csv: path,label,patient,slide,site,scanner,mpp. defects.csv: the files that are broken or repeated on purpose.
"""
_MPP = 0.5
NUM_SCANNERS = 2  # shared out over the sites in turn, so that a scanner is not a site


class SyntheticConfig(Config):
    """Draws a synthetic H&E data set with known truth, to try everything without data."""

    out: str
    """Folder or s3://bucket/prefix to write into."""
    num_tiles: int = Field(default=4000, ge=100)
    """How many tiles, over all patients."""
    tile_px: int = Field(default=96, ge=48, le=512)
    """Side of a tile in pixels."""
    num_patients: int = Field(default=40, ge=3)
    """Patients; each has both classes, unless the set is confounded."""
    num_sites: int = Field(default=4, ge=1)
    """Sites, each with its own stain and one of two scanners."""
    artefact_rate: float = Field(default=0.03, ge=0, le=1)
    """Share of tiles with a fold, a bubble, pen or blur."""
    defects: bool = True
    """Add a few broken, repeated and blank files, as real archives have them; defects.csv lists them."""
    confounded: bool = False
    """Let half of the sites bring only tumour and the others only normal tissue, to see a shortcut caught."""
    seed: int = 0
    """Decides every pixel."""


class _Row(NamedTuple):
    path: str
    label: str
    patient: str
    slide: str
    site: str
    scanner: str
    mpp: float = _MPP


def write_synthetic(config: SyntheticConfig) -> None:
    """Writes images/, README.txt, defects.csv and, last, manifest.csv, the same bytes for the same settings."""
    store = open_store(config.out)
    palette = _palette(config.seed)
    patients = _patients(config)
    rows: list[_Row] = []
    for number in track(range(config.num_tiles), "synth: tiles drawn", total=config.num_tiles):
        row, data = _tile(config, palette, patients, number)
        store.write(row.path, data)
        rows.append(row)
    defects = list(_add_defects(store, rows, config)) if config.defects else []
    store.write("README.txt", _README.format(seed=config.seed).encode())
    store.write("defects.csv", _csv(pd.DataFrame(defects, columns=["path", "defect"])))
    store.write("manifest.csv", _csv(pd.DataFrame(rows)))
    log_event("synth done", tiles=len(rows), defects=len(defects), out=config.out)


def draw_tile(config: SyntheticConfig, number: int) -> tuple[str, NDArray[np.uint8]]:
    """Returns one tile's class and pixels before JPEG, without writing anything."""
    row, pixels = _painted(config, _palette(config.seed), _patients(config), number)
    return row.label, pixels


@functools.lru_cache(maxsize=1)
def _palette(seed: int) -> Palette:
    return make_palette(np.random.default_rng([seed, 1]))


def _patients(config: SyntheticConfig) -> list[Look]:
    """Each patient's look: the site's stain and scanner, with the patient's own strength and nuclear size."""
    scanners = [Scanner.drawn(np.random.default_rng([config.seed, 5, number])) for number in range(NUM_SCANNERS)]
    site_looks = [
        Look.of_site(np.random.default_rng([config.seed, 2, site]), scanners[site % NUM_SCANNERS])
        for site in range(config.num_sites)
    ]
    return [
        site_looks[patient % config.num_sites].of_patient(np.random.default_rng([config.seed, 3, patient]))
        for patient in range(config.num_patients)
    ]


def _painted(config: SyntheticConfig, palette: Palette, patients: list[Look], number: int) -> tuple[_Row, NDArray[np.uint8]]:
    rng = np.random.default_rng([config.seed, 4, number])
    patient = number % config.num_patients
    site = patient % config.num_sites
    tumour = bool(rng.random() < 0.5)
    if config.confounded:
        tumour = site < config.num_sites / 2
    pixels = paint_tile(rng, palette, patients[patient], config.tile_px, tumour=tumour, artefact_rate=config.artefact_rate)
    slide = (number // config.num_patients) % 2
    name, scanner = f"P{patient:03d}", f"scanner-{site % NUM_SCANNERS}"
    row = _Row(f"images/{number:06d}.jpg", CLASSES[tumour], name, f"{name}-{slide}", f"site-{site}", scanner)
    return row, pixels


def _tile(config: SyntheticConfig, palette: Palette, patients: list[Look], number: int) -> tuple[_Row, bytes]:
    row, pixels = _painted(config, palette, patients, number)
    quality = patients[number % config.num_patients].scanner.jpeg_quality
    return row, simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB")


def _add_defects(store: Store, rows: list[_Row], config: SyntheticConfig) -> Iterator[tuple[str, str]]:
    """Adds files that are broken or repeated on purpose, and yields their paths with what is wrong."""
    first, other = rows[0], rows[1]  # of different patients
    data = store.read(first.path)
    pixels = np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
    turned = simplejpeg.encode_jpeg(np.ascontiguousarray(np.rot90(pixels)), quality=60, colorspace="RGB")
    white = np.full((config.tile_px, config.tile_px, 3), 244, np.uint8)
    files = {
        "truncated": (data[: len(data) // 2], other),
        "empty": (b"", other),
        "text-named-jpg": (b"this is a note and no image", other),
        "exact-duplicate-in-another-patient": (data, other),
        "near-duplicate-in-another-patient": (turned, other),
        "blank": (simplejpeg.encode_jpeg(white, quality=90, colorspace="RGB"), first),
    }
    for defect, (content, like) in files.items():
        path = f"images/defect-{hashlib.sha256(defect.encode()).hexdigest()[:6]}.jpg"
        label = first.label if "duplicate" in defect else like.label
        rows.append(like._replace(path=path, label=label))
        store.write(path, content)
        yield path, defect


def _csv(table: pd.DataFrame) -> bytes:
    buffer = io.StringIO()
    table.to_csv(buffer, index=False)
    return buffer.getvalue().encode()
