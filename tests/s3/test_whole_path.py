"""The whole path with nothing but s3:// addresses, against a real S3 server, from a folder that stays empty."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from processes import historay, kill_all

from historay.storage import open_store

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.timeout(1800)]


def test_synth_ingest_train_evaluate_and_predict_run_on_a_bucket_alone(s3_uri: str, tmp_path: Path) -> None:
    home, cwd = tmp_path / "home", tmp_path / "cwd"
    home.mkdir()
    cwd.mkdir()
    tiles, store = f"{s3_uri}/tiles", f"{s3_uri}/store"
    at, several = ["--store", store], ["--num-workers", "2", "--cpus-per-worker", "1", "--images-per-part", "32"]
    try:
        for arguments in (
            ["synth", "--out", tiles, "--num-tiles", "400", "--num-patients", "12", "--tile-px", "64"],
            ["ingest", "--name", "cloud", "--source", f"{tiles}/manifest.csv", *at],
            [
                "train",
                "--run",
                "cloud",
                "--dataset",
                "cloud",
                "--epochs",
                "2",
                "--batch-size",
                "32",
                "--warmup-epochs",
                "0.5",
                *at,
            ],
            ["evaluate", "--run", "cloud", "--num-resamples", "200", "--robustness-tiles", "16", *at],
            ["predict", f"{tiles}/images", "--model", "cloud", "--limit", "100", "--out", f"{s3_uri}/out", *several, *at],
            ["predict", f"{tiles}/images", "--model", "cloud", "--limit", "5", "--format", "json", *at],
        ):
            done = historay(*arguments, home=home, cwd=cwd, timeout=900)
            assert done.returncode == 0, (arguments, done.stderr)
    finally:
        kill_all(home)
    _check_predictions(s3_uri)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == 5
    assert all(sum(line["probabilities"].values()) == pytest.approx(1) for line in lines)
    keys = {item.key.split("/")[0] for item in open_store(store).list()}
    assert keys == {"datasets", "runs", "models", "aliases"}
    assert list(cwd.iterdir()) == [], "nothing was written beside the bucket"
    assert not [path for path in home.rglob("*") if path.suffix in {".jpg", ".parquet", ".safetensors"}]


def _check_predictions(s3_uri: str) -> None:
    """A row for each of the first 100 images of the prefix, in parts of 32, and the record of them."""
    out = open_store(f"{s3_uri}/out")
    keys = [item.key for item in out.list()]
    assert keys == [f"parts/part-00000{number}.parquet" for number in range(4)] + ["plan.json", "predictions.json"]
    rows = pd.concat([pd.read_parquet(io.BytesIO(out.read(key))) for key in keys[:4]])
    images = open_store(f"{s3_uri}/tiles")
    assert rows["image"].tolist() == [images.locate(item.key) for item in images.list("images")][:100]
    assert rows["index"].tolist() == list(range(100))
    probabilities = rows.filter(like="probability_")
    assert probabilities[rows["error_reason"].isna()].sum(axis=1).to_numpy() == pytest.approx(1)
    assert json.loads(out.read("predictions.json"))["num_errors"] == rows["error_reason"].notna().sum() < 100
