"""From the images that were found to the tiles that were judged: the counts of the flow diagram (STARD 2015, item 19)."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict


class SplitCount(BaseModel):
    """Tiles and patients of one split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_tiles: int
    num_patients: int | None  # None: at least one tile's patient is unknown


class Flow(BaseModel):
    """Images found, left out by reason, and shared out over the splits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_found: int
    quarantined: dict[str, int]  # by reason
    num_kept: int
    num_duplicates: dict[str, int]  # kept, but counted: identical and near, within a split and across
    splits: dict[str, SplitCount]
    by_class: dict[str, dict[str, int]]  # tiles by class, then split
    split_rule: str


def flow_of(card: Mapping[str, Any]) -> Flow:
    """Reads the counts off a data set card (card.json)."""
    record, quarantined = card["dataset"], dict(card["quarantine"])
    known = record["num_patients"] is not None
    splits = {
        name: SplitCount(num_tiles=count, num_patients=card["patients_by_split"].get(name, 0) if known else None)
        for name, count in record["num_tiles"].items()
    }
    num_kept = sum(split.num_tiles for split in splits.values())
    return Flow(
        num_found=num_kept + sum(quarantined.values()),
        quarantined=quarantined,
        num_kept=num_kept,
        num_duplicates=dict(card["duplicates"]),
        splits=splits,
        by_class={name: dict(counts) for name, counts in card["tiles_by_class"].items()},
        split_rule=record["split_rule"],
    )
