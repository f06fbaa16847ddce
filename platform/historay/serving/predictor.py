"""From image bytes to a bundle's answer, by the very code of training and without HTTP: the endpoint and the command share it.

Suffixes: B images, H rows, W columns, C channels (RGB), K classes.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from historay.data.decode import Limits, Pixels, resize_tile, verify_tile
from historay.errors import BadImage
from historay.evaluation.operating_point import decide
from historay.evaluation.tile_statistics import tile_statistics
from historay.models.bundle import Bundle
from historay.models.inference import probabilities
from historay.models.input_gate import Rejection
from historay.models.runtime import Outputs, Runtime
from historay.serving.drift import DriftMonitor
from historay.serving.explain import Explanation, explain_tiles
from historay.serving.schema import (
    ImagePrediction,
    ImageRefusal,
    InputCheck,
    InputReason,
    OperatingThreshold,
    PredictAnswer,
    Refusal,
    Result,
)

_IN_WORDS = {
    "blank": "blank",
    "not-he": "not coloured like the H&E that the model was validated on",
    "unlike-training": "unlike those that the model was validated on",
    "blurred": "blurred",
    "pen": "marked by pen or otherwise covered",
}


class PreparedImage(NamedTuple):
    """One image ready for the network: (input_px, input_px, 3) uint8 RGB, and the digest of the bytes it came from."""

    pixels_HWC: Pixels
    sha256: str


@dataclass(frozen=True)
class Predictor:
    """A loaded bundle, the limits on what it is shown and what runs it; its methods may be called from several threads."""

    bundle: Bundle
    limits: Limits
    runtime: Runtime
    drift: DriftMonitor | None = None  # None: nobody watches

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

    def results(self, prepared: list[PreparedImage | BadImage]) -> list[Result]:
        """Answers for each image in order: a prediction, or the refusal that its preparation ended with."""
        good = [image for image in prepared if isinstance(image, PreparedImage)]
        return in_order(prepared, self.predictions(good) if good else [])

    def predict(self, images: list[bytes]) -> list[Result]:
        """Answers for each encoded image in order; a bad one spoils nobody else's."""
        return self.results([self.tried(data) for data in images])

    def explained(self, images: Sequence[bytes], answer: PredictAnswer) -> PredictAnswer:
        """Adds to an answer, which is this model's on these images, where the evidence for each label lies."""
        if answer.model != self.bundle.reference:
            missing = f"{answer.model} answered and {self.bundle.reference} took its place meanwhile; ask again"
            update = dict.fromkeys(range(len(images)), Explanation(None, missing))
        else:
            predicted = [result for result in answer.results if isinstance(result, ImagePrediction)]
            tiles_BHWC = np.stack([self.prepare(images[result.index]).pixels_HWC for result in predicted])
            found = explain_tiles(self.bundle, tiles_BHWC, [result.label for result in predicted])
            update = {result.index: one for result, one in zip(predicted, found, strict=True)}
        results = (
            result.model_copy(update=update[result.index]._asdict()) if isinstance(result, ImagePrediction) else result
            for result in answer.results
        )
        return answer.model_copy(update={"results": tuple(results)})

    def tried(self, data: bytes) -> PreparedImage | BadImage:
        """Prepares one encoded image, or returns why it cannot be used."""
        try:
            return self.prepare(data)
        except BadImage as error:
            return error

    def predictions(self, images: list[PreparedImage]) -> list[Result]:
        """Answers for prepared images in one pass of the network; ``index`` counts within them.

        An image of which the network makes no number is refused for itself.
        """
        tiles_BHWC = np.stack([image.pixels_HWC for image in images])
        outputs = self.runtime.run(tiles_BHWC)
        finite_B: NDArray[np.bool_] = np.all(np.isfinite(outputs.logits_BK), axis=1)
        answered = list(itertools.compress(images, finite_B))
        found = iter(self._answers(answered, tiles_BHWC[finite_B], Outputs(*(each[finite_B] for each in outputs))))
        refused = refusal(
            0, BadImage("not-finite: the network gives no number for this image; look at it, or choose another model")
        )
        return [next(found) if finite else refused for finite in finite_B]

    def _answers(self, images: list[PreparedImage], tiles_BHWC: NDArray[np.uint8], outputs: Outputs) -> list[ImagePrediction]:
        spec = self.bundle.spec
        probabilities_BK = spec.calibration.apply(probabilities(outputs.logits_BK))
        checks = self._watched(tiles_BHWC, outputs.features_BF, probabilities_BK)
        chosen_B = decide(probabilities_BK, spec.classes, spec.operating_point)
        sets = self._sets(probabilities_BK)
        return [
            ImagePrediction(
                index=index,
                sha256=image.sha256,
                label=spec.classes[chosen_B[index]],
                probabilities=dict(zip(spec.classes, probabilities_BK[index].tolist(), strict=True)),
                prediction_set=sets[index],
                abstain=_abstains(sets[index], checks[index]),
                abstain_reason=_why_abstained(sets[index], checks[index]),
                input=checks[index],
            )
            for index, image in enumerate(images)
        ]

    def _watched(
        self, tiles_BHWC: NDArray[np.uint8], features_BF: NDArray[np.float32], probabilities_BK: NDArray[np.float64]
    ) -> list[InputCheck | None]:
        """Shows the tiles to the drift monitor and returns what the input gate says of each; None without a gate."""
        gate, space = self.bundle.spec.input_gate, self.bundle.feature_space
        if gate is None and self.drift is None:
            return [None] * len(tiles_BHWC)
        statistics = tile_statistics(tiles_BHWC)
        if self.drift is not None:
            self.drift.observe(probabilities_BK, statistics.stain_BS)
        if gate is None or space is None:
            return [None] * len(tiles_BHWC)
        return [_check(rejections) for rejections in gate.judge(statistics, features_BF, space)]

    def _sets(self, probabilities_BK: NDArray[np.float64]) -> list[tuple[str, ...] | None]:
        """The prediction set of each row, by name; None where the bundle has no rule."""
        rule, classes = self.bundle.spec.conformal, self.bundle.spec.classes
        if rule is None:
            return [None] * len(probabilities_BK)
        return [tuple(itertools.compress(classes, row)) for row in rule.sets(probabilities_BK)]


def in_order(prepared: Sequence[PreparedImage | BadImage], predictions: Iterable[Result], first: int = 0) -> list[Result]:
    """Puts the predictions of the images that could be used back among the others, each numbered from ``first``."""
    coming = iter(predictions)
    return [
        refusal(index, image) if isinstance(image, BadImage) else next(coming).model_copy(update={"index": index})
        for index, image in enumerate(prepared, start=first)
    ]


def refusal(index: int, error: BadImage) -> ImageRefusal:
    """The answer for an image that cannot be used."""
    reason, _, detail = str(error).partition(": ")
    return ImageRefusal(index=index, error=Refusal(reason=reason, detail=detail))


def _check(rejections: tuple[Rejection, ...]) -> InputCheck:
    reasons = tuple(InputReason(code=rejection.code, detail=rejection.detail) for rejection in rejections)
    return InputCheck(accepted=not reasons, reasons=reasons)


def _abstains(prediction_set: tuple[str, ...] | None, check: InputCheck | None) -> bool | None:
    if check is not None and not check.accepted:
        return True
    return None if prediction_set is None else len(prediction_set) != 1


def _why_abstained(prediction_set: tuple[str, ...] | None, check: InputCheck | None) -> str | None:
    """All that speaks against relying on the label, in one sentence; None where nothing does."""
    why = [f"the image is {_IN_WORDS[reason.code]} ({reason.detail})" for reason in check.reasons] if check else []
    if prediction_set:
        *others, last = prediction_set
        if others:
            why.append(f"the model cannot tell {', '.join(others)} and {last} apart here")
    elif prediction_set is not None:
        why.append("no class fits well enough")
    return "; ".join(why) or None
