"""The report says everything it knows, loads nothing, names no patient, and is the same for the same input."""

import json
import re

import numpy as np
import pytest
from evidence import cohort, flow, provenance

from historay.evaluation.assessment import Assessment, Policy, assess
from historay.evaluation.comparison import Judged, compare
from historay.evaluation.examples import describe, pick_examples
from historay.evaluation.page import Pictures, render_comparison, render_report
from historay.evaluation.report import Report, make_report
from historay.evaluation.robustness import judge_robustness

HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "val_auc": 1 - 0.4 / epoch} for epoch in (1, 2, 3)
]
TILE = np.full((32, 32, 3), 200, np.uint8)


@pytest.fixture(scope="module")
def assessment() -> Assessment:
    return assess(cohort(0).predictions, cohort(1, shortcut=3.0, bad_site=3.0), Policy(num_resamples=200, prevalence=0.02))


@pytest.fixture(scope="module")
def report(assessment: Assessment) -> Report:
    rows = np.arange(300)
    clean = assessment.test.at(rows)
    spoilt = {"blur": dict.fromkeys(range(1, 6), clean.probabilities[:, ::-1])}
    robustness = judge_robustness(clean, spoilt, [1], num_resamples=100, seed=0)
    return make_report(
        assessment, provenance(leaks=("slide: 2 pairs across test and train",)), flow(), ("tumour: site",), robustness
    )


@pytest.fixture(scope="module")
def page(assessment: Assessment, report: Report) -> str:
    test, predicted = assessment.test, assessment.judgement.predicted
    rows = pick_examples(test, predicted, assessment.confidence_N)
    examples = {title: [describe(test, predicted, int(row), TILE, TILE) for row in chosen] for title, chosen in rows.items()}
    slices = [examples["Errors, the surest"][:3] for _ in report.slices.slices]
    return render_report(report, test, HISTORY, Pictures(examples, slices))


def test_the_page_loads_nothing_from_anywhere(page: str) -> None:
    assert "default-src 'none'" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"<script|@import|url\(http", page)


def test_the_page_and_the_json_name_no_patient(page: str, report: Report) -> None:
    assert "patient-0" not in page
    assert "patient-0" not in report.model_dump_json()


def test_every_finding_and_the_disclaimer_stand_on_the_page(page: str, report: Report) -> None:
    levels = {finding.level for finding in report.findings}
    assert "alarm" in levels
    texts = [finding.text for finding in report.findings]
    assert any(text.startswith("SHORTCUT") for text in texts)
    assert any(text.startswith("CONFOUNDED: tumour: site") for text in texts)
    assert any(text.startswith("NOT ROBUST: Blur") for text in texts)
    for word in ("SHORTCUT:", "CONFOUNDED:", "NOT ROBUST:", "not a medical device"):
        assert word in page


def test_the_json_comes_back_as_it_was_and_holds_no_nan(report: Report) -> None:
    text = report.model_dump_json()
    assert "NaN" not in text
    assert Report.model_validate_json(text) == report
    assert json.loads(text)["format"] == 2


def test_predictive_values_are_given_at_the_stated_prevalence(report: Report) -> None:
    assert report.decision is not None
    stated = next(row for row in report.decision.predictive if row.prevalence == 0.02)
    own = next(row for row in report.decision.predictive if row.origin == "that of the test split")
    assert stated.ppv.value is not None
    assert own.ppv.value is not None
    sensitivity, specificity = (report.headline[name].value or 0 for name in ("sensitivity", "specificity"))
    expected = 0.02 * sensitivity / (0.02 * sensitivity + 0.98 * (1 - specificity))
    assert stated.ppv.value == pytest.approx(expected)
    assert stated.ppv.value < own.ppv.value


def test_the_checklists_are_filled_from_facts_and_blank_elsewhere(report: Report, page: str) -> None:
    assert {row.guideline for row in report.checklist} == {"TRIPOD+AI", "CLAIM"}
    answered = [row for row in report.checklist if row.answer]
    assert 10 < len(answered) < len(report.checklist)
    assert "to be filled by the authors" in page


def test_a_comparison_shows_both_models_and_their_difference(assessment: Assessment) -> None:
    one = Judged(assessment.test, assessment.chosen.point)
    found = compare(one, one, 100, 0)
    page = render_comparison(["a@1", "b@2"], [{"architecture": "small_cnn"}, {"architecture": "resnet18"}], found)
    assert "a@1" in page
    assert "resnet18" in page
    assert "0.000 (0.000 to 0.000)" in page
