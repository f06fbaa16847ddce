"""The gate lets a model through that has shown everything, and refuses each lack by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from historay.errors import ConfigError
from historay.models.gate import GateFacts, GatePolicy, Incumbent, Interval, Subgroup, evaluate_gate, refusals

GOOD = GateFacts(
    version="new",
    dataset_digest="d1",
    leaks=(),
    figure=Interval(0.92, 0.90, 0.94),
    calibration_error=0.03,
    gains={"colour": Interval(0.20, 0.15, 0.25), "jpeg": Interval(0.30, 0.25, 0.35)},
    subgroups={"site:north": Subgroup(400, 0.91), "site:south": Subgroup(300, 0.85), "site:tiny": Subgroup(7, 0.40)},
    incumbent=Incumbent("old", "d1", Interval(0.02, 0.01, 0.03), Interval(0.02, 0.005, 0.035)),
)


def failed(facts: GateFacts, policy: GatePolicy | None = None) -> list[str]:
    return [check.name for check in evaluate_gate(policy or GatePolicy(), facts) if not check.passed]


def test_a_model_that_has_shown_everything_passes_every_check() -> None:
    checks = evaluate_gate(GatePolicy(), GOOD)
    assert refusals(checks) == []
    assert [check.name for check in checks] == [
        "no unaccepted leak",
        "roc_auc on test",
        "better than shortcuts",
        "calibration error",
        "better than production (patients)",
        "better than production (DeLong)",
        "site:north",
        "site:south",
        "site:tiny",
    ]


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"leaks": ("near-duplicate",)}, ["no unaccepted leak"]),
        ({"figure": Interval(0.85, 0.79, 0.91)}, ["roc_auc on test"]),
        ({"figure": Interval(0.85, None, None)}, ["roc_auc on test"]),
        ({"calibration_error": 0.11}, ["calibration error"]),
        ({"calibration_error": None}, ["calibration error"]),
        ({"gains": {"colour": Interval(0.2, 0.1, 0.3), "jpeg": Interval(0.01, -0.01, 0.03)}}, ["better than shortcuts"]),
        ({"gains": {"colour": Interval(0.2, 0.1, 0.3), "jpeg": Interval(None, None, None)}}, ["better than shortcuts"]),
        ({"gains": {}}, ["better than shortcuts"]),
        ({"subgroups": {"site:north": Subgroup(400, 0.69)}}, ["site:north"]),
        ({"subgroups": {"site:north": Subgroup(400, None)}}, ["site:north"]),
        (
            {"incumbent": GOOD.incumbent._replace(difference=Interval(0.01, -0.01, 0.03))},  # type: ignore[union-attr]
            ["better than production (patients)"],
        ),
        (
            {"incumbent": GOOD.incumbent._replace(delong=Interval(0.01, -0.01, 0.03))},  # type: ignore[union-attr]
            ["better than production (DeLong)"],
        ),
        ({"incumbent": GOOD.incumbent._replace(dataset_digest="d2")}, ["better than production"]),  # type: ignore[union-attr]
        ({"incumbent": GOOD.incumbent._replace(difference=None)}, ["better than production"]),  # type: ignore[union-attr]
    ],
)
def test_each_lack_is_refused_by_its_own_check_and_by_no_other(change: dict[str, object], refused: list[str]) -> None:
    assert failed(GOOD._replace(**change)) == refused


def test_a_refusal_says_what_was_found_and_what_was_wanted() -> None:
    checks = evaluate_gate(GatePolicy(min_lower_bound=0.95), GOOD)
    assert refusals(checks) == ["roc_auc on test: 0.920 (0.900 to 0.940); wanted lower end at least 0.950"]


def test_the_first_model_has_nothing_to_beat_and_the_present_one_nothing_to_prove() -> None:
    assert failed(GOOD._replace(incumbent=None)) == []
    assert failed(GOOD._replace(incumbent=Incumbent("new", "d0", None, None))) == []


def test_a_leak_accepted_in_the_policy_passes_and_any_other_does_not() -> None:
    policy = GatePolicy(accept_leaks=("near-duplicate",))
    assert failed(GOOD._replace(leaks=("near-duplicate",)), policy) == []
    assert failed(GOOD._replace(leaks=("near-duplicate", "patient")), policy) == ["no unaccepted leak"]


def test_a_group_with_a_floor_of_its_own_is_judged_however_small_and_missed_when_absent() -> None:
    assert failed(GOOD, GatePolicy(subgroup_floors=("site:tiny=0.5",))) == ["site:tiny"]
    assert failed(GOOD, GatePolicy(subgroup_floors=("site:south=0.86",))) == ["site:south"]
    assert failed(GOOD, GatePolicy(subgroup_floors=("site:west=0.5",))) == ["site:west"]


@pytest.mark.parametrize("text", ["north", "north=0.5", "site:north=high", "site:north=1.5"])
def test_a_floor_that_cannot_be_read_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigError, match=f"{text}.*expected column:group=floor"):
        GatePolicy.from_mapping({"subgroup_floors": (text,)}, "gate.yaml")


@pytest.mark.parametrize("metric", ["brier", "nll", "ece_mass", "risk", "aurc", "abstained"])
def test_a_figure_of_which_less_is_better_is_refused_as_the_metric(metric: str) -> None:
    with pytest.raises(ConfigError, match=f"{metric}.*roc_auc"):
        GatePolicy.from_mapping({"metric": metric}, "gate.yaml")


@given(low=st.floats(0, 1), floor=st.floats(0, 1), stricter=st.floats(0, 1))
def test_a_stricter_floor_never_lets_through_what_a_laxer_one_refuses(low: float, floor: float, stricter: float) -> None:
    facts = GOOD._replace(figure=Interval(1.0, low, 1.0))
    lax, strict = min(floor, stricter), max(floor, stricter)
    assert set(failed(facts, GatePolicy(min_lower_bound=lax))) <= set(failed(facts, GatePolicy(min_lower_bound=strict)))
