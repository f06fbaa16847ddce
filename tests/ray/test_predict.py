"""A batch prediction on a real Ray cluster: exactly one row per image, whatever dies and however often it is started."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml
from bundles import PROBES, SPEC, network
from images import encoded, png_of_claimed_size, texture
from processes import COMMAND, environment, kill_all, processes_of, wait_until

from historay.data.dataset import Dataset
from historay.data.decode import Limits
from historay.errors import BundleError, ConfigError
from historay.models.bundle import load_bundle, save_bundle
from historay.models.runtime import make_runtime
from historay.serving.predict import predict
from historay.serving.predict_settings import PredictConfig
from historay.serving.predictor import Predictor
from historay.serving.schema import ImagePrediction
from historay.storage import LocalStore

# Ray's own deprecation warnings are not ours to mend.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]

NUM_TILES = 300
TIMES = 5  # the folder is given, where a prediction must last
HOSTILE = {
    "0050.jpg": (b"no image at all", "not-an-image"),
    "0100.jpg": (b"", "empty"),
    "0150.png": (png_of_claimed_size(20_000, 20_000), "too-many-pixels"),
    "0200.jpg": (encoded(texture(0))[:500], "truncated"),
    "0299.jpg": (encoded(texture(1), mode="CMYK"), "cmyk"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 good tiles and 5 hostile files among them."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(NUM_TILES):
        (folder / f"{number:04d}_.jpg").write_bytes(encoded(texture(number)))
    for name, (data, _) in HOSTILE.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A store with one small model, and the model's reference."""
    store = LocalStore(str(tmp_path_factory.mktemp("models")))
    return store.uri, f"demo@{save_bundle(store, SPEC, network(), {}, PROBES)}"


@pytest.fixture(scope="module")
def config(folder: Path, model: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> PredictConfig:
    out, workers = tmp_path_factory.mktemp("predicted"), {"num_workers": 2, "cpus_per_worker": 1, "images_per_part": 64}
    return PredictConfig(images=(str(folder),), store=model[0], model=model[1], out=str(out), **workers)


@pytest.fixture(scope="module")
def predicted(ray_cluster: None, config: PredictConfig) -> Path:
    """The output of a prediction of the folder that nothing disturbed."""
    assert predict(config) == len(HOSTILE)
    return Path(str(config.out))


def _rows(out: Path) -> pd.DataFrame:
    return pq.read_table(out / "parts").to_pandas().sort_values("index", ignore_index=True)


def _record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "predictions.json").read_text())
    return content


def _check_whole(out: Path, folder: Path, times: int = 1) -> None:
    rows = _rows(out)
    assert rows["image"].tolist() == [str(path) for path in sorted(folder.iterdir())] * times
    assert rows["index"].tolist() == list(range(times * (NUM_TILES + len(HOSTILE))))
    bad = rows[rows["error_reason"].notna()]
    assert {Path(image).name: reason for image, reason in zip(bad["image"], bad["error_reason"], strict=True)} == {
        name: reason for name, (_, reason) in HOSTILE.items()
    }
    record = _record(out)
    assert (record["num_images"], record["num_errors"]) == (len(rows), times * len(HOSTILE))


def test_a_folder_gives_one_row_per_file_with_the_predictor_s_own_probabilities(
    predicted: Path, config: PredictConfig, folder: Path
) -> None:
    _check_whole(predicted, folder)
    record = _record(predicted)
    assert (record["model"], record["classes"], record["num_parts"]) == (config.model, ["normal", "tumour"], 5)
    bundle = load_bundle(LocalStore(config.store), "demo", str(config.model).partition("@")[2])
    predictor = Predictor(bundle, Limits(), make_runtime(bundle, "auto", 1))
    rows = _rows(predicted)
    answers = predictor.predict([Path(image).read_bytes() for image in rows["image"]])
    for answer, (_, row) in zip(answers, rows.iterrows(), strict=True):
        if isinstance(answer, ImagePrediction):
            assert (row["sha256"], row["label"]) == (answer.sha256, answer.label)
            assert row["probability_tumour"] == pytest.approx(answer.probabilities["tumour"], abs=1e-5)
        else:
            assert row["error_detail"] == answer.error.detail


def test_a_second_run_makes_only_the_parts_that_were_lost(
    predicted: Path, config: PredictConfig, folder: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(predicted, tmp_path / "out")
    parts = sorted((out / "parts").iterdir())
    before = {path: path.stat().st_mtime_ns for path in parts}
    parts[1].unlink()
    parts[3].unlink()
    assert predict(config.model_copy(update={"out": str(out)})) == len(HOSTILE)
    _check_whole(out, folder)
    made = {path for path in parts if path.stat().st_mtime_ns != before[path]}
    assert made == {parts[1], parts[3]}


def test_another_model_another_listing_and_a_foreign_part_are_refused_under_the_same_output(
    predicted: Path, config: PredictConfig, tmp_path: Path
) -> None:
    config = config.model_copy(update={"out": str(shutil.copytree(predicted, tmp_path / "out"))})
    store = LocalStore(config.store)
    other = save_bundle(store, SPEC.model_copy(update={"seed": 7}), network(), {}, PROBES)
    with pytest.raises(ConfigError, match=f"model {config.model} there, demo@{other} now"):
        predict(config.model_copy(update={"model": f"demo@{other}"}))
    with pytest.raises(ConfigError, match="num_images 305 there, 10 now"):
        predict(config.model_copy(update={"limit": 10}))
    (tmp_path / "out" / "plan.json").unlink()
    with pytest.raises(ConfigError, match=r"part-000000.parquet: is of another prediction"):
        predict(config.model_copy(update={"model": f"demo@{other}"}))


def test_a_tampered_model_is_refused_before_anything_is_written(config: PredictConfig, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "store"))
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    store.write(f"models/demo/{version}/model.safetensors", b"x")
    with pytest.raises(BundleError, match="was changed after it was written"):
        predict(config.model_copy(update={"store": store.uri, "model": f"demo@{version}", "out": str(tmp_path / "out")}))
    assert not (tmp_path / "out").exists()


def test_a_data_set_s_split_gives_a_row_per_tile_by_its_tile_id(
    dataset: Dataset, model: tuple[str, str], tmp_path: Path
) -> None:
    store, reference = dataset.store, f"demo@{save_bundle(dataset.store, SPEC, network(), {}, PROBES)}"
    out = tmp_path / "out"
    config = PredictConfig(dataset=dataset.reference, split="val", store=store.uri, model=reference, out=str(out))
    assert predict(config) == 0
    rows, manifest = _rows(out), dataset.manifest().to_pandas()
    of_split = manifest[manifest["split"] == "val"]
    assert sorted(rows["image"]) == sorted(of_split["tile_id"])
    assert rows["index"].tolist() == list(range(dataset.record.num_tiles["val"]))
    assert _record(out)["inputs"] == [dataset.reference, "val"]


def test_a_killed_worker_is_replaced_and_every_row_still_stands_once(
    ray_cluster: None, own_home: Path, config: PredictConfig, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed_after: list[int] = []

    def kill_worker() -> None:
        wait_until(lambda: _num_parts(out) > 0, 600, "the first part")
        for process in processes_of(own_home, "ray::MapWorker(Map(PartWriter))"):
            os.kill(process, signal.SIGKILL)
            killed_after.append(_num_parts(out))

    with ThreadPoolExecutor(1) as threads:
        killer = threads.submit(kill_worker)
        assert predict(_long(config, out)) == TIMES * len(HOSTILE)
        killer.result()
    assert len(killed_after) == 1
    assert killed_after[0] < _record(out)["num_parts"], "it was killed on the way"
    _check_whole(out, folder, TIMES)


def test_after_ctrl_c_and_kill_9_of_the_driver_the_same_command_ends_with_every_row_once(
    config: PredictConfig, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with _started(_long(config, out), tmp_path / "a") as driver:
        wait_until(lambda: _num_parts(out) > 0, 600, "the first part")
        driver.send_signal(signal.SIGINT)
        assert driver.wait(timeout=300) == 130
    assert "interrupted; nothing is half-written, and the same command goes on" in (tmp_path / "a" / "log").read_text()
    assert "Traceback" not in (tmp_path / "a" / "log").read_text()
    interrupted = _num_parts(out)
    with _started(_long(config, out), tmp_path / "b") as driver:
        wait_until(lambda: _num_parts(out) > interrupted, 600, "a further part")
        driver.kill()
        driver.wait()
    assert not (out / "predictions.json").exists(), "what is unfinished does not look finished"
    written = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("part-*")}
    with _started(_long(config, out), tmp_path / "c") as driver:
        assert driver.wait(timeout=900) == 0
    bad = f"images not used num={TIMES * len(HOSTILE)}"
    assert bad in (tmp_path / "c" / "log").read_text()
    _check_whole(out, folder, TIMES)
    assert {path: path.stat().st_mtime_ns for path in written} == written, "what was whole was left alone"


def _long(config: PredictConfig, out: Path) -> PredictConfig:
    """So many parts for one worker that there is time to interrupt it."""
    changed = {"images": config.images * TIMES, "images_per_part": 2, "num_workers": 1, "out": str(out)}
    return config.model_copy(update=changed)


def _num_parts(out: Path) -> int:
    return len(list((out / "parts").glob("part-*")))


@contextmanager
def _started(config: PredictConfig, home: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A user's command on a cluster of its own, which is gone in the end."""
    home.mkdir()
    (home / "predict.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    with (home / "log").open("wb") as log:
        driver = subprocess.Popen([COMMAND, "predict", str(home / "predict.yaml")], env=environment(home), stderr=log)
        try:
            yield driver
        finally:
            driver.kill()
            driver.wait()
            kill_all(home)
