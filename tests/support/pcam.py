"""The PCam tiles that stand beside the checkout."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def unpack_pcam(source: Path, folder: Path) -> None:
    """Unpacks the 18,000 tiles, with their manifest.csv, into a folder."""
    for archive in ("train", "valid", "test"):
        shutil.unpack_archive(source / f"{archive}.tar", folder, filter="data")
    shutil.copyfile(source / "manifest.csv", folder / "manifest.csv")


def read_pcam(folder: Path, split: str, num_per_class: int) -> tuple[list[bytes], NDArray[np.int64]]:
    """Returns the encoded tiles of a split with their labels, the first of each class in the manifest's order."""
    manifest = pd.read_csv(folder / "manifest.csv")
    rows = manifest[(manifest["split"] == split) & (manifest["rank"] < num_per_class)]
    return [(folder / path).read_bytes() for path in rows["path"]], rows["label"].to_numpy()
