"""The report of a cohort with a planted shortcut, a bad site and spoilt tiles, made once."""

import numpy as np
import pytest
from evidence import cohort, flow, provenance

from historay.evaluation.assessment import Assessment, Policy, assess
from historay.evaluation.examples import describe, pick_examples
from historay.evaluation.page import Pictures, render_report
from historay.evaluation.report import Report, make_report
from historay.evaluation.robustness import judge_robustness

HISTORY = [
    {"epoch": epoch, "train_loss": 1 / epoch, "val_loss": 1.1 / epoch, "val_auc": 1 - 0.4 / epoch} for epoch in (1, 2, 3)
]
TILE = np.full((32, 32, 3), 200, np.uint8)


@pytest.fixture(scope="session")
def assessment() -> Assessment:
    return assess(cohort(0).predictions, cohort(1, shortcut=3.0, bad_site=3.0), Policy(num_resamples=200, prevalence=0.02))


@pytest.fixture(scope="session")
def report(assessment: Assessment) -> Report:
    rows = np.arange(300)
    clean = assessment.test.at(rows)
    spoilt = {"blur": dict.fromkeys(range(1, 6), clean.probabilities[:, ::-1])}
    robustness = judge_robustness(clean, spoilt, [1], num_resamples=100, seed=0)
    return make_report(
        assessment, provenance(leaks=("slide: 2 pairs across test and train",)), flow(), ("tumour: site",), robustness
    )


@pytest.fixture(scope="session")
def page(assessment: Assessment, report: Report) -> str:
    test, predicted = assessment.test, assessment.judgement.predicted
    rows = pick_examples(test, predicted, assessment.confidence_N)
    examples = {title: [describe(test, predicted, int(row), TILE, TILE) for row in chosen] for title, chosen in rows.items()}
    slices = [examples["Errors, the surest"][:3] for _ in report.slices.slices]
    return render_report(report, test, HISTORY, Pictures(examples, slices))
