"""A chunk of a listing is read and checked image by image; what cannot be used stands in quarantine, and nothing else does."""

import os
from pathlib import Path

import h5py
import numpy as np
from images import encoded, texture

from historay.data.chunks import make_chunks, read_quarantine, read_staged, stage_chunk
from historay.data.decode import Limits
from historay.data.layouts import Layout, list_source
from historay.storage import LocalStore


def staged(store: LocalStore, source: str, layout: Layout, limits: Limits | None = None) -> tuple[list[str], dict[str, str]]:
    """Stages a source of one chunk; returns the sources of the good tiles, and of the bad ones with their reasons."""
    (chunk,) = make_chunks(list_source(source, layout), None, limits or Limits())
    stage_chunk(chunk, store, "chunk.parquet")
    bad = read_quarantine(store, "chunk.parquet").to_pydict()
    good: list[str] = read_staged(store, "chunk.parquet", ["source"])["source"].to_pylist()
    return good, dict(zip(bad["source"], bad["reason"], strict=True))


def test_a_hash_in_a_file_s_name_means_nothing(store: LocalStore, tmp_path: Path) -> None:
    names = ["a/#1.jpg", "b/slide.h5#2.jpg"]
    for number, name in enumerate(names):
        (tmp_path / "tiles" / name).parent.mkdir(parents=True)
        (tmp_path / "tiles" / name).write_bytes(encoded(texture(number)))
    assert staged(store, str(tmp_path / "tiles"), "folder") == (names, {})


def test_tiles_of_an_hdf5_file_are_read_without_loss(store: LocalStore, tmp_path: Path) -> None:
    tiles = np.stack([texture(number) for number in range(3)])
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_train_x.h5", "w") as file:
        file["x"] = tiles
    with h5py.File(tmp_path / "camelyonpatch_level_2_split_train_y.h5", "w") as file:
        file["y"] = np.array([0, 1, 1], np.uint8).reshape(-1, 1, 1, 1)
    good, bad = staged(store, str(tmp_path), "pcam")
    assert (good, bad) == ([f"camelyonpatch_level_2_split_train_x.h5#{row:06d}" for row in range(3)], {})


def test_a_file_of_more_bytes_than_allowed_is_not_read_into_memory(store: LocalStore, tmp_path: Path) -> None:
    for name in ("a/slide.tif", "b/tile.jpg"):
        (tmp_path / "tiles" / name).parent.mkdir(parents=True)
        (tmp_path / "tiles" / name).write_bytes(encoded(texture(0)))
    os.truncate(tmp_path / "tiles/a/slide.tif", 2**40)  # a hole: far more than any machine's memory
    assert staged(store, str(tmp_path / "tiles"), "folder") == (["b/tile.jpg"], {"a/slide.tif": "too-many-bytes"})


def test_an_image_whose_name_tells_no_class_is_kept_apart_from_those_whose_names_do(store: LocalStore, tmp_path: Path) -> None:
    for number, name in enumerate(("SOB_B_TA-14-4659-40-001.png", "SOB_M_DC-14-2523-40-010.png", "holiday.png")):
        (tmp_path / name).write_bytes(encoded(texture(number), "PNG"))
    good, bad = staged(store, str(tmp_path), "breakhis")
    assert (len(good), bad) == (2, {"holiday.png": "misnamed"})
