"""A bundle comes back as it was saved, or not at all."""

import hashlib
import json

import numpy as np
import pytest
from bundles import PROBES, SPEC, network
from images import texture

from historay.errors import BundleError
from historay.models.bundle import bundle_prefix, load_bundle, save_bundle
from historay.models.inference import predict_logits, probabilities
from historay.storage import LocalStore

TILES = np.stack([texture(seed, 48) for seed in range(9)])


def test_the_loaded_model_gives_the_logits_of_the_saved_one(store: LocalStore) -> None:
    model = network()
    bundle = load_bundle(store, "demo", save_bundle(store, SPEC, model, {"report.html": b"<p>"}, PROBES))
    before, after = (predict_logits(one, TILES, SPEC.preprocessing) for one in (model, bundle.model))
    assert np.array_equal(before, after)
    assert bundle.spec == SPEC


def test_the_same_content_has_the_same_version_and_other_content_another(store: LocalStore) -> None:
    first = save_bundle(store, SPEC, network(), {}, PROBES)
    assert save_bundle(store, SPEC, network(), {}, PROBES) == first
    assert save_bundle(store, SPEC.model_copy(update={"seed": 1}), network(), {}, PROBES) != first


@pytest.mark.parametrize("name", ["model.safetensors", "model.json", "MODEL_CARD.md", "report.html", "bundle.json"])
@pytest.mark.parametrize("place", [0.0, 0.3, 0.7, 0.999])
def test_one_changed_byte_anywhere_is_refused(store: LocalStore, name: str, place: float) -> None:
    version = save_bundle(store, SPEC, network(), {"report.html": b"<p>a report</p>"}, PROBES)
    key = f"{bundle_prefix('demo', version)}/{name}"
    data = bytearray(store.read(key))
    data[int(place * len(data))] ^= 1
    store.write(key, bytes(data))
    with pytest.raises(BundleError, match=name):
        load_bundle(store, "demo", version)


def test_a_missing_file_is_named(store: LocalStore) -> None:
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    store.delete(f"{bundle_prefix('demo', version)}/model.safetensors")
    with pytest.raises(BundleError, match=r"model\.safetensors is missing"):
        load_bundle(store, "demo", version)


@pytest.mark.parametrize(("number", "mend"), [(1, "historay evaluate makes"), (99, "install a newer one")])
def test_a_bundle_of_another_format_is_refused_with_what_mends_it(store: LocalStore, number: int, mend: str) -> None:
    index = json.dumps({"format": number, "files": {}}).encode()
    version = hashlib.sha256(index).hexdigest()[:16]
    store.write(f"{bundle_prefix('demo', version)}/bundle.json", index)
    with pytest.raises(BundleError, match=rf"format {number}, and this Historay reads format \d+; {mend}"):
        load_bundle(store, "demo", version)


def test_nothing_in_a_bundle_is_a_pickle(store: LocalStore) -> None:
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    names = {item.key.rsplit("/", 1)[1] for item in store.list("models")}
    assert names == {"model.safetensors", "model.json", "MODEL_CARD.md", "probes.safetensors", "bundle.json"}
    assert json.loads(store.read(f"{bundle_prefix('demo', version)}/model.json"))["classes"] == ["normal", "tumour"]


def test_an_accepted_leak_stands_on_the_card(store: LocalStore) -> None:
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    card = store.read(f"{bundle_prefix('demo', version)}/MODEL_CARD.md").decode()
    assert "LEAKS ACCEPTED: near-duplicate" in card
    assert "not a medical device" in card


@pytest.mark.parametrize("batch", [1, 4, 9])
def test_a_tile_s_probabilities_do_not_depend_on_its_batch(batch: int) -> None:
    model = network()
    together = probabilities(predict_logits(model, TILES, SPEC.preprocessing))
    parts = [TILES[start : start + batch] for start in range(0, 9, batch)]
    apart = np.concatenate([probabilities(predict_logits(model, part, SPEC.preprocessing)) for part in parts])
    assert np.abs(together - apart).max() < 1e-5
    assert np.abs(together.sum(axis=1) - 1).max() < 1e-12
