"""Two reports in one table, in words: patients, calibration, shortcuts, abstention, subgroups, robustness and findings."""

from collections.abc import Mapping, Sequence

from historay.evaluation.conformal import promised_coverage
from historay.evaluation.intervals import Estimate
from historay.evaluation.report import Report
from historay.evaluation.shortcut import FAMILIES
from historay.evaluation.subgroups import SubgroupColumn

Rows = dict[str, tuple[str, ...]]  # what the first, the second report says, by what it is about
Words = dict[str, str]
NOT_THERE = "not in this report"


def side_by_side(reports: Sequence[Report], titles: Mapping[str, str]) -> dict[str, Rows]:
    """Returns rows by section, in the order of the reports; a row that only one report has says so of the other."""
    found = [_sections(report, titles) for report in reports]
    return {
        section: {
            name: tuple(one[section].get(name, NOT_THERE) for one in found)
            for name in dict.fromkeys(name for one in found for name in one[section])
        }
        for section in found[0]
    }


def _sections(report: Report, titles: Mapping[str, str]) -> dict[str, Words]:
    return {
        "Patients and slides": _pooled(report, titles),
        "Calibration": _calibration(report, titles),
        "Shortcuts": _shortcuts(report),
        "Abstention": _abstention(report, titles),
        "Subgroups": _subgroups(report),
        "Robustness and error slices": _weaknesses(report),
        "Findings": {
            level: "; ".join(finding.text for finding in report.findings if finding.level == level) or "none"
            for level in ("alarm", "caution")
        },
    }


def _pooled(report: Report, titles: Mapping[str, str]) -> Words:
    found: Words = {}
    for level in report.pooled:
        found |= {f"{titles[name]} by {level.unit}": figure.in_words() for name, figure in level.figures.items()}
        found[f"tiles of a {level.unit} are pooled by"] = level.rule.method
    return found


def _calibration(report: Report, titles: Mapping[str, str]) -> Words:
    section = report.calibration
    found = {"map fitted on validation": section.choice.calibration.in_words()}
    for name in section.before.figures:
        found[f"{titles[name]}: by the network"] = section.before.figures[name].in_words()
        found[f"{titles[name]}: calibrated"] = section.after.figures[name].in_words()
    return found | {"slope (1 is right)": section.after.line.slope.in_words(), "beyond chance": section.after.test.sentence}


def _shortcuts(report: Report) -> Words:
    section = report.shortcuts
    gains = {f"gain over {FAMILIES[name].words}": gain.in_words() for name, gain in section.gains.items()}
    return {"verdict": section.verdict.sentence} | gains


def _abstention(report: Report, titles: Mapping[str, str]) -> Words:
    section = report.abstention
    rule, found = section.rules[section.shipped], section.sets[section.shipped]
    held = {f"coverage of {group} tiles": each.in_words() for group, each in promised_coverage(rule, found).items()}
    return {
        "prediction sets": f"{section.shipped}, {1 - rule.alpha:g} promised",
        **held,
        titles["abstained"]: found["abstained"].in_words(),
        "answered where confident": section.answered["coverage"].in_words(),
        titles["risk"]: section.answered["risk"].in_words(),
        titles["aurc"]: section.answered["aurc"].in_words(),
    }


def _subgroups(report: Report) -> Words:
    found: Words = {}
    for column in report.subgroups.columns:
        found[f"worst {column.column}"] = _worst(column)
        found[f"shown to be worse, by {column.column}"] = ", ".join(column.worse) or "none"
    patients = report.subgroups.patients
    if patients is not None and patients.worst is not None:
        found["accuracy of the worst patient"] = patients.worst.in_words()
    return found


def _worst(column: SubgroupColumn) -> str:
    if column.worst is None:
        return "fewer than two groups"
    group = column.groups[0]
    figure: Estimate = getattr(group, column.criterion)
    return f"{group.name}: {column.criterion} {figure.in_words()}, to the rest {group.gap.in_words()}"


def _weaknesses(report: Report) -> Words:
    robustness = report.robustness
    weak = NOT_THERE if robustness is None else "; ".join(robustness.weaknesses()) or "no mild spoiling costs 0.05 of ROC-AUC"
    return {"mild spoiling": weak, "error slices": f"{len(report.slices.slices)} of {report.slices.num_tested} clusters"}
