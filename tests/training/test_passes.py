"""One pass over a split keeps what the network and the shortcuts say of each tile together, whatever the batches."""

import numpy as np
import pytest
import torch
from datasets import textures

from historay.data.loading import load_tiles
from historay.data.transforms import Preprocessing
from historay.evaluation.stain import stain_features
from historay.models.features import predict_logits_and_features
from historay.models.inference import probabilities
from historay.models.zoo import build_model
from historay.storage import LocalStore
from historay.training.passes import fit_shortcuts, gather, read_origins
from historay.training.run import RunRecord

PREPROCESSING = Preprocessing(input_px=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
RECORD = RunRecord(
    run="r", attempt="a", status="finished", config={}, dataset="small@0", dataset_digest="0" * 64, accepted_leaks=(),
    classes=("a", "b"), architecture="small_cnn", dropout=0.0, preprocessing=PREPROCESSING, mpp=0.5, seed=0, world_size=1,
    steps_per_epoch=1, num_steps=1, created="2026-01-01T00:00:00+00:00", versions={},
)  # fmt: skip


def test_each_row_is_of_its_own_tile_in_the_order_of_the_tile_ids(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("historay.training.passes._BATCH", 3)
    dataset = textures(store)
    torch.manual_seed(0)
    model = build_model("small_cnn", 2, 48).eval()
    origins = read_origins(dataset)
    baselines = fit_shortcuts(dataset, RECORD, origins)
    seen = gather(model, RECORD, dataset, "val", origins, baselines)
    tile_ids = seen.predictions.tile_ids.tolist()
    assert tile_ids == sorted(tile_ids)
    assert len(tile_ids) == 8
    decoded = load_tiles(dataset, "val", tile_ids, 48)
    tiles_NHWC = np.stack([decoded[tile] for tile in tile_ids])
    logits_NK, features_NF = predict_logits_and_features(model, tiles_NHWC, PREPROCESSING)
    np.testing.assert_allclose(seen.predictions.probabilities, probabilities(logits_NK), atol=1e-6)
    np.testing.assert_allclose(seen.features_NF, features_NF, atol=1e-5)
    np.testing.assert_allclose(seen.stains_NC, stain_features(tiles_NHWC), rtol=1e-6)
    assert seen.predictions.patients is not None
    assert [origins.of_tile[tile][0] for tile in tile_ids] == seen.predictions.patients.tolist()
    expected = baselines["colour_histogram"].probabilities(seen.colours_NF)
    np.testing.assert_allclose(seen.shortcuts["colour_histogram"], expected, rtol=1e-9)
    assert seen.shortcuts.keys() == baselines.keys()
