"""From image bytes to a bundle's answer, by the very code of training and without HTTP: the endpoint and the command share it.

Suffixes: B images, H rows, W columns, C channels (RGB), K classes.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from historay.data.decode import Limits, Pixels, resize_tile, verify_tile
from historay.errors import BadImage, BundleError
from historay.evaluation.operating_point import decide
from historay.models.bundle import Bundle
from historay.models.inference import predict_logits, probabilities
from historay.serving.schema import ImagePrediction, ImageRefusal, OperatingThreshold, Refusal, Result


class PreparedImage(NamedTuple):
    """One image ready for the network: (input_px, input_px, 3) uint8 RGB, and the digest of the bytes it came from."""

    pixels_HWC: Pixels
    sha256: str


@dataclass(frozen=True)
class Predictor:
    """A loaded bundle and the limits on what it is shown; its methods may be called from several threads."""

    bundle: Bundle
    limits: Limits

    @cached_property
    def operating_point(self) -> OperatingThreshold | None:
        """The threshold behind the labels, as answers show it."""
        point = self.bundle.spec.operating_point
        if point is None:
            return None
        return OperatingThreshold(positive_class=point.positive_class, threshold=point.threshold)

    def prepare(self, data: bytes) -> PreparedImage:
        """Checks, decodes and resizes one encoded image; BadImage says why it cannot be used."""
        verified = verify_tile(data, self.limits)
        return PreparedImage(resize_tile(verified.pixels_HWC, self.bundle.spec.preprocessing.input_px), verified.sha256)

    def classify(self, tiles_BHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Returns the probabilities (B, K) of prepared pixels, in one pass of the network."""
        spec = self.bundle.spec
        probabilities_BK = probabilities(predict_logits(self.bundle.model, tiles_BHWC, spec.preprocessing), spec.temperature)
        if not np.isfinite(probabilities_BK).all():
            raise BundleError(f"{self.bundle.reference}: gives a probability that is not finite; train or choose another model")
        return probabilities_BK

    def results(self, prepared: list[PreparedImage | BadImage]) -> list[Result]:
        """Answers for each image in order: a prediction, or the refusal that its preparation ended with."""
        good = [image for image in prepared if isinstance(image, PreparedImage)]
        predictions = iter(self._predictions(good) if good else [])
        return [
            refusal(index, image) if isinstance(image, BadImage) else next(predictions).model_copy(update={"index": index})
            for index, image in enumerate(prepared)
        ]

    def predict(self, images: list[bytes]) -> list[Result]:
        """Answers for each encoded image in order; a bad one spoils nobody else's."""
        return self.results([self._tried(data) for data in images])

    def warm_up(self) -> None:
        """Runs the network once on a black tile, so that the first request is not the slow one; raises if it cannot run."""
        side = self.bundle.spec.preprocessing.input_px
        self.classify(np.zeros((1, side, side, 3), np.uint8))

    def _tried(self, data: bytes) -> PreparedImage | BadImage:
        try:
            return self.prepare(data)
        except BadImage as error:
            return error

    def _predictions(self, images: list[PreparedImage]) -> list[ImagePrediction]:
        spec = self.bundle.spec
        probabilities_BK = self.classify(np.stack([image.pixels_HWC for image in images]))
        chosen_B = decide(probabilities_BK, spec.classes, spec.operating_point)
        return [
            ImagePrediction(
                index=index,
                sha256=image.sha256,
                label=spec.classes[chosen_B[index]],
                probabilities=dict(zip(spec.classes, probabilities_BK[index].tolist(), strict=True)),
            )
            for index, image in enumerate(images)
        ]


def refusal(index: int, error: BadImage) -> ImageRefusal:
    """The answer for an image that cannot be used."""
    reason, _, detail = str(error).partition(": ")
    return ImageRefusal(index=index, error=Refusal(reason=reason, detail=detail))
