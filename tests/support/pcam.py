"""The PCam tiles that stand beside the checkout."""

import shutil
from pathlib import Path


def unpack_pcam(source: Path, folder: Path) -> None:
    """Unpacks the 18,000 tiles, with their manifest.csv, into a folder."""
    for archive in ("train", "valid", "test"):
        shutil.unpack_archive(source / f"{archive}.tar", folder, filter="data")
    shutil.copyfile(source / "manifest.csv", folder / "manifest.csv")
