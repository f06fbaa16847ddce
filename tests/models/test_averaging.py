"""Averaging over turns and mirror images makes any network blind to them, wherever it runs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from bundles import PROBES, SPEC, network

from historay.data.transforms import apply_d4, to_unit
from historay.models.averaging import D4Average, averaged, without_averaging
from historay.models.bundle import Bundle, load_bundle, make_probes, save_bundle, weights_digest
from historay.models.features import last_linear, predict_logits_and_features
from historay.models.gradcam import grad_cam
from historay.models.inference import predict_logits, probabilities
from historay.models.runtime import make_runtime
from historay.storage import LocalStore

TILES = PROBES.tiles_BHWC


def test_a_turned_or_mirrored_tile_gets_the_same_logits() -> None:
    tiles, model = to_unit(torch.from_numpy(TILES)), averaged(network(), "d4")
    with torch.no_grad():
        expected = model(tiles)
        assert all(torch.allclose(model(apply_d4(tiles, element)), expected, atol=1e-5) for element in range(8))
        assert not torch.allclose(network()(apply_d4(tiles, 1)), network()(tiles), atol=1e-5)


def test_the_logits_are_the_mean_and_the_features_explain_them() -> None:
    model = averaged(network(), "d4")
    logits, features = predict_logits_and_features(model, TILES, SPEC.preprocessing)
    turned = [np.rot90(side, turns, (1, 2)) for side in (TILES, TILES[:, :, ::-1]) for turns in range(4)]
    mean = np.mean([predict_logits(network(), np.ascontiguousarray(tiles), SPEC.preprocessing) for tiles in turned], axis=0)
    assert np.allclose(logits, mean, atol=1e-5)
    with torch.no_grad():
        assert np.allclose(last_linear(model)(torch.from_numpy(features)).numpy(), logits, atol=1e-5)


def test_a_bundle_remembers_it_and_every_runtime_does_it(
    store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model, spec = averaged(network(), "d4"), SPEC.model_copy(update={"averaging": "d4"})
    version = save_bundle(store, spec, model, {}, make_probes(model, TILES, SPEC.preprocessing))
    bundle = load_bundle(store, "demo", version)
    assert isinstance(bundle.model, D4Average)
    assert weights_digest(bundle.model) == weights_digest(network())
    expected = probabilities(predict_logits(model, TILES, SPEC.preprocessing))
    found = probabilities(make_runtime(bundle, "openvino-fp32").run(TILES).logits_BK)
    assert np.abs(found - expected).max() < 1e-5


def test_its_evidence_is_that_of_the_network_on_the_tile_as_it_is() -> None:
    classes = np.array([1, 0, 1, 0])
    heat = grad_cam(averaged(network(), "d4"), TILES, SPEC.preprocessing, classes)
    assert np.array_equal(heat, grad_cam(network(), TILES, SPEC.preprocessing, classes))


def test_without_it_the_network_stays_what_it_is() -> None:
    model = network()
    assert averaged(model, "none") is model
    assert without_averaging(averaged(model, "d4")) is model
    assert Bundle(SPEC, model, "f" * 16, PROBES).spec.averaging == "none"
