"""A real endpoint with a small bundle from a store, and a real Chromium that may speak to nothing else."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from bundles import SPEC
from images import encoded, texture
from playwright.sync_api import Browser, Page, expect, sync_playwright
from webpage import KEY, PATIENCE_MS, REPORT, RULE, Endpoint, opened, opinionated, running

from historay.evaluation.drift import fit_drift_reference
from historay.evaluation.pdf import find_browser
from historay.evaluation.tile_statistics import tile_statistics
from historay.models.bundle import Bundle, load_bundle, make_probes, save_bundle
from historay.models.features import predict_logits_and_features
from historay.models.inference import probabilities
from historay.models.input_gate import fit_input_gate
from historay.serving.keys import KeyRing
from historay.storage import LocalStore

TILES = np.stack([texture(number, 48) for number in range(10)])


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    store = LocalStore(str(tmp_path_factory.mktemp("store")))
    model = opinionated(TILES)
    seen = np.stack([texture(number, 48) for number in range(60)])
    logits, features = predict_logits_and_features(model, seen, SPEC.preprocessing)
    gate, space = fit_input_gate(tile_statistics(seen), features, None)
    reference = fit_drift_reference(probabilities(logits), tile_statistics(seen).stain_BS, SPEC.classes)
    spec = SPEC.model_copy(update={"conformal": RULE, "input_gate": gate, "drift_reference": reference})
    probes = make_probes(model, TILES, spec.preprocessing)
    return load_bundle(store, spec.name, save_bundle(store, spec, model, {"report.html": REPORT.encode()}, probes, space))


@pytest.fixture(scope="session")
def endpoint(bundle: Bundle) -> Iterator[Endpoint]:
    with running(bundle, None) as found:
        yield found


@pytest.fixture(scope="session")
def keyed_endpoint(bundle: Bundle) -> Iterator[Endpoint]:
    with running(bundle, KeyRing.of(test=KEY)) as found:
        yield found


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # As root, in containers, Chromium refuses to start with its sandbox; /dev/shm of a container is often 64 MB.
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser, endpoint: Endpoint) -> Iterator[Page]:
    """The page, loaded; at the test's end it must have written no error and asked no other host."""
    endpoint.uploads.clear()
    with opened(chromium, endpoint) as found:
        found.wait_for_selector("#model-links")
        yield found


@pytest.fixture(scope="session")
def tile_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Ten good tiles whose names must never leave the browser."""
    folder = tmp_path_factory.mktemp("tiles")
    files = [folder / f"Doe, Jane {number}.png" for number in range(len(TILES))]
    for file, tile in zip(files, TILES, strict=True):
        file.write_bytes(encoded(tile, "PNG"))
    return files
