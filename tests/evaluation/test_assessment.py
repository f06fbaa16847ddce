"""A planted shortcut, a miscalibrated model and a bad site are each found without being told; a good model is left in peace."""

import numpy as np
import pytest
from evidence import NUM_PATIENTS, cohort, provenance

from historay.evaluation.assessment import Assessment, Evidence, Policy, assess
from historay.evaluation.predictions import Predictions
from historay.evaluation.report import find

POLICY = Policy(num_resamples=300)


def findings(assessment: Assessment, **changes: object) -> list[str]:
    found = find(assessment, provenance(**changes), (), None)
    return [f"{finding.level} {finding.text.partition(':')[0]}" for finding in found]


def judged(**changes: float) -> Assessment:
    validation, test = cohort(0, **changes), cohort(1, **changes)
    return assess(validation.predictions, test, POLICY)


def test_a_good_model_raises_no_alarm_and_no_caution() -> None:
    assessment = judged()
    assert not [text for text in findings(assessment) if not text.startswith("note")]
    assert assessment.judgement.unit == "patient"
    assert assessment.shortcuts.verdict.verdict == "clear"
    assert {level.unit for level in assessment.pooled} == {"slide", "patient"}


def test_a_planted_shortcut_raises_the_alarm() -> None:
    assessment = judged(shortcut=3.0)
    assert "alarm SHORTCUT" in findings(assessment)
    assert assessment.shortcuts.verdict.best == "colour_histogram"


def test_a_model_that_is_too_sure_is_found_and_calibrated() -> None:
    assessment = judged(sharpness=3.0)
    assert "note THE NETWORK ITSELF IS MISCALIBRATED, and temperature calibration was applied" in findings(assessment)
    section = assessment.calibration
    before, after = section.before.figures["nll"].value, section.after.figures["nll"].value
    assert before is not None
    assert after is not None
    assert after < before
    assert section.before.test.miscalibrated
    assert not section.after.test.miscalibrated


def test_a_site_where_the_model_fails_is_named_worst() -> None:
    assessment = judged(bad_site=3.0)
    assert "caution WORSE SUBGROUP" in findings(assessment)
    (column,) = [column for column in assessment.subgroups.columns if column.column == "site"]
    assert column.worst == "site-0"


def test_sets_that_fail_one_class_alone_are_found_though_all_tiles_together_are_covered_as_promised() -> None:
    """A fifth of the few tumours of test look like normal tissue, and normal tissue is easier than in validation."""
    test = cohort(1)
    said, rng = test.predictions, np.random.default_rng(0)
    kept = (said.labels == 0) | (rng.random(len(said.labels)) < 0.3)
    hidden = (said.labels == 1) & (rng.random(len(said.labels)) < 0.2)
    easier = np.where(said.labels == 0, np.minimum(said.probabilities[:, 1], 0.3), said.probabilities[:, 1])
    positive = np.where(hidden, 0.001, easier)
    changed = said.with_probabilities(np.stack([1 - positive, positive], axis=1))
    parts = {name: value[kept] for name, value in test._asdict().items() if isinstance(value, np.ndarray)}
    few = test._replace(predictions=changed.at(kept), shortcuts={k: v[kept] for k, v in test.shortcuts.items()}, **parts)
    assessment = assess(cohort(0).predictions, few, POLICY)
    assert (assessment.abstention.sets["class"]["coverage"].high or 0) > 0.9
    failed = [finding.text for finding in find(assessment, provenance(), (), None) if "SETS FAIL" in finding.text]
    assert len(failed) == 1
    assert failed[0].startswith("PREDICTION SETS FAIL: of class tumour tiles 0.")


def test_an_accepted_leak_and_a_note_stand_in_the_findings() -> None:
    found = findings(judged(), accepted_leaks=("near-duplicate",), notes=("12 candidates were compared",))
    assert found[0] == "alarm LEAKS ACCEPTED"
    assert "note 12 candidates were compared" in found


def test_without_patients_the_report_says_so_and_nothing_is_said_above_the_tile() -> None:
    validation, test = cohort(0), cohort(1)
    bare = {"patients": None, "slides": None}
    unknown = Predictions(**{**vars(test.predictions), **bare})
    assessment = assess(Predictions(**{**vars(validation.predictions), **bare}), test._replace(predictions=unknown), POLICY)
    assert "caution PATIENTS UNKNOWN" in findings(assessment)
    assert assessment.pooled == ()
    assert "patients are unknown" in str(assessment.abstention.sets["class"]["coverage_mean_of_patients"].reason)


def test_everything_chosen_depends_on_validation_alone() -> None:
    """Turning the test labels round changes every figure and nothing that ships."""
    validation, test = cohort(0), cohort(1)
    turned = Predictions(**{**vars(test.predictions), "labels": 1 - test.predictions.labels})
    one, other = (assess(validation.predictions, test._replace(predictions=p), POLICY) for p in (test.predictions, turned))
    assert one.chosen == other.chosen
    assert one.calibration.choice == other.calibration.choice
    assert one.judgement.headline["roc_auc"].value == pytest.approx(1 - other.judgement.headline["roc_auc"].value)  # type: ignore[operator]


def test_seven_classes_are_judged_without_an_operating_point() -> None:
    generator = np.random.default_rng(2)

    def drawn(num: int) -> Evidence:
        labels = generator.integers(0, 7, num)
        logits = 3 * np.eye(7)[labels] + generator.normal(size=(num, 7))
        probability = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        ids = np.array([f"{number:05d}" for number in range(num)])
        features = generator.normal(size=(num, 4)).astype(np.float32)
        uniform = np.full((num, 7), 1 / 7)
        return Evidence(
            Predictions(ids, labels, probability, None, tuple("abcdefg")),
            features,
            generator.random((num, 9)),
            generator.random((num, 48)),
            {"colour_histogram": uniform},
        )

    assessment = assess(drawn(400).predictions, drawn(500), POLICY)
    assert assessment.chosen.point is None
    assert assessment.decision is None
    assert assessment.judgement.headline["roc_auc"].value == pytest.approx(0.99, abs=0.01)
    assert set(assessment.judgement.by_class["a"]) == {"precision", "recall", "f1", "roc_auc", "average_precision"}


def test_the_cohort_has_as_many_patients_as_it_says() -> None:
    patients = cohort(0).predictions.patients
    assert patients is not None
    assert len(np.unique(patients)) == NUM_PATIENTS
