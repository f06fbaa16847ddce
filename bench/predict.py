"""Tiles a second of ``historay predict --out`` against a plain OpenVINO loop over the same tiles on the same cores.

python bench/predict.py STORE DATASET MODEL, e.g. runs/historay-store pcam pcam-small. Run it on a quiet machine: the
figures go to docs/benchmarks.md with machine, load and date.
"""

import os
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from historay.cpus import available_cpus
from historay.data.dataset import Dataset, open_dataset
from historay.data.decode import Limits
from historay.log import setup_logging
from historay.models.bundle import load_bundle
from historay.models.registry import resolve
from historay.models.runtime import make_runtime
from historay.ray_session import connect_ray
from historay.serving.batch import predict_in_batch
from historay.serving.predict_settings import PredictConfig
from historay.serving.predictor import Predictor
from historay.storage import open_store

SPLIT = "train"
PER_PASS = 32
CORES = available_cpus()


def in_process(dataset: Dataset, model: str) -> float:
    """The limit: no Ray, no output; every core decodes and computes."""
    bundle = load_bundle(dataset.store, *resolve(dataset.store, model))
    predictor = Predictor(bundle, Limits(), make_runtime(bundle, "auto", CORES))
    encoded = [data for table in dataset.tables(SPLIT, ["bytes"]) for data in table["bytes"].to_pylist()]
    batches = [encoded[start : start + PER_PASS] for start in range(0, len(encoded), PER_PASS)]
    predictor.predict(batches[0])
    started = time.perf_counter()
    with ThreadPoolExecutor(CORES) as threads:
        deque(threads.map(predictor.predict, batches), maxlen=0)
    return len(encoded) / (time.perf_counter() - started)


def in_batch(dataset: Dataset, model: str, num_workers: int) -> tuple[float, float]:
    """Tiles a second with the workers' start, and between the first file written and the last, when all of them work."""
    with tempfile.TemporaryDirectory() as out:
        config = PredictConfig(
            dataset=dataset.reference,
            split=SPLIT,
            store=dataset.store.uri,
            model=model,
            out=out,
            num_workers=num_workers,
            cpus_per_worker=max(1, CORES // num_workers),
        )
        started = time.perf_counter()
        predict_in_batch(config)
        seconds, num_tiles = time.perf_counter() - started, dataset.record.num_tiles[SPLIT]
        written = sorted(path.stat().st_mtime for path in Path(out, "parts").iterdir())
        return num_tiles / seconds, num_tiles * (1 - 1 / len(written)) / (written[-1] - written[0])


if __name__ == "__main__":
    uri, name, model = sys.argv[1:]
    setup_logging()
    dataset = open_dataset(open_store(uri), name)
    print(f"{dataset.record.num_tiles[SPLIT]} tiles, {CORES} cores, load {os.getloadavg()[0]:.1f}")
    limit = in_process(dataset, model)
    print(f"in-process loop   {limit:8,.0f} tiles a second")
    connect_ray()
    for num_workers in (1, 2):
        whole, steady = in_batch(dataset, model, num_workers)
        rates = f"{whole:8,.0f} with their start, {steady:8,.0f} after it ({steady / limit:.2f} of the loop)"
        print(f"{num_workers} worker(s)       {rates}")
