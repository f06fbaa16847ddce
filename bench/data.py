"""Rates of the data path on this machine: python bench/data.py. Figures go to docs/benchmarks.md with machine and date."""

import time
from collections.abc import Callable

import numpy as np
import simplejpeg

from historay.data.decode import Limits, decode_tile, verify_tile
from historay.data.duplicates import candidate_pairs, fingerprint
from historay.data.splits import SplitFractions, assign_splits
from historay.data.synthetic import SyntheticConfig, draw_tile

NUM_TILES = 500
MILLION = 1_000_000


def rate(what: str, number: int, run: Callable[[], object]) -> None:
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    print(f"{what:<55} {number / seconds:>12,.0f} a second   {seconds:8.2f} s")


if __name__ == "__main__":
    config = SyntheticConfig(out="unused")
    draw_tile(config, 0)
    tiles = [draw_tile(config, number)[1] for number in range(NUM_TILES)]
    encoded = [simplejpeg.encode_jpeg(tile, quality=85, colorspace="RGB") for tile in tiles]
    rng = np.random.default_rng(0)
    labels, patients = rng.integers(0, 5, MILLION), rng.integers(0, 50_000, MILLION).astype(str)
    hashes = rng.integers(0, 256, (MILLION, 16), dtype=np.uint8)
    rate("synthetic tiles drawn, 96 px, one core", NUM_TILES, lambda: [draw_tile(config, n) for n in range(NUM_TILES)])
    rate("baseline: decode only (simplejpeg), 96 px", NUM_TILES, lambda: [decode_tile(data) for data in encoded])
    rate("verify (strict decode and two digests)", NUM_TILES, lambda: [verify_tile(data, Limits()) for data in encoded])
    rate("fingerprint (hash, blank, thumbnail)", NUM_TILES, lambda: [fingerprint(tile) for tile in tiles])
    rate("split of 1 million rows, 50,000 patients", MILLION, lambda: assign_splits(labels, patients, SplitFractions(), 0))
    rate("duplicate search among 1 million hashes", MILLION, lambda: candidate_pairs(hashes))
