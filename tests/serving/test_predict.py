"""The command asks an endpoint in requests that it takes, and answers each image for itself, in order."""

from pathlib import Path

import pytest
from bundles import PROBES, SPEC, network
from endpoint import listening
from images import encoded, texture

from historay.models.bundle import Bundle
from historay.serving.http import build_app
from historay.serving.limits import PART_OVERHEAD_BYTES, RequestConfig
from historay.serving.predict import predict_images
from historay.serving.predict_settings import PredictConfig
from historay.serving.schema import ImagePrediction, ImageRefusal
from historay.serving.service import make_service

PNGS = [encoded(texture(seed, 48), "PNG") for seed in range(9)]
MOST = max(map(len, PNGS))


@pytest.mark.parametrize(
    ("max_files", "max_body_bytes"), [(2, 64 * MOST), (64, 2 * MOST + 2 * PART_OVERHEAD_BYTES), (1, MOST + PART_OVERHEAD_BYTES)]
)
def test_a_folder_is_predicted_whatever_limits_the_endpoint_has(tmp_path: Path, max_files: int, max_body_bytes: int) -> None:
    images = {f"{number}.png": data for number, data in enumerate([*PNGS, b"no image", bytes(MOST + 1)])}
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    config = RequestConfig(max_files=max_files, max_body_bytes=max_body_bytes, max_image_bytes=MOST, runtime="torch")
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), config)
    expected = [service.predictor.predict([images[name]])[0] for name in sorted(images)]
    with listening(build_app(lambda: service, config)) as (port, mishaps):
        asked = PredictConfig(images=(str(tmp_path),), url=f"http://127.0.0.1:{port}")
        answers = list(predict_images(asked))
        assert mishaps.messages == []
    assert [Path(answer.image).name for answer in answers] == sorted(images)
    for answer, result in zip(answers, expected, strict=True):
        if isinstance(result, ImagePrediction):
            assert isinstance(answer.result, ImagePrediction)
            assert (answer.result.sha256, answer.result.label) == (result.sha256, result.label)
        else:
            assert isinstance(answer.result, ImageRefusal)
            assert answer.result.error.reason == result.error.reason
