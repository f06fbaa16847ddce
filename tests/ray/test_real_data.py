"""The named runs of jobs/configs on real tiles, shortened: PCam up to the served answer, CRC-VAL-HE-7K to its report."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from processes import COMMAND, environment, free_port, historay, kill_all, wait_until

from historay.serving.client import Client
from historay.storage import open_store

# A starved machine is no failure: each step alone may take ten minutes.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

JOBS = Path(__file__).parents[2] / "jobs"
CONFIGS = JOBS / "configs"
QUICK = ["--num-resamples", "200", "--robustness-tiles", "16"]


def run(home: Path, *arguments: str) -> None:
    done = historay(*arguments, home=home, cwd=home, timeout=900)
    assert done.returncode == 0, (arguments, done.stderr)


def test_pcam_trains_a_resnet18_with_two_workers_and_is_served_as_it_was_evaluated(pcam_source: Path, tmp_path: Path) -> None:
    few = pd.read_csv(pcam_source / "manifest.csv", dtype=str)
    kept = few["rank"].astype(int) < few["split"].map({"train": 300, "valid": 60, "test": 60})
    few[kept].to_csv(pcam_source / "few.csv", index=False)
    port = free_port()
    try:
        run(tmp_path, "ingest", f"{CONFIGS}/pcam-resnet18-ingest.yaml", "--source", f"{pcam_source}/few.csv")
        short = ["--epochs", "2", "--input-px", "64", "--warmup-epochs", "0.5"]
        run(tmp_path, "train", f"{CONFIGS}/pcam-resnet18-train.yaml", *short)
        run(
            tmp_path, "evaluate", f"{CONFIGS}/pcam-resnet18-evaluate.yaml", "--num-resamples", "200", "--robustness-tiles", "32"
        )
        report = json.loads(open_store(str(tmp_path / "historay-store")).read("runs/pcam-resnet18/report.json"))
        assert report["num_tiles"] == {"normal": 60, "tumor": 60}
        assert report["headline"]["roc_auc"]["value"] > 0.5
        command = [COMMAND, "serve", "--model", "pcam-resnet18", "--port", str(port)]
        url = f"http://127.0.0.1:{port}"
        with (tmp_path / "serve.log").open("wb") as log, Client(url, num_retries=0) as client:
            server = subprocess.Popen(command, env=environment(tmp_path), cwd=tmp_path, stderr=log)
            wait_until(client.is_ready, 600, "the endpoint's start")
            check = [sys.executable, JOBS / "check_served.py", "historay-store", url]
            checked = subprocess.run(check, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
            server.terminate()
            assert server.wait(timeout=300) == 0
        assert checked.returncode == 0, checked
        assert "served and evaluated probabilities differ by" in checked.stdout
    finally:
        kill_all(tmp_path)


def test_seven_tissue_classes_in_folders_go_the_whole_way(shared_data: Path, tmp_path: Path) -> None:
    try:
        run(tmp_path, "ingest", f"{CONFIGS}/crc-val-he-7k-ingest.yaml", "--source", f"{shared_data}/crc-val-he-7k")
        run(tmp_path, "train", f"{CONFIGS}/crc-val-he-7k-train.yaml", "--epochs", "3")
        run(tmp_path, "evaluate", f"{CONFIGS}/crc-val-he-7k-evaluate.yaml", *QUICK)
        report = json.loads(open_store(str(tmp_path / "historay-store")).read("runs/crc-val/report.json"))
        assert report["classes"] == ["ADI", "LYM", "MUC", "MUS", "NORM", "STR", "TUM"]
        assert report["operating_point"] is None
        assert sum(report["num_tiles"].values()) == 14
        assert report["shortcuts"]["verdict"]["verdict"] == "alarm", report["shortcuts"]["verdict"]
    finally:
        kill_all(tmp_path)
