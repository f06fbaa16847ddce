"""The checklists are whole, and nothing in them is answered without a fact."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from historay.evaluation.checklist import GUIDELINES, Facts, fill, needed, phrases

FULL = Facts(
    dataset="pcam@0123",
    dataset_digest="ab" * 32,
    classes=("normal", "tumour"),
    positive_class="tumour",
    input_px=96,
    mpp=0.972,
    sites=("Nijmegen", "Utrecht"),
    scanners=("P250",),
    num_found=18_003,
    quarantined={"truncated": 2, "empty": 1},
    tiles_by_split={"train": 12_000, "val": 3_000, "test": 3_000},
    patients_by_split={"train": 300, "val": 50, "test": 50},
    train_by_class={"normal": 6_000, "tumour": 6_000},
    test_by_class={"normal": 1_400, "tumour": 1_600},
    split_rule="given with the data set",
    leaks=(),
    accepted_leaks=(),
    preprocessing="channels are standardised",
    augmentation="full",
    architecture="resnet18",
    num_parameters=11_177_538,
    weights_sha256="cd" * 32,
    initialisation="random weights",
    training={"epochs": "15", "seed": "0"},
    class_weights="none",
    selection="best val_auc",
    candidates="one model was trained",
    ensembling="none",
    versions={"historay": "0.1.0", "torch": "2.14.1"},
    metrics={"ROC-AUC": "0.915 (0.905 to 0.924)"},
    intervals="BCa bootstrap of patients",
    calibration="temperature 1.3, fitted on validation",
    threshold_rule="Youden on validation",
    abstention="sets of two classes are no answer",
    shortcuts="The model sees more than colour.",
    subgroups="by site: worst Utrecht 0.88",
    heterogeneity="ROC-AUC 0.93 in Nijmegen, 0.88 in Utrecht",
    robustness="blur of 2 px costs 0.08 of ROC-AUC",
    explanation="Grad-CAM of example tiles",
    failures="three clusters of errors",
    warnings=("FEW PATIENTS",),
    disclaimer="Not a medical device.",
)
OFTEN_LEFT_OPEN = {"ethics": "17", "funding": "18a", "involvement": "19", "fairness": "14", "updating": "24"}


def test_tripod_ai_has_its_27_items_in_52_parts_each_once() -> None:
    numbers = [item.number for item in GUIDELINES["TRIPOD+AI"]]
    assert len(numbers) == len(set(numbers)) == 52
    assert sorted({int(number.rstrip("abcdefg")) for number in numbers}) == list(range(1, 28))


def test_claim_has_its_44_items_each_once() -> None:
    assert [item.number for item in GUIDELINES["CLAIM"]] == [str(number) for number in range(1, 45)]


def test_no_item_is_answered_without_a_fact() -> None:
    assert [row.item for row in fill(Facts()) if row.answer is not None] == []
    assert all(needed(item) for items in GUIDELINES.values() for item in items if item.answer)


def test_no_item_leaves_something_to_the_authors_that_has_no_answer_of_its_own() -> None:
    assert [item.number for items in GUIDELINES.values() for item in items if item.left and not item.answer] == []


def test_every_phrase_that_an_item_takes_can_be_known() -> None:
    known = {name for name, phrase in phrases(FULL).items() if phrase}
    taken = set().union(*(needed(item) for items in GUIDELINES.values() for item in items))
    assert taken == known  # none is missing, and none is made for nothing


@settings(max_examples=60, deadline=None)
@given(st.sets(st.sampled_from(sorted(Facts.model_fields))))
def test_less_known_answers_no_more_and_nothing_else(forgotten: set[str]) -> None:
    full, less = fill(FULL), fill(FULL.model_copy(update=dict.fromkeys(forgotten)))
    for before, after in zip(full, less, strict=True):
        assert (after.guideline, after.item, after.subject) == (before.guideline, before.item, before.subject)
        assert after.answer is None or before.answer is not None


@pytest.mark.parametrize("field", sorted(Facts.model_fields))
def test_every_fact_is_said_somewhere(field: str) -> None:
    assert fill(FULL) != fill(FULL.model_copy(update={field: None if field != "accepted_leaks" else ("patient",)}))


@pytest.mark.parametrize(("what", "number"), OFTEN_LEFT_OPEN.items())
def test_what_only_the_authors_know_stays_blank(what: str, number: str) -> None:
    row = next(row for row in fill(FULL) if row.guideline == "TRIPOD+AI" and row.item == number)
    assert what in row.subject
    assert row.answer is None


def test_no_warning_does_not_read_as_no_limitation() -> None:
    rows = {(row.guideline, row.item): row.answer for row in fill(FULL.model_copy(update={"warnings": ()}))}
    assert rows["TRIPOD+AI", "26"] is None
    assert rows["CLAIM", "40"] is None


def test_an_accepted_leak_is_not_called_disjoint() -> None:
    facts = FULL.model_copy(update={"leaks": ("2 near-duplicates",), "accepted_leaks": ("near-duplicate",)})
    answer = next(row.answer for row in fill(facts) if row.guideline == "CLAIM" and row.item == "20")
    assert answer is not None
    assert answer.startswith("Not disjoint")
    assert "2 near-duplicates; accepted: near-duplicate" in answer


def test_unknown_patients_are_not_called_disjoint_by_patient() -> None:
    answer = next(row.answer for row in fill(FULL.model_copy(update={"patients_by_split": None})) if row.item == "20")
    assert answer is not None
    assert "patients are not known" in answer


def test_answers_are_sentences() -> None:
    for row in fill(FULL):
        if row.answer is not None:
            assert row.answer[0].isupper() or row.answer[0].isdigit()
            assert row.answer.endswith(".")
            assert ".." not in row.answer
            assert "None" not in row.answer
