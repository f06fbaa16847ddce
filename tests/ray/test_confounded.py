"""A data set whose sites tell the class goes the whole way, and the report says so without being told."""

from html import unescape
from pathlib import Path

import pytest

from historay.data.ingest import IngestConfig, ingest
from historay.data.synthetic import SyntheticConfig, write_synthetic
from historay.evaluation.report import Report
from historay.storage import open_store
from historay.training.evaluate import EvaluateConfig, evaluate_run
from historay.training.run import read_test_predictions
from historay.training.settings import TrainConfig
from historay.training.train import train

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("default")]


def test_a_confounded_set_raises_the_alarm_of_the_data_and_of_the_shortcut(ray_cluster: None, tmp_path: Path) -> None:
    tiles, store = tmp_path / "tiles", str(tmp_path / "store")
    write_synthetic(SyntheticConfig(out=str(tiles), num_tiles=480, num_patients=24, tile_px=48, confounded=True, defects=False))
    dataset = ingest(IngestConfig(name="confounded", source=str(tiles / "manifest.csv"), store=store))
    train(TrainConfig(run="confounded", dataset=dataset.reference, store=store, epochs=2, batch_size=64, warmup_epochs=0.5))
    judged = evaluate_run(EvaluateConfig(run="confounded", store=store, num_resamples=200, robustness_tiles=0))

    alarms = [finding.text for finding in judged.findings if finding.level == "alarm"]
    assert {text.split(":")[0] for text in alarms} >= {"CONFOUNDED", "SHORTCUT"}
    kept = open_store(store)
    report = Report.model_validate_json(kept.read("runs/confounded/report.json"))
    assert report.shortcuts.verdict.verdict == "alarm"
    page = unescape(kept.read("runs/confounded/report.html").decode())
    assert all(text in page for text in (*alarms, report.shortcuts.verdict.sentence))
    name, version = judged.reference.split("@")
    assert len(read_test_predictions(kept, name, version).labels) == sum(report.num_tiles.values())
