"""What is to be predicted is read image by image; one that cannot be used is told from the others, and why."""

import os

import pytest

from historay.errors import BadImage
from historay.serving.inputs import read_input
from historay.storage import LocalStore


def test_an_image_is_read_and_one_that_is_absent_or_too_large_is_refused_with_the_reason(store: LocalStore) -> None:
    store.write("tile.jpg", b"tile")
    store.write("slide.tif", b"")
    os.truncate(store.locate("slide.tif"), 2**40)  # a hole: far more than any machine's memory
    assert read_input(store, "tile.jpg") == b"tile"
    for key, reason in (("slide.tif", "too-many-bytes"), ("gone.jpg", "unreadable")):
        with pytest.raises(BadImage) as refused:
            read_input(store, key)
        assert refused.value.reason == reason
