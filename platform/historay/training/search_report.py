"""search.html: a search on one page that loads nothing, from its records alone."""

import optuna
from jinja2 import Environment, PackageLoader, StrictUndefined
from optuna.distributions import BaseDistribution
from optuna.importance import FanovaImportanceEvaluator, get_param_importances

from historay.evaluation.report import DISCLAIMER
from historay.training.search_plots import history_svg, importance_svg, parallel_svg, slices_svg
from historay.training.selection import Selection
from historay.training.study import SearchRecord, TrialRecord, direction, known_trials, ranked

_MIN_TRIALS = 4  # a forest on fewer points says nothing


def render_search(
    record: SearchRecord,
    space: dict[str, BaseDistribution],
    trials: list[TrialRecord],
    selection: Selection | None,
    winner_yaml: str,
) -> str:
    """Renders the page, of a search at any stage."""
    environment = Environment(
        loader=PackageLoader("historay.training"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("search.html").render(
        record=record,
        space=space,
        trials=trials,
        best=next(iter(ranked(trials, record.monitor)), None),
        counts={
            status: sum(trial.status == status for trial in trials) for status in ("complete", "stopped", "failed", "running")
        },
        plots=_plots(record, space, trials),
        selection=selection,
        winner_yaml=winner_yaml,
        disclaimer=DISCLAIMER,
    )


def importance(record: SearchRecord, space: dict[str, BaseDistribution], trials: list[TrialRecord]) -> dict[str, float]:
    """Returns each setting's share of the value's variance by fANOVA (Hutter et al. 2014), the largest first.

    Empty with fewer than four values or where all are the same: there is no variance to share out.
    """
    values = [trial.value for trial in ranked(trials, record.monitor)]
    if len(values) < _MIN_TRIALS or len(set(values)) == 1:
        return {}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if direction(record.monitor) == "min" else "maximize")
    study.add_trials(known_trials(trials, space))
    found = get_param_importances(study, evaluator=FanovaImportanceEvaluator(seed=record.seed))
    return {name: float(share) for name, share in found.items()}


def _plots(record: SearchRecord, space: dict[str, BaseDistribution], trials: list[TrialRecord]) -> dict[str, str]:
    if not ranked(trials, record.monitor):
        return {}
    shares = importance(record, space, trials)
    drawn = {
        "Optimisation history": history_svg(trials, record.monitor),
        "Parallel coordinates": parallel_svg(trials, space, record.monitor),
        "Slices": slices_svg(trials, space, record.monitor),
    }
    return drawn | ({"Importance": importance_svg(shares)} if shares else {})
