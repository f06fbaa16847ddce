"""An ingest keeps what is good, says what is bad, and gives the same version for the same input."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from images import encoded, png_of_claimed_size, texture
from processes import COMMAND, UNPRIVILEGED, environment, kill_all, wait_until

from historay.data.dataset import Dataset, list_datasets, open_dataset
from historay.data.ingest import IngestConfig, ingest
from historay.errors import DataError, LeakError, NotFound
from historay.models.bundle import read_verified
from historay.models.registry import resolve
from historay.storage import LocalStore, open_store
from historay.training.evaluate import EvaluateConfig, evaluate_run
from historay.training.run import read_run
from historay.training.settings import TrainConfig
from historay.training.train import train

# Ray's own deprecation warnings are not ours to mend.
pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800), pytest.mark.filterwarnings("default")]


def hostile_folder(folder: Path, num_good: int = 114) -> dict[str, str]:
    """Writes class folders of good tiles with 5 % hostile files; returns each hostile path with the reason expected."""
    for number in range(num_good):
        path = folder / "ab"[number % 2] / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_bytes(encoded(texture(number)))
    whole = encoded(texture(0))
    hostile = {
        "a/half.jpg": (whole[: len(whole) // 2], "truncated"),
        "a/zero.jpg": (b"", "empty"),
        "a/text.jpg": (b"not an image at all", "not-an-image"),
        "b/giant.png": (png_of_claimed_size(20_000, 20_000), "too-many-pixels"),
        "b/cmyk.jpg": (encoded(texture(1), mode="CMYK"), "cmyk"),
        "b/secret.jpg": (whole, "unreadable"),
    }
    for path, (data, _) in hostile.items():
        (folder / path).write_bytes(data)
    (folder / "b" / "secret.jpg").chmod(0)
    return {path: reason for path, (_, reason) in hostile.items()}


def test_of_a_folder_with_hostile_files_all_the_good_are_in_and_all_the_bad_in_quarantine(tmp_path: Path) -> None:
    expected = hostile_folder(tmp_path / "tiles")
    command = [*UNPRIVILEGED, COMMAND, "ingest", "--name", "h", "--layout", "folder", "--source", "tiles", "--store", "store"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr
    dataset = open_dataset(open_store(str(tmp_path / "store")), "h")
    assert sum(dataset.record.num_tiles.values()) == 114
    quarantine = pq.read_table(dataset.store.locate(f"{dataset.prefix}/quarantine.parquet")).to_pydict()
    assert dict(zip(quarantine["source"], quarantine["reason"], strict=True)) == expected
    assert "secret.jpg" not in done.stderr, "paths may name people"


def test_every_tile_stands_in_one_shard_at_the_place_that_the_manifest_says(dataset: Dataset) -> None:
    manifest = dataset.manifest().to_pandas().set_index("tile_id")
    seen = []
    for split in ("train", "val", "test"):
        for key, table in zip(dataset.shard_keys(split), dataset.tables(split), strict=True):
            for row, tile in enumerate(table["tile_id"].to_pylist()):
                assert (manifest.loc[tile, "shard"], manifest.loc[tile, "row"]) == (Path(key).stem, row)
                seen.append(tile)
            assert set(table["split"].to_pylist()) == {split}
    assert sorted(seen) == manifest.index.tolist()


def test_the_demo_s_defects_are_refused_and_its_duplicates_kept_on_one_side(dataset: Dataset) -> None:
    assert dataset.record.num_quarantined == 3
    assert dataset.record.leaks == ()
    assert sum(dataset.record.num_tiles.values()) == 803


def test_the_same_input_gives_the_same_version_and_the_same_bytes(dataset: Dataset, tiles: Path, tmp_path: Path) -> None:
    shutil.copytree(tiles, tmp_path / "elsewhere")
    config = IngestConfig(name="small", source=str(tmp_path / "elsewhere" / "manifest.csv"), store=str(tmp_path / "store"))
    again = ingest(config)
    assert again.record.version == dataset.record.version
    for split in ("train", "val", "test"):
        for key in dataset.shard_keys(split):
            assert again.store.read(key) == dataset.store.read(key)
    before = {item.key for item in again.store.list()}
    assert ingest(config).record.version == again.record.version
    assert {item.key for item in again.store.list()} == before, "a second ingest writes nothing and leaves no staging"


def test_a_run_with_every_image_bad_fails_with_the_reasons(ray_cluster: None, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / "tiles" / name).mkdir(parents=True)
        (tmp_path / "tiles" / name / "x.jpg").write_bytes(b"text")
    config = IngestConfig(
        name="bad",
        source=str(tmp_path / "tiles"),
        layout="folder",
        store=str(tmp_path / "store"),
        val_fraction=0,
        test_fraction=0,
    )
    with pytest.raises(DataError, match="none of the 2 images can be used: not-an-image 2"):
        ingest(config)
    for number, name in enumerate("ab"):
        (tmp_path / "tiles" / name / "x.jpg").write_bytes(encoded(texture(number)))
    assert ingest(config).record.num_tiles["train"] == 2, "mended images are read again"


def test_an_image_that_was_missing_when_an_ingest_broke_off_is_looked_for_again(ray_cluster: None, tmp_path: Path) -> None:
    rows = [f"{number}.jpg,{'ab'[number % 2]},{'PQR'[number]}" for number in range(3)]
    (tmp_path / "manifest.csv").write_text("\n".join(["path,label,patient", *rows]))
    for number in range(2):
        (tmp_path / f"{number}.jpg").write_bytes(encoded(texture(number)))
    config = IngestConfig(name="late", source=str(tmp_path / "manifest.csv"), store=str(tmp_path / "store"))
    with pytest.raises(DataError, match=r"2 group\(s\) of tiles cannot fill the splits"):
        ingest(config)
    (tmp_path / "2.jpg").write_bytes(encoded(texture(2)))
    dataset = ingest(config.model_copy(update={"seed": 1}))
    assert dataset.record.num_tiles == {"train": 1, "val": 1, "test": 1}
    assert not any(".staging" in item.key for item in dataset.store.list()), "another split goes on with what was staged"


def test_a_killed_ingest_goes_on_where_it_stopped(ray_cluster: None, tiles: Path, tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "store"))
    home = tmp_path / "home"
    home.mkdir()
    command = [COMMAND, "ingest", "--name", "k", "--source", str(tiles / "manifest.csv"), "--store", store.uri]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(command, env=environment(home), stderr=log)
        wait_until(lambda: any(".staging" in item.key for item in store.list()), 600, "the first staged chunk")
        driver.kill()
        driver.wait()
        kill_all(home)
    assert not any(item.key.endswith("dataset.json") for item in store.list()), "nothing half-made is visible"
    finished = ingest(IngestConfig(name="k", source=str(tiles / "manifest.csv"), store=store.uri))
    assert sum(finished.record.num_tiles.values()) == 803


def test_two_ingests_at_once_do_no_harm_and_give_one_version(ray_cluster: None, tiles: Path, tmp_path: Path) -> None:
    config = IngestConfig(name="twice", source=str(tiles / "manifest.csv"), store=str(tmp_path / "store"))
    home = tmp_path / "home"
    home.mkdir()
    command = [COMMAND, "ingest", "--name", "twice", "--source", config.source, "--store", config.store]
    with (tmp_path / "log").open("wb") as log:
        other = subprocess.Popen(command, env=environment(home), stderr=log)
        try:
            ours = ingest(config)
            assert other.wait(timeout=900) == 0, (tmp_path / "log").read_text()
        finally:
            kill_all(home)
    assert [record.version for record in list_datasets(ours.store, "twice")] == [ours.record.version]
    assert sum(ours.record.num_tiles.values()) == 803
    seen = [tile for split in ("train", "val", "test") for table in ours.tables(split) for tile in table["tile_id"].to_pylist()]
    assert sorted(seen) == ours.manifest(["tile_id"])["tile_id"].to_pylist()


@pytest.fixture(scope="session")
def leaking(ray_cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A given split in which tile 0 of train stands in test again, turned and saved at quality 60."""
    folder = tmp_path_factory.mktemp("leaking")
    rows = []
    for number in range(60):
        (folder / f"{number}.jpg").write_bytes(encoded(texture(number)))
        rows.append(f"{number}.jpg,{'ab'[number % 2]},{('train', 'val', 'test')[number // 2 % 3]}")
    (folder / "copy.jpg").write_bytes(encoded(np.ascontiguousarray(np.rot90(texture(0))), quality=60))
    (folder / "manifest.csv").write_text("\n".join(["path,label,split", *rows, "copy.jpg,a,test"]))
    return ingest(IngestConfig(name="leaky", source=str(folder / "manifest.csv"), store=str(folder / "store")))


def test_a_planted_near_duplicate_across_splits_stops_training_and_names_both_tiles(leaking: Dataset) -> None:
    (leak,) = leaking.record.leaks
    sources = leaking.leaks().to_pydict()
    assert {*sources["source_a"], *sources["source_b"]} == {"0.jpg", "copy.jpg"}
    config = TrainConfig(run="refused", dataset="leaky", store=leaking.store.uri, epochs=2, batch_size=8)
    with pytest.raises(LeakError, match=rf"near-duplicate: 1 pair\(s\) .*{leak.tile_a} and {leak.tile_b}"):
        train(config)


def test_a_leak_accepted_by_name_is_stamped_on_run_report_card_and_bundle(leaking: Dataset) -> None:
    store = leaking.store
    train(
        TrainConfig(run="accepted", dataset="leaky", store=store.uri, epochs=2, batch_size=8, accept_leaks=("near-duplicate",))
    )
    assert read_run(store, "accepted").accepted_leaks == ("near-duplicate",)
    evaluate_run(EvaluateConfig(run="accepted", store=store.uri, num_resamples=100, robustness_tiles=0))
    name, version = resolve(store, "accepted@candidate")
    bundle = read_verified(store, name, version)
    assert json.loads(bundle["model.json"])["accepted_leaks"] == ["near-duplicate"]
    assert json.loads(bundle["report.json"])["provenance"]["accepted_leaks"] == ["near-duplicate"]
    for page in ("report.html", "MODEL_CARD.md"):
        assert "LEAKS ACCEPTED: near-duplicate" in bundle[page].decode()


def test_an_error_of_ours_in_a_worker_comes_out_as_it_was_raised(ray_cluster: None) -> None:
    import ray.data

    from historay.ray_session import run_pipeline

    def gone(row: dict[str, int]) -> dict[str, int]:
        raise NotFound(f"chunk {row['item']} is gone")

    with pytest.raises(NotFound) as raised:
        list(run_pipeline(ray.data.from_items([7]).map(gone), "a pipeline", 1))
    assert type(raised.value) is NotFound
    assert str(raised.value) == "chunk 7 is gone"
