"""The scripts behind `make kind` and `make kind-down`. Without Docker they are only read here: nothing below runs them."""

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "k8s" / "kind").glob("*.sh"))


def test_shellcheck_finds_nothing() -> None:
    program = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run(
        [program, "--enable=all", "--exclude=SC2250,SC2310,SC2312", *SCRIPTS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_every_path_that_they_name_is_there() -> None:
    for script in SCRIPTS:
        for path in re.findall(r"\b(?:k8s|helm)/[\w./-]+", script.read_text()):
            assert (ROOT / path).exists(), f"{script.name}: {path}"


def test_nothing_is_asked_of_any_other_cluster_than_kinds() -> None:
    for line in (ROOT / "k8s" / "kind" / "up.sh").read_text().splitlines():
        if re.match(r"\s*(kubectl|helm)\s", line):
            assert "context" in line, line


def test_they_speak_of_the_cluster_that_the_configuration_names() -> None:
    name = yaml.safe_load((ROOT / "k8s" / "kind" / "cluster.yaml").read_text())["name"]
    assert all(f"CLUSTER={name} " in script.read_text() for script in SCRIPTS)
    assert all(" BUILDER=historay" in script.read_text() for script in SCRIPTS)


def test_the_image_that_is_loaded_is_the_one_that_jobs_and_endpoint_ask_for() -> None:
    assert "IMAGE=historay:kind" in (ROOT / "k8s" / "kind" / "up.sh").read_text()
    values = yaml.safe_load((ROOT / "helm" / "historay" / "ci" / "kind-values.yaml").read_text())
    assert (values["image"]["tag"], values["image"]["pullPolicy"]) == ("kind", "Never")
    patches = yaml.safe_load((ROOT / "k8s" / "overlays" / "kind" / "jobs" / "small.yaml").read_text())
    assert [patch["value"] for patch in patches if patch["path"].endswith("/image")] == ["historay:kind"] * 3
