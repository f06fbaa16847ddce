"""Each worker's share is as large as its part of a batch, holds what nobody else's does, and comes in its seed's order."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import textures

from historay.data import share
from historay.data.dataset import Dataset
from historay.data.loading import iter_tiles
from historay.data.share import batch_parts, load_share, make_room, share_of, streamed_batches
from historay.storage import LocalStore

NUM_TRAIN = 170


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """170 training tiles in 3 shards."""
    return textures(LocalStore(str(tmp_path_factory.mktemp("store"))), num_patients=6, tiles_each=NUM_TRAIN // 5)


def all_tiles(dataset: Dataset) -> np.ndarray:
    return np.concatenate([batch.tiles_BHWC for batch in iter_tiles(dataset, "train", 32, 64)])


@pytest.mark.parametrize(("batch_size", "num_workers"), [(1, 1), (64, 2), (64, 3), (16, 7), (32, 5), (170, 170)])
def test_shares_hold_every_row_once_and_last_for_as_many_batches_as_the_split_holds(
    dataset: Dataset, batch_size: int, num_workers: int
) -> None:
    parts = batch_parts(batch_size, num_workers)
    assert sum(parts) == batch_size
    assert max(parts) - min(parts) <= 1
    rows = Counter()
    for rank, part in enumerate(parts):
        pieces = share_of(dataset, "train", rank, parts)
        num_rows = sum(piece.stop - piece.start for piece in pieces)
        assert num_rows // part - NUM_TRAIN // batch_size in {0, 1}
        rows.update((piece.key, number) for piece in pieces for number in range(piece.start, piece.stop))
    assert set(rows.values()) == {1}
    assert len(rows) == NUM_TRAIN


@pytest.mark.parametrize("num_threads", [1, 3])
def test_shares_decoded_once_are_the_split_in_its_order(dataset: Dataset, num_threads: int) -> None:
    shares = []
    for rank in range(2):
        room = make_room(NUM_TRAIN // 2, 32, 1.0)
        assert room is not None
        shares.append(load_share(dataset, share_of(dataset, "train", rank, [1, 1]), room, num_threads))
    expected = list(iter_tiles(dataset, "train", 32, 64))
    np.testing.assert_array_equal(np.concatenate([each.tiles_BHWC for each in shares]), all_tiles(dataset))
    assert [tile for each in shares for tile in each.tile_ids] == [tile for batch in expected for tile in batch.tile_ids]
    assert [*shares[0].labels, *shares[1].labels] == [label for batch in expected for label in batch.labels]


def test_a_share_too_large_for_memory_is_kept_on_local_disk_and_leaves_nothing_there(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share.tempfile, "tempdir", str(tmp_path))
    room = make_room(NUM_TRAIN, 32, 1e-6)
    assert isinstance(room, np.memmap)
    loaded = load_share(dataset, share_of(dataset, "train", 0, [1]), room, 1)
    np.testing.assert_array_equal(loaded.tiles_BHWC, all_tiles(dataset))
    assert list(tmp_path.iterdir()) == []


def test_neither_memory_nor_disk_is_taken_with_zero_and_no_disk_that_is_nearly_full() -> None:
    assert make_room(NUM_TRAIN, 32, 0.0) is None
    assert make_room(10**12, 96, 1.0) is None


def test_a_streamed_share_holds_each_tile_once_in_an_order_that_its_seed_decides(dataset: Dataset) -> None:
    pieces = share_of(dataset, "train", 1, [1, 1])

    def streamed(seed: int, num_threads: int = 1) -> list[bytes]:
        batches = list(streamed_batches(dataset, pieces, 32, 17, seed, num_threads))
        assert [len(tiles) for tiles, _ in batches] == [17] * 5
        assert all(len(labels) == 17 for _, labels in batches)
        return [tile.tobytes() for tiles, _ in batches for tile in tiles]

    first = streamed(0)
    assert Counter(first) == Counter(tile.tobytes() for tile in all_tiles(dataset)[NUM_TRAIN // 2 :])
    assert streamed(0) == streamed(0, num_threads=2) == first
    assert streamed(1) != first


def test_a_stream_longer_than_its_window_loses_only_a_last_smaller_batch(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share, "_SHUFFLE_WINDOW", 4)
    pieces = share_of(dataset, "train", 0, [1])
    labels = [label for _, labels in streamed_batches(dataset, pieces, 32, 16, 3, 1) for label in labels]
    assert len(labels) == NUM_TRAIN - NUM_TRAIN % 16
