"""Capacity on paper, from rates that were measured: python bench/capacity.py prints the table of docs/kubernetes.md.

A node is a worker pod of 8 CPUs. Each figure is what the formula gives if nothing else is in the way; ``first limit`` names
what is.
"""

from typing import NamedTuple

CORES_PER_NODE = 8
# Rates are those of docs/benchmarks.md, the slower of two, by the cores that they were measured on; others name their source.
# A core's tiles a second: strict decode with digests, then the fingerprint; both are done to each.
CHECKED = 1 / (1 / 3818 + 1 / 4598)
# ResNet-18 at 96 px, two cores: training in bf16 beside other jobs, 92 to 124; the served predictor with decoding.
TRAINED, PREDICTED = 92 / 2, 1478 / 2
# Requests a second with a tile each; server, proxy and client on two cores.
ANSWERED = 503 / 2
# The duplicate search, one process; its keys grow with the tiles, so linear.
SEARCH_S, SEARCH_TILES = 18.1, 1e6
# Columns that the driver of an ingest holds, and the lists made of them: peak over 300,000 rows, measured once for this table.
DRIVER_BYTES = 1182
# A PCam tile, 96 px, as it is stored; the mean of 12,000.
TILE_BYTES = 4391
# Published, not measured: GET requests a second for one S3 prefix. Ingest asks for each file by itself.
S3_GETS = 5500
# ResNet-18's gradient in fp32, and a published 10 Gbit/s between nodes: a ring moves it twice.
EXCHANGE_S = 2 * 44.7e6 / 1.25e9
TILES_PER_STEP = 64  # of one worker, which is one node
HEAD_BYTES = 8 * 2**30  # of `historay submit`, which --head-memory raises

SIZES = ((100_000, 1), (1_000_000, 4), (10_000_000, 32), (100_000_000, 250), (1_000_000_000, 1000))


class Capacity(NamedTuple):
    """What one size of data set asks for on a number of nodes; seconds and bytes."""

    tiles: int
    nodes: int
    stored: float
    check_s: float
    fetch_s: float
    search_s: float
    driver: float
    epoch_s: float
    predict_s: float
    answers: float  # requests a second

    @property
    def limit(self) -> str:
        """What is in the way first."""
        if self.driver > HEAD_BYTES:
            return "the driver's memory: raise --head-memory"
        if self.fetch_s > self.check_s:
            return "requests to one S3 prefix, if each tile is a file; spread them over prefixes"
        return "CPUs"


def capacity(tiles: int, nodes: int) -> Capacity:
    """Applies the formulas."""
    cores = nodes * CORES_PER_NODE
    step_s = TILES_PER_STEP / (CORES_PER_NODE * TRAINED) + (EXCHANGE_S if nodes > 1 else 0)
    return Capacity(
        tiles=tiles,
        nodes=nodes,
        stored=tiles * TILE_BYTES,
        check_s=tiles / (cores * CHECKED),
        fetch_s=tiles / S3_GETS,
        search_s=SEARCH_S * tiles / SEARCH_TILES,
        driver=tiles * DRIVER_BYTES,
        epoch_s=tiles / (nodes * TILES_PER_STEP) * step_s,
        predict_s=tiles / (cores * PREDICTED),
        answers=cores * ANSWERED,
    )


def table() -> str:
    """Returns the Markdown table."""
    lines = [
        "| tiles | nodes | stored | check | fetch, one prefix | duplicates | driver | epoch | predict | endpoint "
        "| first limit |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for size in SIZES:
        at = capacity(*size)
        times = [_time(at.check_s), _time(at.fetch_s), _time(at.search_s)]
        later = [_time(at.epoch_s), _time(at.predict_s), f"{at.answers:,.0f}/s"]
        cells = [f"{at.tiles:,}", f"{at.nodes:,}", _bytes(at.stored), *times, _bytes(at.driver), *later, at.limit]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:.0f} s"


def _bytes(number: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if number >= size:
            return f"{number / size:,.1f} {unit}"
    return f"{number / 1e6:,.0f} MB"


if __name__ == "__main__":
    print(table())
