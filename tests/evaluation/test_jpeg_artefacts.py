"""The marks of compression are read as they were set, and agree with what is published of them."""

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encoded, texture
from PIL import Image

from historay.data.decode import decode_tile
from historay.errors import BadImage
from historay.evaluation.jpeg_artefacts import block_edges, jpeg_artefacts, noise_level, read_header

# ITU-T T.81 annex K, table K.1, first two rows: libjpeg uses the table itself at quality 50.
ANNEX_K_LUMA = [16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55]


def test_the_header_gives_the_published_quantisation_table_at_quality_50() -> None:
    header = read_header(encoded(texture(0), quality=50))
    assert list(header.luma_steps[:16]) == ANNEX_K_LUMA
    assert header.chroma_steps[0] == 17  # table K.2
    assert (header.format, header.width, header.height) == ("JPEG", 96, 96)


@pytest.mark.parametrize(("named", "expected"), [("444", (1, 1)), ("422", (2, 1)), ("420", (2, 2))])
def test_chroma_subsampling_is_read(named: str, expected: tuple[int, int]) -> None:
    assert read_header(simplejpeg.encode_jpeg(texture(0), colorsubsampling=named)).subsampling == expected


def test_a_lossless_file_and_the_chroma_of_a_grey_one_lose_nothing() -> None:
    png, grey = read_header(encoded(texture(0), "PNG")), read_header(encoded(texture(0), mode="L", quality=50))
    assert set(png.luma_steps + png.chroma_steps + grey.chroma_steps) == {1}
    assert list(grey.luma_steps[:16]) == ANNEX_K_LUMA
    assert png.subsampling == grey.subsampling == (1, 1)


def test_what_is_no_image_is_refused_with_its_reason() -> None:
    with pytest.raises(BadImage) as refused:
        read_header(b"this is a note and no image")
    assert refused.value.reason == "not-an-image"


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(1, 12))
def test_noise_is_measured_as_it_was_added_and_a_slope_is_none(seed: int, sigma: float) -> None:
    rng = np.random.default_rng(seed)
    slope = np.add.outer(np.arange(96.0), 0.5 * np.arange(96.0))
    tiles = np.stack([slope, slope + rng.normal(0, sigma, slope.shape)]).astype(np.float32)
    found = noise_level(tiles)
    assert found[0] == pytest.approx([0, 0], abs=1e-4)
    assert found[1, 0] == pytest.approx(sigma, rel=0.08)
    assert found[1, 1] < found[1, 0]


def test_block_edges_grow_with_compression_and_stay_where_a_crop_moved_them() -> None:
    rng = np.random.default_rng(0)
    scene = np.clip(texture(1, px=264) + rng.normal(0, 6, (264, 264, 1)), 0, 255).astype(np.uint8)
    planes = [decode_tile(encoded(scene, quality=quality))[..., 1].astype(np.float32) for quality in (95, 60, 20)]
    best, middle, worst = (block_edges(plane[None])[0] for plane in planes)
    assert (best < middle).all()
    assert (middle < worst).all()
    moved = block_edges(planes[2][None, 3:, 5:])[0]
    own, any_offset = [0, 2], [1, 3]
    assert (moved[own] < 0.1).all()
    assert moved[any_offset] == pytest.approx(worst[any_offset], abs=0.05)


def test_a_resized_tile_is_judged_by_its_pixels_as_stored() -> None:
    files = [encoded(texture(seed), quality=30) for seed in range(3)]
    stored = np.stack([decode_tile(data) for data in files])
    resized = np.stack([np.asarray(Image.fromarray(tile).resize((64, 64))) for tile in stored])
    headers = [read_header(data) for data in files]
    assert jpeg_artefacts(resized, files, headers) == pytest.approx(jpeg_artefacts(stored, files, headers))


@pytest.mark.parametrize("side", [1, 2, 7, 9])
def test_tiles_too_small_for_a_block_have_finite_features(side: int) -> None:
    data = encoded(np.full((side, side, 3), 200, np.uint8))
    assert np.isfinite(jpeg_artefacts(decode_tile(data)[None], [data], [read_header(data)])).all()
