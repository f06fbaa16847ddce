"""Image bytes to pixels: the strict check at ingest, and the fast decoding that training, evaluation and serving share."""

import hashlib
import io
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from historay.errors import BadImage

Pixels = NDArray[np.uint8]

_FORMATS = ("JPEG", "PNG", "TIFF")
_MODES = {"RGB", "L", "1", "P", "PA", "LA", "RGBA"}
_DEEP_MODES = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}
_JPEG_START = b"\xff\xd8"


class Limits(BaseModel):
    """What one image may cost; both are read from the header, before anything is decoded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_bytes: int = 64 * 2**20
    max_pixels: int = 25_000_000


class VerifiedTile(NamedTuple):
    """An image that was decoded in full: what is stored of it, and its pixels."""

    bytes: bytes  # JPEG or PNG as found, anything else as lossless PNG
    pixels_HWC: Pixels  # RGB
    width: int
    height: int
    sha256: str  # of the file as found

    @property
    def pixels_sha256(self) -> str:
        """Digest of size and pixels, the same for every file that holds the same image."""
        return hashlib.sha256(f"{self.width}x{self.height}:".encode() + self.pixels_HWC.tobytes()).hexdigest()


def verify_tile(data: bytes, limits: Limits) -> VerifiedTile:
    """Decodes one JPEG, PNG or TIFF in full, 8 bits, grey or RGB; raises BadImage with a reason on anything else.

    An opaque alpha channel is dropped and a palette resolved; CMYK, 16 bits, transparency and several pages are refused.
    """
    if not data:
        raise BadImage("empty: the file has no bytes")
    if len(data) > limits.max_bytes:
        raise BadImage(f"too-many-bytes: {len(data)} bytes, at most {limits.max_bytes} are allowed")
    try:
        image = _opened(data)
        _check_header(image, data[:32], limits)
        kept, pixels = _decoded(image, data)
    except BadImage:
        raise
    except Exception as error:  # on damaged bytes Pillow's readers raise whatever their parsing trips over
        raise BadImage(f"truncated: {type(error).__name__}: {error}") from None
    height, width, _ = pixels.shape
    return VerifiedTile(kept, pixels, width, height, hashlib.sha256(data).hexdigest())


def decode_tile(data: bytes) -> Pixels:
    """Decodes stored JPEG or PNG bytes to (rows, columns, 3) uint8 RGB; BadImage if they are damaged."""
    try:
        if data.startswith(_JPEG_START):
            return np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB"))
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return np.asarray(image.convert("RGB"))
    except (ValueError, OSError, SyntaxError) as error:
        raise BadImage(f"truncated: {error}") from None


def decode_tile_into(data: bytes, tile_HWC: Pixels) -> None:
    """Decodes stored bytes into a square tile's place, resized if need be; a JPEG of that very size without a copy."""
    if data.startswith(_JPEG_START) and tile_HWC.flags.c_contiguous:
        try:
            if simplejpeg.decode_jpeg_header(data)[:2] == tile_HWC.shape[:2]:
                simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=tile_HWC)
                return
        except ValueError as error:
            raise BadImage(f"truncated: {error}") from None
    tile_HWC[...] = resize_tile(decode_tile(data), tile_HWC.shape[0])


def resize_tile(pixels_HWC: Pixels, input_px: int) -> Pixels:
    """Resizes to a square of ``input_px`` pixels, bilinear with antialiasing; the same array if it has that size already."""
    if pixels_HWC.shape[:2] == (input_px, input_px):
        return pixels_HWC
    return np.asarray(Image.fromarray(pixels_HWC).resize((input_px, input_px), Image.Resampling.BILINEAR))


def encode_png(pixels_HWC: Pixels) -> bytes:
    """Encodes (rows, columns, 3) uint8 RGB as PNG, without loss."""
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _opened(data: bytes) -> Image.Image:
    """Reads the header only."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadImage(f"not-an-image: {len(data)} bytes that are no JPEG, PNG or TIFF") from None
    except Image.DecompressionBombError:
        raise BadImage("too-many-pixels: the header claims more pixels than any tile has") from None


def _check_header(image: Image.Image, header: bytes, limits: Limits) -> None:
    width, height = image.size
    if width * height > limits.max_pixels:
        raise BadImage(f"too-many-pixels: {width} x {height}, at most {limits.max_pixels} pixels are allowed")
    if image.mode in {"CMYK", "YCCK"}:
        raise BadImage("cmyk: convert it to RGB with its colour profile first")
    if image.mode in _DEEP_MODES or _bits_per_channel(image, header) > 8:
        raise BadImage(f"16-bit: mode {image.mode}; convert it to 8 bits first, so that the scaling is yours")
    if image.mode not in _MODES:
        raise BadImage(f"unsupported-mode: {image.mode}; use RGB or grey, 8 bits")
    if getattr(image, "n_frames", 1) > 1:
        raise BadImage(f"several-pages: {getattr(image, 'n_frames', 1)} pages or frames; a tile has one")


def _bits_per_channel(image: Image.Image, header: bytes) -> int:
    """Pillow cuts 16-bit RGB to 8 bits without a word, so the header is asked itself: IHDR byte 8, or TIFF tag 258."""
    if image.format == "PNG":
        return header[24]
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return int(max(image.tag_v2.get(258, (8,))))
    return 8


def _decoded(image: Image.Image, data: bytes) -> tuple[bytes, Pixels]:
    """Returns the bytes to store and the RGB pixels."""
    if image.format == "JPEG":
        # Strict: libjpeg fills what is missing with grey and only warns; a warning is a damaged file.
        return data, np.asarray(simplejpeg.decode_jpeg(data, colorspace="RGB", strict=True))
    image.load()
    if image.has_transparency_data:
        alpha = np.asarray(image.convert("RGBA"))[..., 3]
        if int(alpha.min()) < 255:
            raise BadImage(f"transparent: alpha goes down to {int(alpha.min())}; flatten it onto white first")
    pixels = np.array(image.convert("RGB"))
    plain = image.format == "PNG" and image.mode in {"RGB", "L"}
    return (data if plain else encode_png(pixels)), pixels
