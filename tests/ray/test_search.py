"""A search ends as it was meant to on a real cluster, whatever is killed on the way, and leaves nothing behind."""

import os
import signal
import subprocess
import threading
from pathlib import Path

import pytest
import yaml
from processes import COMMAND, environment, historay, kill_all, processes_of, wait_for_an_empty_cluster, wait_until

from historay.data.dataset import Dataset
from historay.errors import ConfigError
from historay.training.run import read_metrics, read_run
from historay.training.search_run import search
from historay.training.search_settings import SearchConfig, trial_run
from historay.training.selection import read_selection
from historay.training.settings import TrainConfig
from historay.training.study import TrialRecord, read_trials, write_trial

# Ray's own deprecation warnings are not ours to mend.
pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("default"),
    pytest.mark.timeout(1800),
]


def write_search(folder: Path, dataset: Dataset, name: str, space: dict[str, object], **changes: object) -> Path:
    train = {"dataset": dataset.reference, "store": dataset.store.uri, "epochs": 3, "batch_size": 64, "input_px": 32}
    (folder / "train.yaml").write_text(yaml.safe_dump({**train, "num_workers": 1, "warmup_epochs": 0.5}))
    settings = {"search": name, "train": str(folder / "train.yaml"), "space": space, "num_finalists": 1, "num_seeds": 1}
    (folder / "search.yaml").write_text(yaml.safe_dump({**settings, **changes}))
    return folder / "search.yaml"


def ended(trials: list[TrialRecord]) -> list[TrialRecord]:
    return [trial for trial in trials if trial.status != "running"]


@pytest.fixture(scope="session")
def searched(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> SearchConfig:
    """A search of trials that learn, one that diverges, and one whose settings contradict each other."""
    folder = tmp_path_factory.mktemp("search")
    space = {"lr": [2e-3, 1e-6, 1e30], "warmup_epochs": [0.5, 4.0]}
    path = write_search(folder, dataset, "mixed", space, max_trials=6, num_finalists=2, seed=3)
    config = SearchConfig.from_yaml(str(path))
    search(config)
    return config


def test_a_failing_trial_is_recorded_with_its_reason_and_the_search_goes_on(dataset: Dataset, searched: SearchConfig) -> None:
    trials = read_trials(dataset.store, searched.search)
    assert {trial.status for trial in trials} >= {"failed", "complete"}
    assert all(trial.status != "running" for trial in trials)
    for trial in trials:
        contradicts, diverges = trial.params["warmup_epochs"] == 4.0, trial.params["lr"] == 1e30
        assert (trial.status == "failed") == (contradicts or diverges), trial
        if contradicts:
            assert "warmup_epochs=4.0 and epochs=3" in str(trial.error)
        elif diverges:
            assert "not finite" in str(trial.error)


def test_the_winner_alone_is_judged_and_its_report_says_among_how_many(dataset: Dataset, searched: SearchConfig) -> None:
    selection = read_selection(dataset.store, searched.search)
    assert selection is not None
    assert selection.test is not None
    judged = [item.key.rpartition("-")[0] for item in dataset.store.list("runs") if "/predictions-test" in item.key]
    assert [key for key in judged if key.startswith("runs/mixed")] == [f"runs/{selection.winner_run}/predictions-test"]
    assert (
        f"CHOSEN AMONG {selection.num_trials} candidates"
        in dataset.store.read(f"runs/{selection.winner_run}/report.html").decode()
    )


def test_the_winning_yaml_is_what_train_takes(dataset: Dataset, searched: SearchConfig) -> None:
    config = TrainConfig.from_yaml(dataset.store.locate(f"searches/{searched.search}/winner.yaml"))
    assert config.run == "mixed-winner"
    assert config.lr == 2e-3
    assert config.dataset == dataset.reference


def test_nothing_is_left_on_the_cluster(searched: SearchConfig) -> None:
    wait_for_an_empty_cluster()


def test_a_concluded_search_is_not_done_again_and_cannot_be_extended(dataset: Dataset, searched: SearchConfig) -> None:
    before = {item.key for item in dataset.store.list()}
    selection = search(searched.model_copy(update={"resume": True}))
    assert selection == read_selection(dataset.store, searched.search)
    assert {item.key for item in dataset.store.list()} == before
    with pytest.raises(ConfigError, match="in the knowledge of the test"):
        search(searched.model_copy(update={"resume": True, "max_trials": 9}))
    with pytest.raises(ConfigError, match="go on with --resume"):
        search(searched)


def test_a_killed_driver_loses_at_most_what_is_in_flight_and_repeats_nothing(dataset: Dataset, tmp_path: Path) -> None:
    space = {"lr": {"low": 1e-4, "high": 1e-2, "log": True}}
    path = write_search(tmp_path, dataset, "killed", space, max_trials=3)
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([COMMAND, "search", path], env=environment(tmp_path), stderr=log)
        wait_until(lambda: len(ended(read_trials(dataset.store, "killed"))) >= 1, 600, "the end of the first trial")
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        kill_all(tmp_path)
    before = ended(read_trials(dataset.store, "killed"))
    assert 1 <= len(before) < 3
    metrics = {trial.run: read_metrics(dataset.store, trial.run) for trial in before}
    done = historay("search", str(path), "--resume", home=tmp_path, cwd=tmp_path, timeout=1200)
    assert done.returncode == 0, done.stderr
    after = {trial.run: trial for trial in read_trials(dataset.store, "killed")}
    assert len(after) == 3
    assert all(after[trial.run] == trial for trial in before)
    assert all(read_metrics(dataset.store, run) == lines for run, lines in metrics.items())


def test_ctrl_c_ends_cleanly_and_says_how_to_go_on(dataset: Dataset, tmp_path: Path) -> None:
    path = write_search(tmp_path, dataset, "stopped", {"lr": {"low": 1e-4, "high": 1e-2}}, max_trials=4)
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([COMMAND, "search", path], env=environment(tmp_path), stderr=log)
        wait_until(lambda: bool(read_trials(dataset.store, "stopped")), 600, "the start of the first trial")
        os.kill(driver.pid, signal.SIGINT)
        assert driver.wait(timeout=300) == 130
    told = (tmp_path / "log").read_text()
    assert "the same command with --resume goes on" in told
    assert "Traceback" not in told
    wait_until(lambda: not processes_of(tmp_path), 600, f"the end of {processes_of(tmp_path)}")
    assert dataset.store.exists("searches/stopped/search.html")


def test_finalists_stop_when_the_time_is_up_or_at_ctrl_c_and_leave_nothing_on_the_cluster(
    dataset: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_search(tmp_path, dataset, "late", {"lr": [1e-3, 2e-3]}, max_trials=1, final_epochs=500)
    config, run = SearchConfig.from_yaml(str(path)), trial_run("late", {"lr": 1e-3})
    known = {"number": 0, "run": run, "params": {"lr": 1e-3}, "curve": (0.5, 0.6, 0.7)}
    write_trial(dataset.store, "late", TrialRecord.model_validate({**known, "status": "complete", "started": "earlier"}))

    def interrupt() -> None:
        wait_until(lambda: bool(read_metrics(dataset.store, f"{run}-seed1")), 600, "the finalist's first epoch")
        os.kill(os.getpid(), signal.SIGINT)

    with caplog.at_level("INFO", logger="historay"):
        assert search(config.model_copy(update={"max_hours": 1e-9})) is None
        assert not dataset.store.exists(f"runs/{run}-seed1/run.json")
        threading.Thread(target=interrupt, daemon=True).start()
        assert search(config.model_copy(update={"resume": True})) is None
    assert caplog.text.count("the same command with --resume goes on") == 2
    assert dataset.store.exists("searches/late/search.html")
    assert read_run(dataset.store, f"{run}-seed1").status == "running"
    wait_for_an_empty_cluster()


def test_folds_of_patients_leave_a_prediction_of_every_tile_by_a_model_that_never_saw_it(
    dataset: Dataset, tmp_path: Path
) -> None:
    from historay.data.dataset import open_dataset
    from historay.evaluation.predictions import Predictions

    path = write_search(tmp_path, dataset, "folded", {"lr": [1e-3, 2e-3]}, max_trials=1, folds=2)
    selection = search(SearchConfig.from_yaml(str(path)))
    assert selection is not None
    (finalist,) = selection.finalists
    assert len(finalist.values) == 2
    key = f"searches/folded/out-of-fold/{finalist.trial}.parquet"
    pooled = Predictions.from_parquet(dataset.store.read(key))
    manifest = dataset.manifest(["tile_id", "split"]).to_pandas()
    assert set(pooled.tile_ids) == set(manifest.loc[manifest["split"] != "test", "tile_id"])
    for run in finalist.runs:
        fold = open_dataset(dataset.store, read_run(dataset.store, run).dataset)
        assert fold.record.leaks == ()
        assert fold.record.num_tiles["test"] == 0
    assert read_run(dataset.store, selection.winner_run).dataset == dataset.reference
