"""Compares an endpoint's answers with what the evaluation wrote of the same test tiles; exits 1 if they differ."""

import io
import sys

import pyarrow.parquet as pq

from historay.data.dataset import open_dataset
from historay.evaluation.predictions import Predictions
from historay.serving.client import Client
from historay.serving.schema import ImagePrediction
from historay.storage import open_store

if __name__ == "__main__":
    store, run, url = open_store(sys.argv[1]), sys.argv[2], sys.argv[3]
    predictions = Predictions.from_parquet(store.read(f"runs/{run}/predictions-test.parquet"))
    rows = {tile: row for row, tile in enumerate(predictions.tile_ids.tolist())}
    client = Client(url)
    model = client.model()
    dataset = open_dataset(store, model.dataset)
    shard = pq.read_table(io.BytesIO(store.read(dataset.shard_keys("test")[0])), columns=["tile_id", "bytes"]).slice(0, 60)
    results = zip(shard["tile_id"].to_pylist(), client.predict(shard["bytes"].to_pylist()).results, strict=True)
    served = {tile: result for tile, result in results if isinstance(result, ImagePrediction)}
    if len(served) < shard.num_rows:  # the evaluation judged every one of them
        sys.exit(f"{shard.num_rows - len(served)} of {shard.num_rows} test tiles were refused")
    differences = [
        abs(result.probabilities[name] - predictions.probabilities[rows[tile], k])
        for tile, result in served.items()
        for k, name in enumerate(predictions.classes)
    ]
    largest = max(differences)
    allowed = f"{model.runtime}, tolerance {model.tolerance:g}"
    print(f"{len(served)} test tiles: served and evaluated probabilities differ by {largest:.1e} ({allowed})")
    sys.exit(int(not largest <= model.tolerance))
