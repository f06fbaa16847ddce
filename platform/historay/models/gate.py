"""The promotion gate: bounds declared in YAML, held against what was measured; what fails is refused with the reason.

Pure: plain values in, a table of checks out. A fact that nobody measured fails its check.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from historay.config import Config

Metric = Literal[
    "roc_auc", "average_precision", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "macro_f1", "macro_recall"
]


class GatePolicy(Config):
    """What a model must have shown on its untouched test split before it may become production."""

    metric: Metric = "roc_auc"
    """Headline figure of the report that floors and comparisons are about; of each, more is better."""
    accept_leaks: tuple[str, ...] = ()
    """Kinds of leak with which a model may still be promoted."""
    min_lower_bound: float = Field(default=0.8, ge=0, le=1)
    """Floor of the lower end of the figure's interval."""
    max_calibration_error: float = Field(default=0.1, ge=0, le=1)
    """Largest expected calibration error."""
    min_gain_over_shortcut: float = Field(default=0.0, ge=-1, le=1)
    """The lower end of the gain over the best shortcut baseline must be above this."""
    min_gain_over_incumbent: float = Field(default=0.0, ge=-1, le=1)
    """The lower end of the paired difference to production must be above this; below 0 lets a little worse one pass."""
    min_subgroup: float = Field(default=0.7, ge=0, le=1)
    """Floor of the figure in each subgroup that has no floor of its own."""
    subgroup_floors: tuple[str, ...] = ()
    """Floors of their own, each as ``column:group=floor``, such as ``site:north=0.75``."""
    min_subgroup_tiles: int = Field(default=50, ge=1)
    """Subgroups with fewer tiles tell too little to be judged."""

    @model_validator(mode="after")
    def _check_floors(self) -> "GatePolicy":
        for text in self.subgroup_floors:
            try:
                _parse_floor(text)
            except ValueError:
                raise ValueError(f"subgroup_floors: {text!r}: expected column:group=floor with a floor from 0 to 1") from None
        return self


class Interval(NamedTuple):
    """A figure with its 95 % interval; None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None


class Incumbent(NamedTuple):
    """How a model compares with the one in production, as candidate less incumbent on the same test tiles."""

    version: str
    dataset_digest: str  # of the test that the incumbent was judged on
    difference: Interval | None  # paired bootstrap over patients; None: not judged on the same tiles
    delong: Interval | None  # the same for ROC-AUC over tiles; None: there is no such test of the metric


class Subgroup(NamedTuple):
    """A figure within the tiles of one group."""

    num_tiles: int
    value: float | None


class GateFacts(NamedTuple):
    """All that the gate looks at."""

    version: str
    dataset_digest: str
    leaks: Sequence[str]  # kinds that the model's data set has
    figure: Interval
    calibration_error: float | None
    gains: Mapping[str, Interval]  # over each shortcut baseline
    subgroups: Mapping[str, Subgroup]  # by ``column:group``
    incumbent: Incumbent | None  # None: nothing is in production


class Check(NamedTuple):
    """One line of the table."""

    name: str
    passed: bool
    found: str
    wanted: str


def evaluate_gate(policy: GatePolicy, facts: GateFacts) -> list[Check]:
    """Returns every check, passed or not, in a fixed order."""
    return [
        _leaks(policy, facts),
        _floor(policy, facts),
        _shortcuts(policy, facts),
        _calibration(policy, facts),
        *_incumbent(policy, facts),
        *_subgroups(policy, facts),
    ]


def refusals(checks: Sequence[Check]) -> list[str]:
    """Returns one sentence per check that failed."""
    return [f"{check.name}: {check.found}; wanted {check.wanted}" for check in checks if not check.passed]


def in_words(checks: Sequence[Check]) -> tuple[str, ...]:
    """Returns one sentence per check, for the record."""
    return tuple(
        f"{'passed' if check.passed else 'REFUSED'} {check.name}: {check.found}; wanted {check.wanted}" for check in checks
    )


def own_bounds(policy: Mapping[str, Any]) -> str:
    """Names the settings in which a policy that was recorded differs from the defaults; empty if in none."""
    default = GatePolicy().model_dump(mode="json")
    return ", ".join(f"{name}={value!r}" for name, value in policy.items() if value != default.get(name))


def _leaks(policy: GatePolicy, facts: GateFacts) -> Check:
    kinds = [kind for kind in facts.leaks if kind not in policy.accept_leaks]
    wanted = f"none but {', '.join(policy.accept_leaks)}" if policy.accept_leaks else "none"
    return Check("no unaccepted leak", not kinds, ", ".join(kinds) or "none", wanted)


def _floor(policy: GatePolicy, facts: GateFacts) -> Check:
    low = facts.figure.low
    wanted = f"lower end at least {policy.min_lower_bound:.3f}"
    return Check(f"{policy.metric} on test", low is not None and low >= policy.min_lower_bound, _shown(facts.figure), wanted)


def _shortcuts(policy: GatePolicy, facts: GateFacts) -> Check:
    """The strongest baseline is the one over which least is gained; one that could not be compared fails for all."""
    wanted = f"lower end of the gain above {policy.min_gain_over_shortcut:.3f}"
    unknown = [name for name, gain in facts.gains.items() if gain.low is None]
    if not facts.gains or unknown:
        return Check("better than shortcuts", False, f"not measured: {', '.join(unknown) or 'any baseline'}", wanted)
    name, gain = min(facts.gains.items(), key=lambda entry: _low(entry[1]))
    return Check("better than shortcuts", _low(gain) > policy.min_gain_over_shortcut, f"{name}: {_shown(gain)}", wanted)


def _calibration(policy: GatePolicy, facts: GateFacts) -> Check:
    error, most = facts.calibration_error, policy.max_calibration_error
    found = "not measured" if error is None else f"{error:.3f}"
    return Check("calibration error", error is not None and error <= most, found, f"at most {most:.3f}")


def _incumbent(policy: GatePolicy, facts: GateFacts) -> list[Check]:
    incumbent, name = facts.incumbent, "better than production"
    if incumbent is None or incumbent.version == facts.version:
        return [Check(name, True, "nothing in production" if incumbent is None else "it is production", "nothing to compare")]
    wanted = f"lower end of the difference above {policy.min_gain_over_incumbent:.3f}"
    if incumbent.dataset_digest != facts.dataset_digest or incumbent.difference is None:
        found = f"{incumbent.version} was judged on other test tiles; historay evaluate --dataset judges on the same"
        return [Check(name, False, found, wanted)]
    compared = {f"{name} (patients)": incumbent.difference}
    if incumbent.delong is not None:
        compared[f"{name} (DeLong)"] = incumbent.delong
    bound = policy.min_gain_over_incumbent
    return [
        Check(title, found.low is not None and found.low > bound, _shown(found), wanted) for title, found in compared.items()
    ]


def _subgroups(policy: GatePolicy, facts: GateFacts) -> list[Check]:
    floors = dict(map(_parse_floor, policy.subgroup_floors))
    checks = []
    for group, found in facts.subgroups.items():
        floor, enough = floors.get(group, policy.min_subgroup), found.num_tiles >= policy.min_subgroup_tiles
        # A group with a floor of its own was asked for by name, so that too few tiles are no excuse.
        judged = enough or group in floors
        passed = not judged or (found.value is not None and found.value >= floor)
        value = "undefined" if found.value is None else f"{found.value:.3f}"
        wanted = f"at least {floor:.3f}" if judged else f"not judged below {policy.min_subgroup_tiles} tiles"
        checks.append(Check(group, passed, f"{value} on {found.num_tiles} tiles", wanted))
    absent = [
        Check(group, False, "no such tiles in the test", f"at least {floor:.3f}")
        for group, floor in floors.items()
        if group not in facts.subgroups
    ]
    return checks + absent


def _parse_floor(text: str) -> tuple[str, float]:
    group, equals, floor = text.rpartition("=")
    if not equals or ":" not in group or not 0 <= float(floor) <= 1:
        raise ValueError(text)
    return group, float(floor)


def _low(interval: Interval) -> float:
    assert interval.low is not None
    return interval.low


def _shown(interval: Interval) -> str:
    if interval.value is None:
        return "undefined"
    if interval.low is None or interval.high is None:
        return f"{interval.value:.3f}, no interval"
    return f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
