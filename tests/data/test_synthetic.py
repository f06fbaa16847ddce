"""The synthetic tiles are the same for the same seed, tell their class by shape and not by colour, and break as announced."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from historay.data.decode import Limits, verify_tile
from historay.data.synthetic import SyntheticConfig, draw_tile, write_synthetic
from historay.errors import BadImage


def files_below(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in {"a": 3, "b": 3, "c": 4}.items():
        write_synthetic(SyntheticConfig(out=str(tmp_path / name), num_tiles=100, num_patients=5, seed=seed))
    a, b, c = (files_below(tmp_path / name) for name in "abc")
    assert a == b
    assert a["images/000000.jpg"] != c["images/000000.jpg"]


def test_every_patient_has_both_classes_and_one_site(tmp_path: Path) -> None:
    write_synthetic(SyntheticConfig(out=str(tmp_path), num_tiles=200, num_patients=8, defects=False))
    manifest = pd.read_csv(tmp_path / "manifest.csv")
    assert len(manifest) == 200
    assert (manifest.groupby("patient")["label"].nunique() == 2).all()
    assert (manifest.groupby("patient")["site"].nunique() == 1).all()
    assert all((tmp_path / path).is_file() for path in manifest["path"])


def test_a_confounded_set_lets_the_site_tell_the_class(tmp_path: Path) -> None:
    write_synthetic(SyntheticConfig(out=str(tmp_path), num_tiles=100, num_patients=8, confounded=True, defects=False))
    manifest = pd.read_csv(tmp_path / "manifest.csv")
    assert (manifest.groupby("site")["label"].nunique() == 1).all()


def test_colour_hardly_tells_the_class_of_a_new_patient() -> None:
    config = SyntheticConfig(out="unused", num_tiles=900, num_patients=30)
    drawn = [draw_tile(config, number) for number in range(config.num_tiles)]
    histograms = np.array([[np.histogram(pixels[..., k], 16, (0, 256))[0] for k in range(3)] for _, pixels in drawn])
    features, tumour = histograms.reshape(len(drawn), -1) / 96.0**2, np.array([label == "tumour" for label, _ in drawn])
    test = np.arange(len(drawn)) % config.num_patients >= 20
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=2000)).fit(features[~test], tumour[~test])
    assert roc_auc_score(tumour[test], model.predict_proba(features[test])[:, 1]) < 0.8


@pytest.mark.parametrize(
    ("defect", "reason"), [("truncated", "truncated"), ("empty", "empty"), ("text-named-jpg", "not-an-image")]
)
def test_a_defect_is_what_it_is_called(tmp_path: Path, defect: str, reason: str) -> None:
    write_synthetic(SyntheticConfig(out=str(tmp_path), num_tiles=100, num_patients=5))
    paths = pd.read_csv(tmp_path / "defects.csv").set_index("defect")["path"]
    with pytest.raises(BadImage) as refused:
        verify_tile((tmp_path / paths[defect]).read_bytes(), Limits())
    assert refused.value.reason == reason


def test_duplicates_stand_in_two_patients(tmp_path: Path) -> None:
    write_synthetic(SyntheticConfig(out=str(tmp_path), num_tiles=100, num_patients=5))
    patients = pd.read_csv(tmp_path / "manifest.csv").set_index("path")["patient"]
    defects = pd.read_csv(tmp_path / "defects.csv").set_index("defect")["path"]
    assert patients[defects["exact-duplicate-in-another-patient"]] != patients["images/000000.jpg"]
    assert (tmp_path / defects["exact-duplicate-in-another-patient"]).read_bytes() == (
        tmp_path / "images/000000.jpg"
    ).read_bytes()
