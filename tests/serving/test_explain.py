"""A heat map in an answer is Grad-CAM of its label, to the last of 255 steps, the same in any request."""

import base64
import io
from collections.abc import Iterator

import matplotlib as mpl
import numpy as np
import pytest
from bundles import PROBES, SPEC, network
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from images import encoded, texture
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from historay.models.bundle import Bundle
from historay.models.gradcam import grad_cam
from historay.serving.explain import explain_tiles, heatmap_png
from historay.serving.http import build_app
from historay.serving.limits import MAX_EXPLAINED, RequestConfig
from historay.serving.service import make_service

# Noise and a low contrast: of the untrained network's labels some have evidence and some have none.
TILES = [texture(seed, 48) for seed in range(6)]
LIMITS = RequestConfig(runtime="torch")


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), LIMITS)
    with TestClient(build_app(lambda: service, LIMITS), raise_server_exceptions=False) as found:
        yield found


def predict(client: TestClient, images: list[bytes], query: str = "?explain=true") -> list[dict[str, object]]:
    answer = client.post(f"/v1/predict{query}", files=[("images", ("image", data)) for data in images])
    assert answer.status_code == 200, answer.text
    return list(answer.json()["results"])


def pixels(png: object) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(str(png)))).convert("RGBA"))


def test_opacity_is_the_heat_of_the_label_and_colour_its_place_on_the_scale(client: TestClient) -> None:
    results = predict(client, [encoded(tile, "PNG") for tile in TILES])
    assert any(result["heatmap_png"] for result in results), "the test needs a tile with evidence"
    for tile, result in zip(TILES, results, strict=True):
        label = np.array([SPEC.classes.index(str(result["label"]))])
        (heat,) = grad_cam(network(), tile[None], SPEC.preprocessing, label)
        assert (result["heatmap_png"] is None) == (not heat.any()) == (result["heatmap_missing"] is not None)
        if result["heatmap_png"]:
            shown = pixels(result["heatmap_png"])
            assert shown.shape == (48, 48, 4)
            np.testing.assert_allclose(shown[..., 3] / 255, heat, atol=0.5 / 255 + 1e-3)
            expected = mpl.colormaps["cividis"](shown[..., 3] / 255, bytes=True)
            np.testing.assert_array_equal(shown[..., :3], np.asarray(expected)[..., :3])


def test_a_tile_has_the_same_heat_map_in_any_request(client: TestClient) -> None:
    images = [encoded(tile, "PNG") for tile in TILES]
    together = predict(client, images)
    for image, expected in zip(images, together, strict=True):
        (alone,) = predict(client, [image])
        assert alone["heatmap_png"] == expected["heatmap_png"]


def test_only_who_asks_gets_heat_maps_and_the_rest_of_the_answer_stays(client: TestClient) -> None:
    images = [encoded(tile, "PNG") for tile in TILES]
    plain, explained = predict(client, images, ""), predict(client, images)
    assert all(result["heatmap_png"] is None and result["heatmap_missing"] is None for result in plain)
    for one, other in zip(plain, explained, strict=True):
        assert (one["label"], one["sha256"], one["index"]) == (other["label"], other["sha256"], other["index"])


def test_a_refused_image_among_explained_ones_keeps_its_place_and_its_reason(client: TestClient) -> None:
    good = encoded(TILES[0], "PNG")
    results = predict(client, [b"text", good, b"", good])
    assert ["error" in result for result in results] == [True, False, True, False]
    assert results[1]["heatmap_png"] == results[3]["heatmap_png"]


def test_more_than_the_limit_is_refused_in_words_and_the_model_states_the_limit(client: TestClient) -> None:
    files = [("images", ("image", encoded(TILES[0], "PNG")))] * (MAX_EXPLAINED + 1)
    answer = client.post("/v1/predict?explain=true", files=files)
    assert (answer.status_code, answer.json()["reason"]) == (413, "too-many-explained")
    assert client.post("/v1/predict", files=files).status_code == 200
    assert client.get("/v1/model").json()["limits"]["max_explained"] == MAX_EXPLAINED


def test_a_network_without_a_map_over_space_is_explained_in_words_and_not_by_an_error() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2)).eval()
    (found,) = explain_tiles(Bundle(SPEC, flat, "f" * 16, PROBES), np.stack(TILES[:1]), ["tumour"])
    assert found.heatmap_png is None
    assert "no layer puts out a map" in str(found.heatmap_missing)


@given(st.lists(st.floats(0, 1, width=32), min_size=12, max_size=12))
def test_laid_over_an_image_the_png_follows_the_formula_that_the_documents_state(values: list[float]) -> None:
    heat = np.array(values, np.float32).reshape(3, 4)
    with Image.open(io.BytesIO(heatmap_png(heat))) as image:
        layer = image.convert("RGBA")
    below = Image.new("RGBA", layer.size, (230, 180, 210, 255))
    blended = np.asarray(Image.alpha_composite(below, layer), np.float64)[..., :3]
    alpha = np.round(heat * 255)[..., None] / 255
    colour = 255 * np.asarray(mpl.colormaps["cividis"](np.round(heat * 255).astype(int)))[..., :3]
    np.testing.assert_allclose(blended, (1 - alpha) * np.array([230, 180, 210]) + alpha * colour, atol=2)
