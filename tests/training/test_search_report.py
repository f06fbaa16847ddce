"""search.html says everything of a search, in one file, at any stage of it."""

import io
import re
from dataclasses import replace

import numpy as np
import pytest

from historay.training.search_plots import unit_positions
from historay.training.search_report import importance, render_search
from historay.training.search_settings import parse_space, to_yaml
from historay.training.search_view import Progress, table
from historay.training.selection import Finalist, Selection, rank, score
from historay.training.settings import TrainConfig
from historay.training.study import SearchRecord, TrialRecord, base_settings

SPACE = parse_space(
    {"lr": {"low": 1e-4, "high": 1e-1, "log": True}, "dropout": {"low": 0, "high": 0.5}, "optimizer": ["sgd", "adamw"]}
)
BASE = TrainConfig(run="s", dataset="d@1", num_workers=1)
RECORD = SearchRecord(
    search="pcam", space={}, base=base_settings(BASE, "d@1"), monitor="val_auc", seed=0, attempt="a", created="2026-01-01"
)


def trials(num: int = 40) -> list[TrialRecord]:
    """Trials whose value only the learning rate decides."""
    rng = np.random.default_rng(0)
    made = []
    for number in range(num):
        lr, dropout = float(10 ** rng.uniform(-4, -1)), float(rng.uniform(0, 0.5))
        value = 0.9 - 0.1 * (np.log10(lr) + 2.5) ** 2
        params = {"lr": lr, "dropout": dropout, "optimizer": ["sgd", "adamw"][number % 2]}
        status = "stopped" if number % 3 == 0 else "complete"
        made.append(TrialRecord(number=number, run=f"r{number}", params=params, status=status, curve=(0.5, value), started="-"))  # type: ignore[arg-type]
    failed = made[0].model_copy(update={"number": num, "run": "rf", "status": "failed", "error": "loss is <nan>", "curve": ()})
    return [*made, failed]


def finalist(number: int, values: tuple[float, ...], searched: float = 0.9) -> Finalist:
    mean, low, high = score(values)
    runs = tuple(f"r{number}-seed{seed + 1}" for seed in range(len(values)))
    return Finalist(
        trial=f"r{number}", number=number, searched=searched, runs=runs, values=values, failed={}, mean=mean, low=low, high=high
    )


SELECTION = Selection(
    monitor="val_auc",
    num_trials=40,
    repeats="seeds",
    finalists=(finalist(3, (0.90, 0.88)), finalist(5, (0.87, 0.86))),
    winner="r3",
    winner_run="r3-seed1",
    test="pcam@abc",
    report="report.html",
    figures={"roc_auc": (0.87, 0.85, 0.89)},
)


def test_the_page_loads_nothing_and_shows_every_trial_the_finalists_and_the_test() -> None:
    winner = to_yaml(BASE, "historay train winner.yaml")
    page = render_search(RECORD, SPACE, trials(), SELECTION, winner)
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page.replace('xlink:href="#', "")), "nothing is loaded from outside"
    assert "<script" not in page
    assert all(f"<code>{trial.run}</code>" in page for trial in trials())
    assert "loss is &lt;nan&gt;" in page
    for shown in ("0.8900 (", "3 (winner)", "0.870 (0.850 to 0.890)", "2 of 40 candidates", "pcam@abc", "dataset: d@1"):
        assert shown in page, shown
    assert page.count("<svg") == 4
    assert "mathdefault" not in page, "no TeX in the axes"


@pytest.mark.parametrize("num", [0, 1, 3])
def test_a_page_of_few_trials_has_no_importance_and_says_what_is_not_there_yet(num: int) -> None:
    page = render_search(RECORD, SPACE, trials()[:num], None, "")
    assert page.count("<svg") == (3 if num else 0)
    assert "Not chosen yet" in page


def test_the_same_trials_give_the_same_bytes() -> None:
    assert render_search(RECORD, SPACE, trials(), None, "") == render_search(RECORD, SPACE, trials(), None, "")


def test_fanova_finds_the_only_setting_that_matters() -> None:
    shares = importance(RECORD, SPACE, trials())
    assert next(iter(shares)) == "lr"
    assert shares["lr"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_a_log_range_is_drawn_on_its_own_scale_and_choices_evenly() -> None:
    assert unit_positions([1e-4, 10**-2.5, 1e-1], SPACE["lr"]) == pytest.approx([0, 0.5, 1])
    assert unit_positions([0.0, 0.25, 0.5], SPACE["dropout"]) == pytest.approx([0, 0.5, 1])
    assert unit_positions(["sgd", "adamw"], SPACE["optimizer"]) == pytest.approx([0, 1])


def test_the_interval_of_a_mean_is_students_and_one_run_has_none() -> None:
    import scipy.stats

    values = (0.90, 0.88, 0.91)
    mean, low, high = score(values)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((np.mean(values), expected.low, expected.high))
    assert score((0.9,)) == (0.9, None, None)
    assert score(()) == (None, None, None)


def test_finalists_are_ranked_by_their_mean_and_not_by_their_luckiest_run() -> None:
    lucky, steady, dead = finalist(1, (0.99, 0.70)), finalist(2, (0.88, 0.87)), finalist(3, ())
    assert [one.number for one in rank([dead, lucky, steady], "val_auc")] == [2, 1, 3]
    assert [one.number for one in rank([dead, lucky, steady], "val_loss")] == [1, 2, 3]


def test_the_live_table_shows_the_best_first_then_the_running_and_what_is_left() -> None:
    from rich.console import Console

    progress = Progress("pcam", "val_auc", max_trials=60, concurrent=2, deadline=10_000.0)
    ended = [trial.model_copy(update={"seconds": 10.0}) for trial in trials()]
    running = ended[0].model_copy(update={"number": 50, "run": "now", "status": "running", "curve": (0.61,)})
    progress.trials = {trial.run: trial for trial in [*ended, running]}
    assert progress.left_s(0.0) == pytest.approx((60 - 41) * 10 / 2)
    assert progress.left_s(9_990.0) == pytest.approx(10.0)
    repeated = progress.trials | {
        ended[0].run: ended[0].model_copy(update={"times": 20})
    }  # a small space: Optuna repeats itself
    assert replace(progress, trials=repeated).left_s(0.0) == pytest.approx(0.0)
    console = Console(width=160, file=io.StringIO())
    with console.capture() as captured:
        console.print(table(progress, 0.0))
    lines = captured.get().splitlines()
    assert "41 of 60 trials, 1:35 left" in lines[0]
    rows = [line for line in lines if "lr=" in line]
    assert "best so far" in rows[0]
    assert "running" in rows[1]
    assert "0.6100" in rows[1]
