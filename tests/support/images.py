"""Images of every kind that a lab's archive holds, good and bad."""

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage


def texture(seed: int, px: int = 96) -> NDArray[np.uint8]:
    """A smooth random texture in tissue colours, different for each seed."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(px, px, 3)), (px / 24, px / 24, 0))
    field = (field - field.mean()) / field.std()
    return np.clip(np.array([190, 130, 180]) + 35 * field, 0, 255).astype(np.uint8)


def encoded(pixels: NDArray[np.generic], form: str = "JPEG", mode: str | None = None, **options: object) -> bytes:
    image = Image.fromarray(pixels)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, form, **options)
    return buffer.getvalue()


def png_of_claimed_size(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG of a few bytes whose header claims any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    rows = zlib.compress(b"".join(b"\0" + bytes(width * 3 * bits // 8) for _ in range(height))) if width < 100 else b""
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
