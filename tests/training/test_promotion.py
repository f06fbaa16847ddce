"""Real reports of cohorts with planted faults: the gate lets the sound model through and refuses each other by its fault."""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Barrier

import pytest
from bundles import PROBES, SPEC, network
from evidence import cohort

from historay.errors import BundleError, ConfigError, Conflict
from historay.evaluation.assessment import Assessment, Policy, assess
from historay.evaluation.flow import Flow
from historay.evaluation.report import Provenance, Report, make_report
from historay.models.bundle import CARD, load_bundle, save_bundle
from historay.models.gate import GatePolicy, refusals
from historay.models.registry import describe_model, resolve, rollback
from historay.storage import LocalStore
from historay.training.promotion import Promotion, promote
from historay.training.run import write_predictions

GATE = GatePolicy()
FLOW = Flow(num_found=1, quarantined={}, num_kept=1, num_duplicates={}, splits={}, by_class={}, split_rule="a test")


@cache
def judged(faults: tuple[tuple[str, float], ...], positive_class: str | None = None) -> Assessment:
    changes = dict(faults)
    validation, test = cohort(0, **changes), cohort(1, **changes)  # type: ignore[arg-type]
    return assess(validation.predictions, test, Policy(num_resamples=300, positive_class=positive_class))


def evaluated(
    store: LocalStore,
    seed: int,
    leaks: tuple[str, ...] = (),
    digest: str = "0" * 64,
    positive_class: str | None = None,
    **faults: float,
) -> str:
    """Saves a model with its report and test predictions, as an evaluation does, and returns its reference."""
    assessment, run = judged(tuple(sorted(faults.items())), positive_class), f"run-{seed}"
    provenance = Provenance(
        model="demo",
        run=run,
        architecture="small_cnn",
        num_parameters=1,
        weights_sha256="0" * 64,
        dataset="d@0",
        dataset_digest=digest,
        accepted_leaks=leaks,
        leaks=(),
        seed=seed,
        num_epochs=1,
        num_steps=1,
        num_workers=1,
        training_seconds=1.0,
        settings={},
        input_px=48,
        mpp=0.5,
        machine="a test",
        versions={"historay": "0"},
    )
    report: Report = make_report(assessment, provenance, FLOW, (), None)
    kept = {"test": write_predictions(store, run, "test", assessment.test)}
    changes = {"run": run, "seed": seed, "dataset_digest": digest, "classes": assessment.test.classes, "predictions": kept}
    spec = SPEC.model_copy(update={**changes, "operating_point": assessment.chosen.point, "accepted_leaks": leaks})
    return f"demo@{save_bundle(store, spec, network(), {'report.json': report.model_dump_json().encode()}, PROBES)}"


def refused(promotion: Promotion) -> list[str]:
    assert not promotion.promoted
    return [check.name for check in promotion.checks if not check.passed]


def test_a_sound_model_is_promoted_and_its_move_says_that_the_gate_was_passed(store: LocalStore) -> None:
    reference = evaluated(store, 1)
    done = promote(store, reference, GATE, "the first")
    assert done.promoted
    assert refusals(done.checks) == []
    assert {"site:site-0", "scanner:scanner-1"} <= {check.name for check in done.checks}
    assert resolve(store, "demo@production") == ("demo", reference.partition("@")[2])
    (move,) = describe_model(store, reference)["aliases"]["production"]
    assert (move["reason"], move["gate"]["overridden"], move["gate"]["why"]) == ("the first", (), None)
    assert move["gate"]["policy"] == GATE.model_dump(mode="json")
    assert all(text.startswith("passed ") for text in move["gate"]["checks"])


def test_bounds_that_were_loosened_for_a_promotion_stand_in_its_record(store: LocalStore) -> None:
    loose = GatePolicy(max_calibration_error=0.5, min_subgroup=0.1)
    reference = evaluated(store, 1)
    assert promote(store, reference, loose, "with bounds of my own").promoted
    name, _, version = reference.partition("@")
    told = store.read(f"models/{name}/{version}/PROMOTIONS.md").decode()
    assert "bounds other than the defaults: max_calibration_error=0.5, min_subgroup=0.1" in told
    (move,) = describe_model(store, reference)["promotions"]
    assert move["gate"]["policy"]["min_subgroup"] == 0.1
    assert "passed calibration error: " in "; ".join(move["gate"]["checks"])
    card = load_bundle(store, name, version).documents[CARD].decode()
    assert card.startswith("# Model card")
    assert told in card


def test_a_model_is_not_promoted_over_one_that_it_was_not_compared_with(store: LocalStore) -> None:
    both = [evaluated(store, 1), evaluated(store, 2)]
    together = Barrier(2)

    def promoted(reference: str) -> bool:
        together.wait()
        try:
            return promote(store, reference, GATE, "at the same time").promoted
        except Conflict:
            return False

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(promoted, both)) == [False, True]
    assert len(describe_model(store, "demo@production")["aliases"]["production"]) == 1


def test_a_model_of_another_positive_class_is_not_let_past_the_delong_check(store: LocalStore) -> None:
    promote(store, evaluated(store, 1, bad_site=3.0), GatePolicy(min_subgroup=0.5), "the first")
    other = promote(store, evaluated(store, 2, positive_class="normal"), GATE, "another ranking")
    assert "better than production (DeLong)" in refused(other)


def test_a_bad_site_beyond_the_20_largest_is_refused_like_any_other(store: LocalStore) -> None:
    reference = evaluated(store, 1, num_sites=22, which_bad=21, bad_site=9.0)
    assert "site:site-21" in refused(promote(store, reference, GatePolicy(min_subgroup=0.75), "try"))


@pytest.mark.parametrize(
    ("policy", "faults", "expected"),
    [
        (GATE, {"leaks": ("near-duplicate",)}, ["no unaccepted leak"]),
        (GatePolicy(min_lower_bound=0.97), {}, ["roc_auc on test"]),
        (GATE, {"shortcut": 3.0}, ["better than shortcuts"]),
        (GatePolicy(max_calibration_error=0.001), {}, ["calibration error"]),
        (GatePolicy(subgroup_floors=("site:site-0=0.9",)), {"bad_site": 3.0}, ["site:site-0"]),
        (GatePolicy(subgroup_floors=("site:site-9=0.5",)), {}, ["site:site-9"]),
    ],
)
def test_each_planted_fault_is_refused_by_its_own_check(
    store: LocalStore, policy: GatePolicy, faults: dict[str, float], expected: list[str]
) -> None:
    assert refused(promote(store, evaluated(store, 1, **faults), policy, "try")) == expected
    with pytest.raises(BundleError, match="no production"):
        resolve(store, "demo@production")


def test_a_model_no_better_than_production_is_refused_by_patients_and_by_delong(store: LocalStore) -> None:
    promote(store, evaluated(store, 1), GATE, "the first")
    same = promote(store, evaluated(store, 2), GATE, "no better")
    assert refused(same) == ["better than production (patients)", "better than production (DeLong)"]
    worse = promote(store, evaluated(store, 3, bad_site=3.0), GATE, "worse")
    assert set(refused(worse)) >= {"better than production (patients)", "better than production (DeLong)"}
    lenient = GatePolicy(min_gain_over_incumbent=-0.05)
    assert promote(store, evaluated(store, 4, bad_site=1.0), lenient, "a little worse is let pass").promoted


def test_a_better_model_replaces_production_and_rolling_back_is_one_step(store: LocalStore) -> None:
    first = evaluated(store, 1, bad_site=3.0)
    promote(store, first, GatePolicy(min_subgroup=0.5), "the first")
    assert promote(store, evaluated(store, 2), GATE, "better").promoted
    assert rollback(store, "demo", "production", "it broke").version == first.partition("@")[2]


def test_models_judged_on_other_test_versions_are_not_compared(store: LocalStore) -> None:
    promote(store, evaluated(store, 1, bad_site=3.0), GatePolicy(min_subgroup=0.5), "the first")
    other = promote(store, evaluated(store, 2, digest="1" * 64), GATE, "another test")
    assert refused(other) == ["better than production"]


def test_a_forced_promotion_needs_a_reason_which_stays_beside_the_card_with_what_it_overrode(store: LocalStore) -> None:
    reference = evaluated(store, 1, shortcut=3.0)
    with pytest.raises(ConfigError, match="at least 3 words"):
        promote(store, reference, GATE, "try", force="because")
    assert promote(store, reference, GATE, "pilot", force="approved by the tumour board").promoted
    name, version = resolve(store, "demo@production")
    beside = store.read(f"models/{name}/{version}/PROMOTIONS.md").decode()
    assert "**FORCED past the gate**: approved by the tumour board" in beside
    assert "refused by better than shortcuts: colour_histogram" in beside
    (move,) = describe_model(store, reference)["aliases"]["production"]
    assert move["gate"]["why"] == "approved by the tumour board"
    assert len(move["gate"]["overridden"]) == 1


def test_a_model_without_a_report_cannot_be_promoted(store: LocalStore) -> None:
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    with pytest.raises(BundleError, match="historay evaluate judges it"):
        promote(store, f"demo@{version}", GATE, "try")
