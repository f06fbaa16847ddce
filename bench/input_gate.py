"""What a run's input gate lets pass and rejects: python bench/input_gate.py STORE RUN [FOLDER of other tissue's images].

The gate is fitted to the run's validation split as evaluate does, and judges its test split, what is made from that, and the
folder's images. Prints a Markdown table and the time per tile. PCam: about a minute on one core.
"""

import sys
import time
from pathlib import Path

import numpy as np
from foreign_tiles import Tiles, foreign_tiles
from torch import nn

from historay.data.dataset import Dataset, open_dataset
from historay.data.decode import Limits, resize_tile, verify_tile
from historay.data.loading import iter_tiles
from historay.evaluation.tile_statistics import join_statistics, tile_statistics
from historay.models.features import predict_logits_and_features
from historay.models.input_gate import FeatureSpace, InputGate, Rejection, fit_input_gate
from historay.storage import open_store
from historay.training.run import RunRecord, load_run

CODES = ("blank", "not-he", "unlike-training", "blurred", "pen")
NUM = 300
BATCH = 64


class Gated:
    """A run's network behind its gate."""

    def __init__(self, model: nn.Module, record: RunRecord) -> None:
        self.model, self.record = model, record

    def features(self, tiles: Tiles) -> np.ndarray:
        parts = np.array_split(tiles, -(-len(tiles) // BATCH))
        return np.concatenate([predict_logits_and_features(self.model, part, self.record.preprocessing)[1] for part in parts])

    def fit(self, tiles: Tiles) -> tuple[InputGate, FeatureSpace]:
        statistics = join_statistics([tile_statistics(part) for part in np.array_split(tiles, -(-len(tiles) // BATCH))])
        return fit_input_gate(statistics, self.features(tiles), None)


def all_tiles(dataset: Dataset, split: str, px: int) -> Tiles:
    return np.concatenate([batch.tiles_BHWC for batch in iter_tiles(dataset, split, px, 256)])


def images_of(folder: Path, px: int) -> Tiles:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif"})
    return np.stack([resize_tile(verify_tile(path.read_bytes(), Limits()).pixels_HWC, px) for path in paths])


def row(name: str, found: list[tuple[Rejection, ...]]) -> str:
    codes = [{reason.code for reason in reasons} for reasons in found]
    shares = [np.mean([bool(one) for one in codes]), *(np.mean([code in one for one in codes]) for code in CODES)]
    return f"| {name} | {len(found)} | " + " | ".join(f"{100 * share:.1f}" for share in shares) + " |"


def main(store_uri: str, run: str, folder: str | None) -> None:
    store = open_store(store_uri)
    record, model = load_run(store, run)
    dataset, px, gated = open_dataset(store, record.dataset), record.preprocessing.input_px, Gated(model, record)
    validation, test = all_tiles(dataset, "val", px), all_tiles(dataset, "test", px)
    gate, space = gated.fit(validation)
    limits = {name: round(value, 3) for name, value in gate.model_dump().items() if name.endswith("_limit")}
    print(f"{record.dataset}, {record.architecture}: {gate.num_tiles} of {len(validation)} validation tiles; {limits}")
    print("| tiles | number | rejected % | " + " | ".join(CODES) + " |\n|---|" + "---:|" * (2 + len(CODES)))
    rng = np.random.default_rng(0)
    own = test[rng.permutation(len(test))[:NUM]]
    kinds = [("validation (it was fitted to them)", validation), ("test", test), *foreign_tiles(own, NUM, rng)]
    if folder:
        kinds.append((Path(folder).name, images_of(Path(folder), px)))
    for name, tiles in kinds:
        print(row(name, gate.judge(tile_statistics(tiles), gated.features(tiles), space)), flush=True)
    for size in (1, 8, 64):
        batches = [own[start : start + size] for start in range(0, len(own), size)]
        features = [gated.features(batch) for batch in batches]
        started = time.process_time()
        for batch, seen in zip(batches, features, strict=True):
            gate.judge(tile_statistics(batch), seen, space)
        num = sum(map(len, batches))
        print(f"{1e6 * (time.process_time() - started) / num:.0f} us of CPU per tile in batches of {size}")
        started = time.process_time()
        for batch in batches:
            gated.features(batch)
        print(f"{1e6 * (time.process_time() - started) / num:.0f} us of CPU per tile for the network (torch, fp32)")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3] if len(sys.argv) > 3 else None)
