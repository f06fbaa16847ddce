"""An answer says whether its image is one to be asked about; the label is given all the same."""

import numpy as np
import pytest
from bundles import PROBES, SPEC, network
from images import encoded
from tissue import grey, marked, tissue

from historay.data.decode import Limits
from historay.data.transforms import Preprocessing
from historay.evaluation.conformal import ConformalRule, Threshold
from historay.evaluation.drift import fit_drift_reference
from historay.evaluation.tile_statistics import tile_statistics
from historay.models.bundle import Bundle
from historay.models.features import predict_logits_and_features
from historay.models.inference import probabilities
from historay.models.input_gate import fit_input_gate
from historay.models.runtime import TorchRuntime
from historay.serving.drift import DriftMonitor
from historay.serving.predictor import Predictor
from historay.serving.schema import ImagePrediction

VALIDATION, FRESH = tissue(1, 300), tissue(2, 40)
PREPROCESSING = Preprocessing(input_px=96, mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2))
BLANK = np.full((96, 96, 3), 250, np.uint8)


def rule(score: float) -> ConformalRule:
    """Sets of the classes whose probability is at least 1 - score."""
    return ConformalRule(
        alpha=0.1,
        kind="marginal",
        thresholds=(Threshold(group="all", score=score, num_units=9, num_tiles=90),),
        num_calibration=90,
        unit="patient",
        guarantee="a test",
    )


def predictor(conformal: ConformalRule | None, *, gated: bool = True, watched: bool = False) -> Predictor:
    logits, features = predict_logits_and_features(network(), VALIDATION, PREPROCESSING)
    statistics = tile_statistics(VALIDATION)
    gate, space = fit_input_gate(statistics, features, None)
    drift = fit_drift_reference(probabilities(logits), statistics.stain_BS, SPEC.classes)
    update = {"preprocessing": PREPROCESSING, "conformal": conformal, "input_gate": gate if gated else None}
    bundle = Bundle(SPEC.model_copy(update=update), network(), "f" * 16, PROBES, feature_space=space if gated else None)
    return Predictor(bundle, Limits(), TorchRuntime(bundle), DriftMonitor(drift) if watched else None)


def answered(asked: Predictor, *tiles: np.ndarray) -> list[ImagePrediction]:
    results = asked.predict([encoded(tile, "PNG") for tile in tiles])
    return [result for result in results if isinstance(result, ImagePrediction)]


def test_an_image_like_validation_s_is_accepted_and_the_set_decides_on_abstaining() -> None:
    (sure,) = answered(predictor(rule(0.5)), FRESH[0])
    assert sure.input is not None
    assert (sure.input.accepted, sure.input.reasons, sure.abstain, sure.abstain_reason) == (True, (), False, None)
    (torn,) = answered(predictor(rule(0.999)), FRESH[0])
    assert (torn.abstain, torn.abstain_reason) == (True, "the model cannot tell normal and tumour apart here")
    (lost,) = answered(predictor(rule(0.001)), FRESH[0])
    assert (lost.abstain, lost.abstain_reason) == (True, "no class fits well enough")
    (unknown,) = answered(predictor(None), FRESH[0])
    assert (unknown.abstain, unknown.abstain_reason) == (None, None)


@pytest.mark.parametrize("conformal", [rule(0.5), None])
@pytest.mark.parametrize(
    ("tile", "code", "words"),
    [
        (grey(FRESH[:1])[0], "not-he", "not coloured like the H&E"),
        (marked(FRESH[:1], (20, 150, 60))[0], "pen", "marked by pen"),
        (BLANK, "blank", "the image is blank"),
    ],
)
def test_another_image_is_labelled_but_the_model_abstains_and_says_why(
    conformal: ConformalRule | None, tile: np.ndarray, code: str, words: str
) -> None:
    (result,) = answered(predictor(conformal), tile)
    assert result.label in SPEC.classes
    assert result.input is not None
    assert not result.input.accepted
    assert code in {reason.code for reason in result.input.reasons}
    assert result.abstain is True
    assert result.abstain_reason is not None
    assert words in result.abstain_reason
    assert all(reason.detail in result.abstain_reason for reason in result.input.reasons)


def test_a_bundle_without_a_gate_answers_as_before() -> None:
    ungated = predictor(rule(0.5), gated=False)
    for result, gated in zip(answered(ungated, FRESH[0], BLANK), answered(predictor(rule(0.5)), FRESH[0], BLANK), strict=True):
        assert result.input is None
        assert (result.label, result.probabilities, result.abstain) == (gated.label, gated.probabilities, False)


def test_the_same_image_gets_the_same_check_in_any_batch() -> None:
    asked = predictor(rule(0.5))
    tiles = [*FRESH[:4], *grey(FRESH[4:6]), *marked(FRESH[6:8], (20, 150, 60)), BLANK]
    together = [result.input for result in answered(asked, *tiles)]
    assert together == [answered(asked, tile)[0].input for tile in tiles]
    assert together[::-1] == [result.input for result in answered(asked, *tiles[::-1])]


@pytest.mark.parametrize("gated", [True, False])
def test_every_tile_that_is_answered_is_seen_by_the_drift_monitor(gated: bool) -> None:
    asked = predictor(rule(0.5), gated=gated, watched=True)
    asked.predict([encoded(FRESH[0], "PNG"), b"no image", encoded(BLANK, "PNG")])
    assert asked.drift is not None
    assert asked.drift.summary().num_tiles == 2
    asked.predict([encoded(tile, "PNG") for tile in grey(tissue(3, 200))])
    alerts = {one.quantity for one in asked.drift.summary().quantities if one.alert}
    assert "correlation red-green" in alerts
