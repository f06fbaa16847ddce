"""One pass over a split: what the model says of each tile, what it sees there, and what a shortcut would see."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import nn

from historay.data.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from historay.data.dataset import Dataset
from historay.data.loading import TileBatch, Tiles, iter_tiles
from historay.evaluation.assessment import Evidence
from historay.evaluation.metrics import Floats
from historay.evaluation.predictions import UNKNOWN, Predictions
from historay.evaluation.shortcut import MAX_TILES, Baseline, Metadata, extract, fit_baseline
from historay.evaluation.stain import stain_features
from historay.log import track
from historay.models.features import predict_logits_and_features
from historay.models.inference import predict_logits, probabilities
from historay.training.run import RunRecord

_ORIGIN_COLUMNS = ["tile_id", "patient", "slide", "site", "scanner", "mpp"]
_BATCH = 256
_SHORTCUT = "shortcut:"  # prefix of a baseline's probabilities


class Origins(NamedTuple):
    """Where each tile of a data set comes from, by tile_id, and all sites that there are."""

    of_tile: dict[str, tuple[str | None, str | None, str | None, str | None, float | None]]
    sites: tuple[str, ...]


def read_origins(dataset: Dataset) -> Origins:
    """Reads the manifest's columns on where tiles come from."""
    columns = dataset.manifest(_ORIGIN_COLUMNS).to_pydict()
    tile_ids, *others = (columns[name] for name in _ORIGIN_COLUMNS)
    of_tile = dict(zip(tile_ids, zip(*others, strict=True), strict=True))
    return Origins(of_tile, tuple(sorted({site for site in columns["site"] if site is not None})))


def fit_shortcuts(dataset: Dataset, record: RunRecord, origins: Origins) -> dict[str, Baseline]:
    """Fits every baseline on the first 20,000 training tiles; shards were shuffled at ingest."""
    labels: list[NDArray[np.int64]] = []
    features: list[dict[str, Floats]] = []
    total = min(MAX_TILES, dataset.record.num_tiles["train"])
    batches = iter_tiles(dataset, "train", record.preprocessing.input_px, _BATCH)
    for batch in track(batches, "evaluate: tiles of train for the shortcuts", total, size=lambda batch: len(batch.labels)):
        labels.append(batch.labels)
        features.append(_shortcut_features(batch, origins))
        if sum(map(len, labels)) >= MAX_TILES:
            break
    label_N = np.concatenate(labels)
    return {
        name: fit_baseline(np.concatenate([part[name] for part in features]), label_N, len(record.classes))
        for name in features[0]
    }


def gather(
    model: nn.Module, record: RunRecord, dataset: Dataset, split: str, origins: Origins, baselines: Mapping[str, Baseline]
) -> Evidence:
    """Runs the model and the baselines over a split, once."""
    tile_ids = np.sort([tile for table in dataset.tables(split, ["tile_id"]) for tile in table["tile_id"].to_pylist()])
    batches = iter_tiles(dataset, split, record.preprocessing.input_px, _BATCH)
    # Filled in place: the features of a million tiles are 2 GB, and joining batches would hold them twice.
    whole: dict[str, NDArray[Any]] = {}
    for batch in track(batches, f"evaluate: tiles of {split}", len(tile_ids), size=lambda batch: len(batch.labels)):
        rows = np.searchsorted(tile_ids, batch.tile_ids)
        for name, values in _columns(model, record, batch, origins, baselines).items():
            if name not in whole:
                whole[name] = np.empty((len(tile_ids), *values.shape[1:]), values.dtype)
            whole[name][rows] = values
    return Evidence(
        predictions=_predictions(tile_ids, whole["labels"], whole["probabilities"], record.classes, origins),
        features_NF=whole["features"],
        stains_NC=whole["stains"],
        colours_NF=whole["colours"],
        shortcuts={name: whole[f"{_SHORTCUT}{name}"] for name in baselines},
    )


def spoil(model: nn.Module, record: RunRecord, tiles_BHWC: Tiles, seed: int) -> dict[str, dict[int, Floats]]:
    """Returns the network's probabilities of tiles spoilt in every way, by name and severity."""
    found: dict[str, dict[int, Floats]] = {name: {} for name in CORRUPTIONS}
    every = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
    for name, severity in track(every, "evaluate: ways to spoil tiles", total=len(every)):
        batches = np.array_split(corrupt(tiles_BHWC, name, severity, seed), -(-len(tiles_BHWC) // _BATCH))
        logits = [predict_logits(model, batch, record.preprocessing) for batch in batches]
        found[name][severity] = probabilities(np.concatenate(logits))
    return found


def _columns(
    model: nn.Module, record: RunRecord, batch: TileBatch, origins: Origins, baselines: Mapping[str, Baseline]
) -> dict[str, NDArray[Any]]:
    """What one batch adds, by name, one row a tile."""
    logits_BK, features_BF = predict_logits_and_features(model, batch.tiles_BHWC, record.preprocessing)
    seen = _shortcut_features(batch, origins)
    return {
        "labels": batch.labels,
        "probabilities": probabilities(logits_BK),
        "features": features_BF,
        "stains": stain_features(batch.tiles_BHWC),
        "colours": seen["colour_histogram"],
        **{f"{_SHORTCUT}{name}": baseline.probabilities(seen[name]) for name, baseline in baselines.items()},
    }


def _shortcut_features(batch: TileBatch, origins: Origins) -> dict[str, Floats]:
    of_batch = [origins.of_tile[tile] for tile in batch.tile_ids]
    metadata = Metadata(mpp=[origin[4] for origin in of_batch], site=[origin[2] for origin in of_batch], sites=origins.sites)
    return extract(batch.tiles_BHWC, list(batch.encoded), metadata)


def _predictions(
    tile_ids: NDArray[np.str_],
    labels: NDArray[np.int64],
    probability_NK: Floats,
    classes: tuple[str, ...],
    origins: Origins,
) -> Predictions:
    patients, slides, sites, scanners, mpps = zip(*(origins.of_tile[tile] for tile in tile_ids.tolist()), strict=True)
    return Predictions(
        tile_ids=tile_ids,
        labels=labels,
        probabilities=probability_NK,
        patients=_all_known(patients),
        classes=classes,
        slides=_all_known(slides),
        sites=_some_known(sites),
        scanners=_some_known(scanners),
        mpps=np.array([np.nan if mpp is None else mpp for mpp in mpps]) if any(mpps) else None,
    )


def _all_known(values: Sequence[str | None]) -> NDArray[np.str_] | None:
    return None if None in values else np.array(values, dtype=np.str_)


def _some_known(values: Iterable[str | None]) -> NDArray[np.str_] | None:
    named = [UNKNOWN if value is None else value for value in values]
    return None if set(named) == {UNKNOWN} else np.array(named, dtype=np.str_)
