"""A run is judged on another data set version only where it has seen nothing of what judges it."""

from typing import Any

import numpy as np
import pytest
from datasets import row, written
from images import encoded, texture
from records import RECORD
from safetensors.torch import save

from historay.data.card import write_card
from historay.data.dataset import Dataset
from historay.data.duplicates import DuplicatePairs
from historay.data.schema import QUARANTINE_SCHEMA
from historay.errors import DataError, LeakError
from historay.evaluation.report import Report
from historay.models.bundle import read_spec
from historay.models.zoo import build_model
from historay.storage import LocalStore
from historay.training.evaluate import EvaluateConfig, evaluate_run
from historay.training.passes import Origins
from historay.training.run import Best, checkpoint_prefix
from historay.training.unseen import joined, judged_on, open_unseen

SPLITS = {"p0": "train", "p1": "train", "p2": "val", "p3": "test"}


def tile(number: int, patient: str, split: str, pixels: np.ndarray[Any, Any] | None = None) -> dict[str, object]:
    shown = texture(number) if pixels is None else pixels
    return row(number, encoded(shown, quality=95), shown, patient, split)


def version(store: LocalStore, name: str, *more: dict[str, object], splits: dict[str, str] = SPLITS) -> Dataset:
    rows = [tile(2 * place + turn, patient, split) for place, (patient, split) in enumerate(splits.items()) for turn in (0, 1)]
    return written(store, [*rows, *more], version=name * 16)


@pytest.fixture
def trained(store: LocalStore) -> Dataset:
    return version(store, "0")


def test_a_version_with_more_patients_in_its_test_judges_a_run_of_the_former(store: LocalStore, trained: Dataset) -> None:
    larger = version(store, "1", tile(100, "p9", "test"), tile(101, "p9", "test"))
    judged = open_unseen(trained, RECORD, larger.reference)
    record = judged_on(RECORD, judged)
    assert (record.dataset, record.dataset_digest) == (larger.reference, larger.record.digest)
    assert judged.record.num_tiles["test"] == 4


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ([tile(100, "p0", "test")], "patient"),
        ([tile(100, "p2", "test")], "patient"),
        ([tile(100, "p1", "val")], "patient"),
        ([tile(100, "p9", "test", texture(0))], "identical-pixels"),
        ([tile(100, "p9", "test", np.ascontiguousarray(np.rot90(texture(0))))], "near-duplicate"),
    ],
    ids=["a training patient", "a validation patient", "a training patient in val", "a copied tile", "a turned tile"],
)
def test_what_the_run_has_seen_does_not_judge_it(
    more: list[dict[str, object]], kind: str, store: LocalStore, trained: Dataset
) -> None:
    larger = version(store, "1", *more)
    with pytest.raises(LeakError, match=f"run r has seen.*{kind}: "):
        open_unseen(trained, RECORD, larger.reference)
    accepted = RECORD.model_copy(update={"accepted_leaks": (kind, "slide")})
    assert open_unseen(trained, accepted, larger.reference).reference == larger.reference


def test_a_version_of_other_classes_judges_nothing(trained: Dataset) -> None:
    with pytest.raises(DataError, match="has the classes"):
        open_unseen(trained, RECORD.model_copy(update={"classes": ("x", "y")}), trained.reference)


def test_origins_of_both_versions_are_known_and_the_judging_one_has_the_last_word() -> None:
    first = Origins({"t": ("p", None, "north", None, None), "u": ("q", None, "south", None, None)}, ("north", "south"))
    second = Origins({"t": ("p", None, "east", None, None)}, ("east",))
    both = joined(first, second)
    assert both.of_tile == {**first.of_tile, **second.of_tile}
    assert both.sites == ("east", "north", "south")


def test_a_report_of_another_version_says_so_and_bundle_and_gate_go_by_that_version(store: LocalStore) -> None:
    splits = {f"p{place:02d}": ("train", "val", "test")[place % 3] for place in range(36)}
    trained = version(store, "0", splits=splits)
    larger = version(store, "1", *(tile(200 + place, "new", "test") for place in range(8)), splits=splits)
    for dataset in (trained, larger):
        no_pairs = DuplicatePairs(np.empty((0, 2), np.int64), np.empty(0, bool))
        write_card(dataset, dataset.manifest(), no_pairs, QUARANTINE_SCHEMA.empty_table())
    record = RECORD.model_copy(update={"dataset": trained.reference, "dataset_digest": trained.record.digest})
    store.write("runs/r/run.json", record.model_dump_json().encode())
    store.write("runs/r/best.json", Best(epoch=1, monitor="val_auc", value=0.5).model_dump_json().encode())
    store.write("runs/r/metrics.jsonl", b'{"epoch": 1, "step": 3, "train_loss": 0.7, "val_auc": 0.5, "epoch_seconds": 1.0}\n')
    network = build_model("small_cnn", 2, 32, 0.0)
    store.write(f"{checkpoint_prefix('r', 1)}/model.safetensors", save(network.state_dict()))
    store.write(f"{checkpoint_prefix('r', 1)}/state.json", b"{}")

    asked = EvaluateConfig(run="r", store=store.uri, num_resamples=100, robustness_tiles=0, dataset=larger.reference)
    name, _, number = evaluate_run(asked).reference.partition("@")
    assert read_spec(store, name, number).dataset_digest == larger.record.digest
    report = Report.model_validate_json(store.read(f"models/{name}/{number}/report.json"))
    assert (report.provenance.dataset, report.provenance.dataset_digest) == (larger.reference, larger.record.digest)
    assert sum(report.num_tiles.values()) == larger.record.num_tiles["test"] == trained.record.num_tiles["test"] + 8
    assert f"Trained on {trained.reference}, judged on {larger.reference}" in report.provenance.notes[0]
