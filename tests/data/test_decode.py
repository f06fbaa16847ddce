"""An image is used as it is meant, or refused with the reason, before it costs anything."""

import io
import tracemalloc

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from images import encoded, png_of_claimed_size, texture
from PIL import Image

from historay.data.decode import Limits, decode_tile, resize_tile, verify_tile
from historay.errors import BadImage

TILE = texture(1)
GREY = TILE[..., 0]
TRANSPARENT = np.dstack([TILE, GREY])

GOOD = {
    "jpeg": encoded(TILE),
    "progressive jpeg": encoded(TILE, progressive=True),
    "grey jpeg": encoded(GREY),
    "png": encoded(TILE, "PNG"),
    "grey png": encoded(GREY, "PNG"),
    "palette png": encoded(TILE, "PNG", mode="P"),
    "png with opaque alpha": encoded(TILE, "PNG", mode="RGBA"),
    "tiff": encoded(TILE, "TIFF"),
    "tiff with lzw": encoded(TILE, "TIFF", compression="tiff_lzw"),
}
BAD = {
    "half a jpeg": (GOOD["jpeg"][: len(GOOD["jpeg"]) // 2], "truncated"),
    "a jpeg without its end mark": (GOOD["jpeg"][:-2], "truncated"),
    "half a png": (GOOD["png"][: len(GOOD["png"]) // 2], "truncated"),
    "half a tiff": (GOOD["tiff"][: len(GOOD["tiff"]) // 2], "truncated"),
    "nothing": (b"", "empty"),
    "text": (b"this is no image", "not-an-image"),
    "a gif": (encoded(TILE, "GIF"), "not-an-image"),
    "a cmyk jpeg": (encoded(TILE, "JPEG", mode="CMYK"), "cmyk"),
    "16-bit grey": (encoded(GREY.astype(np.uint16) * 200, "PNG"), "16-bit"),
    "16-bit rgb": (png_of_claimed_size(8, 8, bits=16), "16-bit"),
    "a transparent png": (encoded(TRANSPARENT, "PNG"), "transparent"),
    "400 megapixels": (png_of_claimed_size(20_000, 20_000), "too-many-pixels"),
    "30 megapixels": (png_of_claimed_size(6_000, 5_000), "too-many-pixels"),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_what_is_stored_decodes_to_the_pixels_that_were_checked(data: bytes) -> None:
    tile = verify_tile(data, Limits())
    assert tile.pixels_HWC.shape == (96, 96, 3)
    assert tile.pixels_HWC.dtype == np.uint8
    assert np.array_equal(decode_tile(tile.bytes), tile.pixels_HWC)


@pytest.mark.parametrize(("data", "reason"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as refused:
        verify_tile(data, Limits())
    assert refused.value.reason == reason


def test_several_pages_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(TILE).save(buffer, "TIFF", save_all=True, append_images=[Image.fromarray(TILE)])
    with pytest.raises(BadImage, match="several-pages: 2"):
        verify_tile(buffer.getvalue(), Limits())


def test_a_giant_header_allocates_nothing() -> None:
    data = png_of_claimed_size(20_000, 20_000)
    tracemalloc.start()
    with pytest.raises(BadImage, match="too-many-pixels"):
        verify_tile(data, Limits())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_limits_name_the_value_and_the_limit() -> None:
    with pytest.raises(BadImage, match=r"too-many-bytes: .* at most 100 are allowed"):
        verify_tile(GOOD["jpeg"], Limits(max_bytes=100))
    with pytest.raises(BadImage, match="too-many-pixels: 96 x 96, at most 9000 pixels"):
        verify_tile(GOOD["jpeg"], Limits(max_pixels=9000))


def test_png_and_tiff_keep_every_pixel() -> None:
    for name in ("png", "tiff", "tiff with lzw"):
        assert np.array_equal(verify_tile(GOOD[name], Limits()).pixels_HWC, TILE)


def test_the_fast_jpeg_decoder_agrees_with_pillow() -> None:
    with Image.open(io.BytesIO(GOOD["jpeg"])) as image:
        assert np.abs(decode_tile(GOOD["jpeg"]).astype(int) - np.asarray(image.convert("RGB")).astype(int)).max() <= 2


def test_resizing_to_the_same_size_changes_nothing() -> None:
    assert resize_tile(TILE, 96) is TILE
    assert resize_tile(TILE, 64).shape == (64, 64, 3)


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=400), keep=st.integers(0, 400), source=st.sampled_from(sorted(GOOD)))
def test_no_bytes_whatever_do_more_than_be_refused(data: bytes, keep: int, source: str) -> None:
    good = GOOD[source]
    try:
        verify_tile(good[:keep] + data + good[keep + len(data) :], Limits())
    except BadImage as refused:
        event(refused.reason)
