"""Finds what stands on both sides of a split, and classes that stand or fall with one patient, site or scanner."""

import itertools

import numpy as np
import pandas as pd
import pyarrow as pa

from historay.data.duplicates import DuplicatePairs
from historay.data.schema import LEAK_SCHEMA, Confound, Leak
from historay.data.splits import slide_names

# A class with at least this share of its tiles from one origin cannot be told from that origin.
_CONFOUNDED_SHARE = 0.95
_MIN_ORIGINS = 2  # with one patient or site in all there is nothing to tell apart


def find_leaks(manifest: pa.Table, duplicates: DuplicatePairs) -> pa.Table:
    """Returns LEAK_SCHEMA rows: one example per patient or slide and pair of splits, and every pair of duplicate tiles.

    ``duplicates`` holds row numbers of ``manifest``, which needs tile_id, patient, slide, split and source.
    """
    tiles = manifest.select(["tile_id", "patient", "slide", "split", "source"]).to_pandas()
    tiles["slide"] = slide_names(tiles["patient"], tiles["slide"])
    kind = np.where(duplicates.identical, "identical-pixels", "near-duplicate")
    found = [_pairs_to_leaks(tiles, duplicates.pairs, kind)]
    for column in ("patient", "slide"):
        pairs = _first_tiles_across_splits(tiles, column)
        found.append(_pairs_to_leaks(tiles, pairs, np.full(len(pairs), column)))
    leaks = pd.concat(found, ignore_index=True).sort_values(["kind", "tile_a", "tile_b"], ignore_index=True)
    return pa.Table.from_pandas(leaks, schema=LEAK_SCHEMA, preserve_index=False)


def summarise_leaks(leaks: pa.Table) -> tuple[Leak, ...]:
    """Returns one Leak per kind, with the number of pairs and the first as an example."""
    return tuple(_summary(str(kind), rows) for kind, rows in leaks.to_pandas().groupby("kind"))


def find_confounds(manifest: pa.Table) -> tuple[Confound, ...]:
    """Reports each class of which at least 95 % come from one patient, site or scanner, or from those with no other class."""
    tiles = manifest.select(["label_name", "patient", "site", "scanner"]).to_pandas()
    found: list[Confound] = []
    for column in ("patient", "site", "scanner"):
        known = tiles.dropna(subset=[column])
        if known[column].nunique() < _MIN_ORIGINS or known["label_name"].nunique() < _MIN_ORIGINS:
            continue
        counts = pd.crosstab(known["label_name"], known[column])
        for name, tiles_by_origin in zip(counts.index, counts.to_numpy(), strict=True):
            if message := _confound(tiles_by_origin, counts.to_numpy().sum(axis=0), column):
                found.append(Confound.model_validate({"class_name": name, "column": column, "message": f"{name}: {message}"}))
    return tuple(found)


def _confound(of_class: np.ndarray, of_all: np.ndarray, column: str) -> str:
    """Says how a class hangs on its origins, given its tiles and all tiles by origin; empty if it does not."""
    total, num_origins = of_class.sum(), len(of_class)
    if (share := of_class.max() / total) >= _CONFOUNDED_SHARE:
        return (
            f"{share:.0%} of its {total} tiles come from one {column} of {num_origins}; a model can learn the {column} instead"
        )
    pure = of_class[of_class >= _CONFOUNDED_SHARE * of_all].sum() / total
    # Many cohorts label whole patients, so a patient with one class only is no finding; a site or scanner with one is.
    if column != "patient" and pure >= _CONFOUNDED_SHARE:
        return (
            f"{pure:.0%} of its {total} tiles come from {column}s with (nearly) no other class; "
            f"a model can learn the {column} instead"
        )
    return ""


def _first_tiles_across_splits(tiles: pd.DataFrame, column: str) -> np.ndarray:
    """For each value that stands in several splits: the first row in each, combined in pairs."""
    first = tiles.dropna(subset=[column]).reset_index().drop_duplicates([column, "split"])
    several = first[first.duplicated(column, keep=False)]
    pairs = [pair for _, rows in several.groupby(column)["index"] for pair in itertools.combinations(rows, 2)]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def _pairs_to_leaks(tiles: pd.DataFrame, pairs: np.ndarray, kind: np.ndarray) -> pd.DataFrame:
    """Keeps the pairs whose tiles stand in different splits."""
    a, b = (tiles.iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    columns = {f"{name}_{side}": part[column] for name, column in _COLUMNS.items() for side, part in (("a", a), ("b", b))}
    leaks = pd.DataFrame({"kind": kind, **columns})
    return leaks[leaks["split_a"] != leaks["split_b"]]


_COLUMNS = {"tile": "tile_id", "split": "split", "source": "source"}


def _summary(kind: str, rows: pd.DataFrame) -> Leak:
    example = rows.iloc[0]
    splits = tuple(sorted({*rows["split_a"], *rows["split_b"]}))
    return Leak.model_validate(
        {"kind": kind, "num_pairs": len(rows), "splits": splits, "tile_a": example["tile_a"], "tile_b": example["tile_b"]}
    )
