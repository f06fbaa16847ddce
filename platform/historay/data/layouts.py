"""The ways in which images lie at a source, each turned into one listing: a row per image with all that is known of it."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from historay.errors import DataError, NotFound
from historay.storage import Store, open_store, split_uri

Layout = Literal["folder", "manifest", "pcam", "breakhis", "idc"]

COLUMNS = ("path", "label_name", "patient", "slide", "site", "scanner", "mpp", "split")
IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
_SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
# SOB_B_TA-14-4659-40-001.png: procedure, B or M, tumour type, year, slide of the patient, magnification, running number.
_BREAKHIS_NAME = re.compile(r"^[A-Z]+_(?P<label>[BM])_[A-Z]+-(?P<year>\d+)-(?P<slide>[0-9A-Z]+)-(?P<zoom>\d+)-\d+$")
_BREAKHIS_LABELS = {"B": "benign", "M": "malignant"}
# 8863_idx5_x101_y1201_class1.png
_IDC_NAME = re.compile(r"^(?P<patient>[^_]+)_idx\d+_x\d+_y\d+_class(?P<label>[01])$")
_IDC_LABELS = {"0": "normal", "1": "idc"}
_PCAM_LABELS = ("normal", "tumour")
_PCAM_FILE = "camelyonpatch_level_2_split_{split}_{part}"
_PCAM_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_PCAM_MPP = 0.972  # 10x, Veeling et al. 2018


@dataclass(frozen=True)
class Listing:
    """Every image of a source: the store it lies in, the classes in their order, and a row per image, sorted by path."""

    store: Store
    layout: Layout
    classes: tuple[str, ...]
    rows: pd.DataFrame  # COLUMNS; text columns hold None where unknown; without label_name: a name that says nothing


def list_source(source: str, layout: Layout) -> Listing:
    """Lists a source without opening an image; DataError names the row and the value that cannot be used."""
    store, rows, classes = _LAYOUTS[layout](source)
    if rows.empty:
        raise DataError(f"{source}: no images found for layout {layout!r}; see docs/data-format.md for what each expects")
    if repeated := rows["path"][rows["path"].duplicated()].tolist():
        raise DataError(f"{source}: {len(repeated)} path(s) are listed twice, first {repeated[0]!r}; keep one row per image")
    if len(classes) < 2:
        raise DataError(f"{source}: only one class, {classes[0]!r}; a classifier needs two or more")
    given = rows["split"].notna()
    if given.any() and not given.all():
        raise DataError(f"{source}: {int((~given).sum())} of {len(rows)} rows have no split; give it for all rows or for none")
    return Listing(store, layout, classes, rows.reindex(columns=list(COLUMNS)).sort_values("path", ignore_index=True))


Listed = tuple[Store, pd.DataFrame, tuple[str, ...]]


def _folder(source: str) -> Listed:
    """Class folders; whatever lies beside them, such as a README, is no image and not looked at."""
    store = open_store(source)
    paths = [item.key for item in store.list() if "/" in item.key and not _hidden(item.key)]
    rows = pd.DataFrame({"path": paths, "label_name": [path.split("/")[0] for path in paths]})
    return store, _filled(rows), tuple(sorted(set(rows["label_name"])))


def _manifest(source: str) -> Listed:
    folder, name = split_uri(source)
    store = open_store(folder)
    data = io.BytesIO(store.read(name))
    # Texts stay texts: a patient 007 is not 7.
    read = pq.read_table(data).to_pandas() if name.endswith(".parquet") else pd.read_csv(data, dtype=str, keep_default_na=False)
    missing = {"path", "label"} - set(read.columns)
    if missing:
        raise DataError(
            f"{source}: column {' and '.join(sorted(missing))} is missing; it has {', '.join(map(str, read.columns))}"
        )
    names, classes = _labels(read, source)
    rows = pd.DataFrame({"path": read["path"].astype(str), "label_name": names})
    for column in ("patient", "slide", "site", "scanner"):
        if column in read:
            rows[column] = _text(read[column])
    if "mpp" in read:
        rows["mpp"] = _mpp(read["mpp"], source)
    if "split" in read:
        rows["split"] = _splits(read["split"], source)
    return store, _filled(rows), classes


def _labels(read: pd.DataFrame, source: str) -> tuple[pd.Series, tuple[str, ...]]:
    """Class names per row and in order: by the number in ``label`` where ``label_name`` names it, else by name."""
    label = _text(read["label"])
    if label.isna().any():
        raise DataError(f"{source}: row {int(np.flatnonzero(label.isna())[0]) + 1} has no label; drop the row or label it")
    if "label_name" not in read:
        return label, tuple(sorted(set(label)))
    pairs = pd.DataFrame({"number": label, "name": _text(read["label_name"])}).drop_duplicates()
    if (
        not pairs["number"].str.fullmatch(r"\d+").all()
        or pairs["number"].duplicated().any()
        or pairs["name"].duplicated().any()
    ):
        raise DataError(f"{source}: label must be a number and label_name its one name; found {pairs.head(5).to_dict('list')}")
    return _text(read["label_name"]), tuple(pairs.sort_values("number", key=lambda number: number.astype(int))["name"])


def _mpp(values: pd.Series, source: str) -> pd.Series:
    mpp = pd.to_numeric(_text(values), errors="coerce")
    wrong = np.flatnonzero((_text(values).notna() & mpp.isna()) | (mpp <= 0) | np.isinf(mpp))
    if len(wrong):
        raise DataError(
            f"{source}: row {wrong[0] + 1}: mpp {values.iloc[wrong[0]]!r} is no positive number of micrometres per pixel"
        )
    return mpp


def _splits(values: pd.Series, source: str) -> pd.Series:
    text = _text(values)
    unknown = np.flatnonzero(text.notna() & ~text.isin(list(_SPLIT_NAMES)))
    if len(unknown):
        row = int(unknown[0])
        raise DataError(f"{source}: row {row + 1}: split {text.iloc[row]!r} is none of {', '.join(_SPLIT_NAMES)}")
    return text.map(_SPLIT_NAMES)


def _breakhis(source: str) -> Listed:
    """The BreakHis tree, any part of it; patient and slide, label and zoom stand in each file's name."""

    def parsed(path: str) -> dict[str, object]:
        match = _BREAKHIS_NAME.match(PurePosixPath(path).stem)
        if match is None:
            return {}
        slide = f"{match['year']}-{match['slide']}"
        return {"label_name": _BREAKHIS_LABELS[match["label"]], "patient": slide, "slide": f"{slide}-{match['zoom']}x"}

    names = "BreakHis, SOB_B_TA-14-4659-40-001.png; use layout folder instead"
    return _by_name(source, parsed, tuple(_BREAKHIS_LABELS.values()), names)


def _idc(source: str) -> Listed:
    """The IDC tree, ``<patient>/<0 or 1>/<patient>_idx5_x.._y.._class...png``."""

    def parsed(path: str) -> dict[str, object]:
        match = _IDC_NAME.match(PurePosixPath(path).stem)
        return {"label_name": _IDC_LABELS[match["label"]], "patient": match["patient"]} if match else {}

    names = "IDC, 8863_idx5_x101_y1201_class1.png; use layout manifest instead"
    return _by_name(source, parsed, tuple(_IDC_LABELS.values()), names)


def _by_name(source: str, parsed: Callable[[str], dict[str, object]], classes: tuple[str, ...], names: str) -> Listed:
    """Reads all from the files' names; an image whose name says nothing has no label and ends in quarantine."""
    store = open_store(source)
    paths = [
        item.key for item in store.list() if PurePosixPath(item.key).suffix.lower() in IMAGE_ENDINGS and not _hidden(item.key)
    ]
    rows = _filled(pd.DataFrame([{"path": path, **parsed(path)} for path in paths]))
    if len(rows) and rows["label_name"].isna().all():
        raise DataError(f"{source}: the images are not named like {names}")
    return store, rows, classes


def _pcam(source: str) -> Listed:
    """The official HDF5 files; a path is ``<file of tiles>#<row>``. Slides are known where the meta.csv lies beside."""
    store = open_store(source)
    parts = []
    for name, split in _PCAM_SPLITS.items():
        stem = _PCAM_FILE.format(split=name, part="{part}")
        try:
            with open_hdf5(store, f"{stem.format(part='y')}.h5") as file:
                labels = file["y"][:].reshape(-1)
        except NotFound:
            continue
        tiles = f"{stem.format(part='x')}.h5"
        rows = pd.DataFrame({"path": [f"{tiles}#{row:06d}" for row in range(len(labels))]})
        rows["label_name"] = np.array(_PCAM_LABELS)[labels.astype(int)]
        rows["split"], rows["mpp"] = split, _PCAM_MPP
        if store.exists(meta := f"{stem.format(part='meta')}.csv"):
            rows["slide"] = pd.read_csv(io.BytesIO(store.read(meta)), dtype=str)["wsi"].to_numpy()
        parts.append(rows)
    return store, _filled(pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()), _PCAM_LABELS


def open_hdf5(store: Store, key: str) -> h5py.File:
    """Opens an HDF5 file of a store for reading; from a bucket only the parts that are read travel."""
    if not store.exists(key):
        raise NotFound(f"{store.locate(key)}: no such file; HDF5 files must be unpacked (.h5, not .h5.gz)")
    filesystem, root = store.arrow()
    try:
        return h5py.File(filesystem.open_input_file(f"{root}/{key}"), "r")
    except OSError as error:
        raise DataError(f"{store.locate(key)}: not a readable HDF5 file: {error}") from None


def _filled(rows: pd.DataFrame) -> pd.DataFrame:
    """All COLUMNS, with None for what is unknown."""
    filled = rows.reindex(columns=list(COLUMNS)).astype(object)
    return filled.where(filled.notna(), None)


def _text(values: pd.Series) -> pd.Series:
    """Texts without surrounding blanks; empty cells and NaN are unknown."""
    text = values.astype("string").str.strip()
    return text.mask(text.isin(["", "nan", "NaN", "None"])).astype(object).where(lambda column: column.notna(), None)


def _hidden(key: str) -> bool:
    return any(part.startswith(".") for part in key.split("/"))


_LAYOUTS: dict[Layout, Callable[[str], Listed]] = {
    "folder": _folder,
    "manifest": _manifest,
    "pcam": _pcam,
    "breakhis": _breakhis,
    "idc": _idc,
}
