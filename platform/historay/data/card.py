"""The data set card: what a version holds, as JSON and as one HTML page, counts only and no identifiers."""

import base64
import json
from typing import Any

import pandas as pd
import pyarrow as pa
from jinja2 import Environment, PackageLoader, select_autoescape

from historay.data.dataset import Dataset
from historay.data.duplicates import DuplicatePairs
from historay.data.splits import slide_names

_EXAMPLES_PER_CLASS = 8
_SHOWN = ["label_name", "split", "patient", "slide", "site", "scanner", "mpp", "width", "height", "blank"]


def write_card(dataset: Dataset, manifest: pa.Table, duplicates: DuplicatePairs, quarantine: pa.Table) -> None:
    """Writes card.json and card.html beside the shards."""
    card = describe(dataset, manifest, duplicates, quarantine)
    dataset.store.write(f"{dataset.prefix}/card.json", json.dumps(card, indent=2).encode())
    environment = Environment(loader=PackageLoader("historay.data"), autoescape=select_autoescape())
    page = environment.get_template("card.html").render(card=card, examples=_examples(dataset))
    dataset.store.write(f"{dataset.prefix}/card.html", page.encode())


def describe(dataset: Dataset, manifest: pa.Table, duplicates: DuplicatePairs, quarantine: pa.Table) -> dict[str, Any]:
    """Returns the card's content: tables of tiles by class, site and size, patients by split, duplicates and quarantine."""
    tiles = manifest.select(_SHOWN).to_pandas()
    tiles["slide"] = slide_names(tiles["patient"], tiles["slide"])
    split = tiles["split"].to_numpy()
    across = split[duplicates.pairs[:, 0]] != split[duplicates.pairs[:, 1]]
    per_patient = tiles["patient"].value_counts()
    return {
        "dataset": dataset.record.model_dump(mode="json"),
        "tiles_by_class": _counts(tiles, "label_name"),
        "tiles_by_site": _counts(tiles.fillna({"site": "unknown"}), "site"),
        "tiles_by_scanner": _counts(tiles.fillna({"scanner": "unknown"}), "scanner"),
        "tiles_by_size": _counts(tiles.assign(size=tiles["width"].astype(str) + " x " + tiles["height"].astype(str)), "size"),
        "patients_by_split": {name: int(part["patient"].nunique()) for name, part in tiles.groupby("split")},
        "slides_by_split": {name: int(part["slide"].nunique()) for name, part in tiles.groupby("split")},
        "tiles_per_patient": {
            "smallest": int(per_patient.min()) if len(per_patient) else None,
            "median": float(per_patient.median()) if len(per_patient) else None,
            "largest": int(per_patient.max()) if len(per_patient) else None,
        },
        "tiles_without_patient": int(tiles["patient"].isna().sum()),
        "tiles_without_mpp": int(tiles["mpp"].isna().sum()),
        "tiles_blank": int(tiles["blank"].sum()),
        "duplicates": {
            "identical_within_a_split": int((duplicates.identical & ~across).sum()),
            "identical_across_splits": int((duplicates.identical & across).sum()),
            "near_within_a_split": int((~duplicates.identical & ~across).sum()),
            "near_across_splits": int((~duplicates.identical & across).sum()),
        },
        "quarantine": {reason: int(count) for reason, count in quarantine["reason"].to_pandas().value_counts().items()},
    }


def _counts(tiles: pd.DataFrame, column: str) -> dict[str, dict[str, int]]:
    """Tiles by value of the column and split."""
    table = pd.crosstab(tiles[column], tiles["split"])
    return {str(value): {str(split): int(count) for split, count in row.items()} for value, row in table.iterrows()}


def _examples(dataset: Dataset) -> dict[str, list[str]]:
    """A few training tiles per class as data URIs, the first in shard order, so that they are the same each time."""
    examples: dict[str, list[str]] = {name: [] for name in dataset.record.classes}
    split = next(name for name, count in dataset.record.num_tiles.items() if count)
    for table in dataset.tables(split, ["bytes", "label_name"]):
        for data, name in zip(table["bytes"].to_pylist(), table["label_name"].to_pylist(), strict=True):
            if len(examples[name]) < _EXAMPLES_PER_CLASS:
                kind = "jpeg" if data.startswith(b"\xff\xd8") else "png"
                examples[name].append(f"data:image/{kind};base64,{base64.b64encode(data).decode()}")
        if all(len(found) == _EXAMPLES_PER_CLASS for found in examples.values()):
            break
    return examples
