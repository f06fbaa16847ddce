"""Tiles that show the same tissue are found however they were turned or saved, and others are let be."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encoded, texture
from numpy.typing import NDArray

from historay.data.decode import decode_tile
from historay.data.duplicates import candidate_pairs, duplicate_pairs, fingerprint, same_tile

Tile = NDArray[np.uint8]


def d4(tile: Tile, element: int) -> Tile:
    flipped = tile[:, ::-1] if element >= 4 else tile
    return np.ascontiguousarray(np.rot90(flipped, element % 4))


def distance(a: bytes, b: bytes) -> int:
    return int(np.bitwise_count(np.frombuffer(a, np.uint8) ^ np.frombuffer(b, np.uint8)).sum())


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), element=st.integers(0, 7))
def test_turning_and_flipping_hardly_change_the_hash(seed: int, element: int) -> None:
    tile = texture(seed)
    assert distance(fingerprint(tile).phash, fingerprint(d4(tile, element)).phash) <= 6


def found_in(tiles: list[Tile]) -> set[tuple[int, int, bool]]:
    prints = [fingerprint(tile) for tile in tiles]
    found = duplicate_pairs(
        [one.phash for one in prints],
        [tile.tobytes().hex() for tile in tiles],
        np.array([one.blank for one in prints]),
        lambda rows: [prints[row].thumbnail for row in rows],
    )
    return {(int(a), int(b), bool(same)) for (a, b), same in zip(found.pairs, found.identical, strict=True)}


def test_a_turned_and_saved_again_copy_is_found_among_other_tiles() -> None:
    tiles = [texture(seed) for seed in range(60)]
    copy = decode_tile(encoded(d4(tiles[7], 5), quality=60))
    assert found_in([*tiles, copy, tiles[9]]) == {(7, 60, False), (9, 61, True)}


def test_blank_tiles_are_no_duplicates_of_each_other() -> None:
    glass = [np.full((96, 96, 3), level, np.uint8) for level in (240, 240, 243)]
    assert all(fingerprint(tile).blank for tile in glass)
    assert found_in([*glass, texture(1)]) == set()


def test_real_copies_are_found_and_real_neighbours_let_be(shared_data: Path) -> None:
    tiles = [decode_tile(path.read_bytes()) for path in sorted((shared_data / "crc-val-he-7k").rglob("*.jpg"))]
    assert len(tiles) == 70
    assert found_in(tiles) == set(), "70 different tiles"
    copies = [decode_tile(encoded(d4(tile, number % 8), quality=60)) for number, tile in enumerate(tiles)]
    found = {(a, b) for a, b, _ in found_in([*tiles, *copies])}
    wanted = {(row, row + 70) for row, tile in enumerate(tiles) if not fingerprint(tile).blank}
    assert len(found & wanted) >= 0.95 * len(wanted)
    assert found <= wanted


def test_a_candidate_pair_agrees_in_most_bits() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (2000, 16), dtype=np.uint8)
    hashes[1999] = hashes[0]
    hashes[1999, 0] ^= 0b101
    assert (0, 1999) in {tuple(pair) for pair in candidate_pairs(hashes).tolist()}
    assert len(candidate_pairs(hashes)) < 5


@pytest.mark.parametrize("element", range(8))
def test_the_confirmation_knows_all_eight_symmetries(element: int) -> None:
    a, b = fingerprint(texture(3)).thumbnail, fingerprint(texture(4)).thumbnail
    assert same_tile(a[None], d4(a, element)[None]).all()
    assert not same_tile(a[None], d4(b, element)[None]).any()


def test_beyond_a_million_hashes_true_pairs_are_found_as_often_and_no_key_is_shared_by_many() -> None:
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 256, (1_100_000, 16), dtype=np.uint8)
    planted = 500
    copies = np.unpackbits(hashes[:planted], axis=1)
    for row, bits in enumerate(copies):
        bits[generator.choice(128, 8, replace=False)] ^= 1
        copies[row] = bits
    pairs = candidate_pairs(np.concatenate([hashes, np.packbits(copies, axis=1)]))
    found = {(int(a), int(b)) for a, b in pairs}
    hits = sum((row, len(hashes) + row) in found for row in range(planted))
    assert hits / planted > 0.95
    assert len(found) < planted + 100, "random hashes hardly come within 28 bits of one another"
