"""Features come from the pass that gives the logits, and are what the last layer saw."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from bundles import SPEC, network
from images import texture
from networks import quick_network

from historay.data.transforms import Preprocessing
from historay.models.features import last_linear, predict_logits_and_features
from historay.models.inference import predict_logits
from historay.models.zoo import ARCHITECTURES

TILES = np.stack([texture(seed, 48) for seed in range(8)])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: threads that wait for each other made these tests 20 times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_logits_are_those_of_inference_and_follow_from_the_features(architecture: str) -> None:
    px = 75 if architecture == "inception_v3" else 32
    preprocessing = Preprocessing(input_px=px, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2))
    model = quick_network(architecture, 3, px)
    tiles = np.stack([texture(seed, px) for seed in range(2)])
    logits, features = predict_logits_and_features(model, tiles, preprocessing)
    assert np.array_equal(logits, predict_logits(model, tiles, preprocessing))
    assert features.dtype == np.float32
    assert not np.array_equal(features[0], features[1])
    with torch.inference_mode():
        again = last_linear(model)(torch.from_numpy(features)).numpy()
    np.testing.assert_allclose(again, logits, atol=1e-5)


def test_the_model_is_left_as_it_was_even_after_a_failure() -> None:
    model = network()
    predict_logits_and_features(model, TILES, SPEC.preprocessing)
    with pytest.raises(RuntimeError, match="must match"):
        predict_logits_and_features(model, TILES[..., :2], SPEC.preprocessing)
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_threads_that_share_a_model_get_their_own_features() -> None:
    model = network()
    alone = [predict_logits_and_features(model, TILES[row : row + 1], SPEC.preprocessing)[1] for row in range(8)]
    with ThreadPoolExecutor(4) as threads:
        rows = list(range(8)) * 10
        found = threads.map(lambda row: predict_logits_and_features(model, TILES[row : row + 1], SPEC.preprocessing)[1], rows)
        for row, features in zip(rows, found, strict=True):
            assert np.array_equal(features, alone[row])
