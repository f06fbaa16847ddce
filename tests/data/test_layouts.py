"""Each layout yields the rows that its files mean, and says which row is wrong."""

from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from historay.data.layouts import list_source
from historay.errors import DataError


def written(folder: Path, *names: str) -> str:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return str(folder)


def manifest(folder: Path, text: str) -> str:
    (folder / "manifest.csv").write_text(text)
    return str(folder / "manifest.csv")


def test_class_folders_name_the_classes_and_files_beside_them_are_no_images(tmp_path: Path) -> None:
    listing = list_source(written(tmp_path, "TUM/a.jpg", "STR/b.tif", "README.txt", "TUM/.hidden"), "folder")
    assert listing.classes == ("STR", "TUM")
    assert listing.rows["path"].tolist() == ["STR/b.tif", "TUM/a.jpg"]
    assert listing.rows["patient"].isna().all()


def test_a_manifest_s_columns_are_kept_and_patients_stay_text(tmp_path: Path) -> None:
    text = "path,label,split,patient,slide,site,mpp\nb.jpg,y,valid,007,s1,Leeds,0.5\na.jpg,x,train,,s2,Leeds,\n"
    rows = list_source(manifest(tmp_path, text), "manifest").rows
    assert rows["patient"].tolist() == [None, "007"]
    assert rows["split"].tolist() == ["train", "val"]
    assert rows["mpp"].tolist() == [None, 0.5]


def test_numbers_with_names_decide_the_order_of_the_classes(tmp_path: Path) -> None:
    text = "path,label,label_name\na.jpg,1,benign\nb.jpg,0,malignant\n"
    assert list_source(manifest(tmp_path, text), "manifest").classes == ("malignant", "benign")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,klass\na.jpg,x\n", "column label is missing; it has path, klass"),
        ("path,label\na.jpg,x\na.jpg,y\n", "1 path\\(s\\) are listed twice, first 'a.jpg'"),
        ("path,label\na.jpg,x\nb.jpg,\n", "row 2 has no label"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,holdout\n", "row 2: split 'holdout' is none of train"),
        ("path,label,split\na.jpg,x,train\nb.jpg,y,\n", "1 of 2 rows have no split"),
        ("path,label,mpp\na.jpg,x,0.5\nb.jpg,y,-1\n", "row 2: mpp '-1' is no positive number"),
        ("path,label,mpp\na.jpg,x,nan\nb.jpg,y,far\n", "row 2: mpp 'far' is no positive number"),
        ("path,label,label_name\na.jpg,0,x\nb.jpg,0,y\n", "label must be a number and label_name its one name"),
        ("path,label\na.jpg,x\n", "only one class, 'x'"),
        ("path,label\n", "no images found"),
    ],
)
def test_a_manifest_that_cannot_be_meant_is_refused_with_row_and_value(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        list_source(manifest(tmp_path, text), "manifest")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no images found for layout 'folder'"):
        list_source(str(tmp_path), "folder")


def test_breakhis_names_tell_patient_slide_and_class(tmp_path: Path) -> None:
    source = written(tmp_path, "x/SOB_B_TA-14-4659-40-001.png", "y/SOB_M_DC-14-2523-100-010.png")
    rows = list_source(source, "breakhis").rows
    assert rows["label_name"].tolist() == ["benign", "malignant"]
    assert rows["patient"].tolist() == ["14-4659", "14-2523"]
    assert rows["slide"].tolist() == ["14-4659-40x", "14-2523-100x"]
    with pytest.raises(DataError, match="not named like BreakHis"):
        list_source(written(tmp_path / "z", "holiday.png"), "breakhis")


def test_idc_names_tell_patient_and_class(tmp_path: Path) -> None:
    source = written(tmp_path, "8863/0/8863_idx5_x101_y1201_class0.png", "9036/1/9036_idx5_x1_y2_class1.png")
    listing = list_source(source, "idc")
    assert listing.classes == ("normal", "idc")
    assert listing.rows["patient"].tolist() == ["8863", "9036"]


def test_pcam_files_give_a_row_per_tile_with_split_and_slide(tmp_path: Path) -> None:
    for split, labels in {"train": [0, 1, 1], "valid": [1], "test": [0]}.items():
        stem = tmp_path / f"camelyonpatch_level_2_split_{split}"
        with h5py.File(f"{stem}_x.h5", "w") as file:
            file["x"] = np.zeros((len(labels), 96, 96, 3), np.uint8)
        with h5py.File(f"{stem}_y.h5", "w") as file:
            file["y"] = np.array(labels, np.uint8).reshape(-1, 1, 1, 1)
    pd.DataFrame({"wsi": ["w1", "w1", "w2"]}).to_csv(tmp_path / "camelyonpatch_level_2_split_train_meta.csv")
    listing = list_source(str(tmp_path), "pcam")
    assert listing.classes == ("normal", "tumour")
    by_split = listing.rows.groupby("split")
    assert by_split.size().to_dict() == {"test": 1, "train": 3, "val": 1}
    assert by_split.get_group("train")["slide"].tolist() == ["w1", "w1", "w2"]
