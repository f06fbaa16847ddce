"""BentoML as its documentation has it: adaptive batches of up to 16 of images that it decodes with Pillow itself."""

import bentoml
import network
import numpy as np
from PIL.Image import Image


@bentoml.service(workers=1, traffic={"timeout": 30, "max_concurrency": 256})
class Tiles:
    def __init__(self) -> None:
        self.model = network.load()

    @bentoml.api(batchable=True, max_batch_size=network.MAX_BATCH, max_latency_ms=1000)
    def predict(self, images: list[Image]) -> list[dict[str, float]]:
        return network.probabilities(self.model, [np.asarray(image.convert("RGB")) for image in images])
