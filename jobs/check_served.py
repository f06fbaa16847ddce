"""Compares an endpoint's answers with what that model's evaluation wrote of the same test tiles; exits 1 if they differ."""

import io
import sys

import pyarrow.parquet as pq

from historay.data.dataset import open_dataset
from historay.models.registry import resolve
from historay.serving.client import Client
from historay.serving.schema import ImagePrediction
from historay.storage import open_store
from historay.training.run import read_test_predictions

if __name__ == "__main__":
    store, client = open_store(sys.argv[1]), Client(sys.argv[2])
    model = client.model()
    predictions = read_test_predictions(store, *resolve(store, model.model))
    rows = {tile: row for row, tile in enumerate(predictions.tile_ids.tolist())}
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
