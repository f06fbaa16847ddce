"""The report says everything it knows, loads nothing, names no patient, and is the same for the same input."""

import json
import re
from html import unescape

import pytest
from bundles import PROBES, SPEC, network

from historay.evaluation.assessment import Assessment
from historay.evaluation.comparison import Judged, compare
from historay.evaluation.page import TITLES, render_comparison
from historay.evaluation.report import Report
from historay.evaluation.side_by_side import NOT_THERE, side_by_side
from historay.models.bundle import CARD, bundle_prefix, save_bundle
from historay.storage import LocalStore


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
    of_claim = {row.item: str(row.answer) for row in report.checklist if row.guideline == "CLAIM"}
    of_tripod = {row.item: str(row.answer) for row in report.checklist if row.guideline == "TRIPOD+AI"}
    assert "a single network looks at each tile once" in of_claim["27"]
    assert "clusters of tiles by the model's own features" in of_claim["39"]
    assert re.search(r"ROC-AUC by site: site-0 0\.\d{3} .*; ROC-AUC by scanner: scanner-", of_tripod["23b"])


def test_the_model_card_says_what_spoiling_costs_where_it_was_measured(report: Report, store: LocalStore) -> None:
    cards = {}
    for judged in (report, report.model_copy(update={"robustness": None})):
        version = save_bundle(store, SPEC, network(), {"report.json": judged.model_dump_json().encode()}, PROBES)
        cards[judged.robustness is None] = store.read(f"{bundle_prefix('demo', version)}/{CARD}").decode()
    assert report.robustness is not None
    (blur,) = report.robustness.curves
    assert f"| {blur.title} | {blur.parameter}: {blur.points[2].level:g} | {blur.points[2].loss.value:.3f} (" in cards[False]
    assert "severities" not in cards[True]


def test_a_comparison_shows_both_models_and_their_difference(assessment: Assessment, report: Report) -> None:
    one = Judged(assessment.test, assessment.chosen.point)
    found = compare(one, one, 100, 0)
    page = render_comparison(["a@1", "b@2"], [{"architecture": "small_cnn"}, {"architecture": "resnet18"}], found, [report] * 2)
    assert "a@1" in page
    assert "resnet18" in page
    assert "0.000 (0.000 to 0.000)" in page
    for section in ("Patients and slides", "Calibration", "Shortcuts", "Abstention", "Subgroups", "Findings"):
        assert f"<h3>{section}</h3>" in page
    assert unescape(page).count(f"<td>{report.shortcuts.verdict.sentence}</td>") == 2
    assert report.subgroups.patients is not None
    assert report.subgroups.patients.worst is not None
    assert unescape(page).count(f"<td>{report.subgroups.patients.worst.in_words()}</td>") == 2


def test_of_two_reports_each_says_its_own_and_what_one_lacks_is_said(assessment: Assessment, report: Report) -> None:
    other = report.model_copy(update={"robustness": None, "pooled": ()})
    found = side_by_side([report, other], TITLES)
    assert {"site-0" in value for value in found["Subgroups"]["worst site"]} == {True}
    spoilt = found["Robustness and error slices"]["mild spoiling"]
    assert spoilt[0].startswith("Blur")
    assert spoilt[1] == NOT_THERE
    assert all(second == NOT_THERE for _, second in found["Patients and slides"].values())
    assert found["Findings"]["alarm"][0].count("SHORTCUT:") == 1
    one = Judged(assessment.test, assessment.chosen.point)
    page = render_comparison(["a@1", "b@2"], [{}, {}], compare(one, one, 100, 0), [report, None])
    assert "The report of b@2 was made by another version" in page
