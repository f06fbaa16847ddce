"""What compression and scanner leave on a tile, whatever the tissue: quantisation, subsampling, block edges, noise.

Tiles of two archives saved at two qualities are told apart by this alone, and so are their labels if each archive has a class.
"""

import io
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from historay.data.decode import decode_tile
from historay.errors import BadImage
from historay.evaluation.metrics import Floats

_BLOCK = 8  # side of a JPEG block in pixels
_LOSSLESS = (1,) * _BLOCK**2  # a quantisation step of 1 loses nothing
# 64 steps to the mean of each of 15 diagonals of like frequency: every table in use falls smoothly across them.
_DIAGONAL = np.add.outer(np.arange(_BLOCK), np.arange(_BLOCK)).ravel()
_TO_DIAGONALS = (_DIAGONAL[:, None] == np.arange(2 * _BLOCK - 1)) / np.bincount(_DIAGONAL)
_LEVEL = 0.1  # of 255: keeps the logarithm of a blank tile's steps finite
_SMOOTHEST = 0.1  # share of the blocks in which noise is not mistaken for tissue


class Header(NamedTuple):
    """What the first bytes of an image file say; nothing is decoded."""

    format: str  # JPEG, PNG or TIFF
    width: int
    height: int
    luma_steps: tuple[int, ...]  # 64 quantisation steps, row by row; 1 where nothing is lost
    chroma_steps: tuple[int, ...]  # 1 for a grey image
    subsampling: tuple[int, int]  # pixels of luma per chroma value, horizontally and vertically; (2, 2) is 4:2:0


def read_header(data: bytes) -> Header:
    """Reads the header of JPEG, PNG or TIFF bytes; BadImage on anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "TIFF")) as image:
            return _of_image(image)
    except OSError as error:
        raise BadImage(f"not-an-image: {error}") from None


def jpeg_artefacts(tiles_BHWC: NDArray[np.uint8], encoded: list[bytes], headers: list[Header]) -> Floats:
    """Returns log quantisation steps, subsampling, bytes per pixel, block edges and noise of RGB tiles: (B, 39).

    Block edges and noise are of the pixels as stored: a tile whose size is not its header's was resized, and is decoded anew.
    """
    stored = (tiles_BHWC.shape[2], tiles_BHWC.shape[1])
    if all((header.width, header.height) == stored for header in headers):
        in_pixels = _in_pixels(tiles_BHWC)
    else:
        in_pixels = np.concatenate([_in_pixels(decode_tile(data)[None]) for data in encoded])
    sizes = zip(encoded, headers, strict=True)
    bytes_per_pixel = np.array([[len(data) / (header.width * header.height)] for data, header in sizes])
    steps = np.log([(header.luma_steps, header.chroma_steps) for header in headers]) @ _TO_DIAGONALS
    subsampling = np.array([header.subsampling for header in headers], dtype=np.float64)
    return np.hstack([steps.reshape(len(headers), -1), subsampling, np.log(bytes_per_pixel), in_pixels])


def block_edges(plane_BHW: NDArray[np.float32]) -> Floats:
    """Returns how much steeper brightness steps at every 8th pixel than elsewhere, as logarithms: (B, 4).

    At the file's own grid, along rows and columns; and at the steepest of the 8 offsets, as an earlier compression leaves them.
    """
    by_axis = [np.abs(np.diff(plane_BHW, axis=axis)).mean(axis=3 - axis, dtype=np.float64) for axis in (1, 2)]
    return np.hstack([_edges_along(steps) for steps in by_axis])


def noise_level(plane_BHW: NDArray[np.float32]) -> Floats:
    """Returns the standard deviation of noise in levels of 255, of the tile and of its smoothest blocks: (B, 2).

    By the mean absolute response to a mask that is blind to planes (Immerkaer 1996, Fast noise variance estimation).
    """
    response = np.abs(np.diff(np.diff(plane_BHW, n=2, axis=1), n=2, axis=2)) * np.sqrt(np.pi / 2) / 6
    if not response[0].size:  # fewer than 3 pixels a side
        return np.zeros((len(response), 2))
    num, rows, columns = (size - size % _BLOCK if axis else size for axis, size in enumerate(response.shape))
    whole = response.mean(axis=(1, 2), dtype=np.float64)
    if not rows * columns:
        return np.column_stack([whole, whole])
    blocks = response[:, :rows, :columns].reshape(num, rows // _BLOCK, _BLOCK, columns // _BLOCK, _BLOCK)
    smoothest = np.quantile(blocks.mean(axis=(2, 4)).reshape(num, -1), _SMOOTHEST, axis=1)
    return np.column_stack([whole, smoothest])


def _of_image(image: Image.Image) -> Header:
    luma, chroma, subsampling = _LOSSLESS, _LOSSLESS, (1, 1)
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        layers = image.layer  # (number, horizontal sampling, vertical sampling, table)
        luma = tuple(image.quantization[layers[0][3]])
        if len(layers) > 1:
            chroma = tuple(image.quantization[layers[1][3]])
            subsampling = (layers[0][1] // layers[1][1], layers[0][2] // layers[1][2])
    return Header(str(image.format), image.width, image.height, luma, chroma, subsampling)


def _in_pixels(tiles_BHWC: NDArray[np.uint8]) -> Floats:
    plane_BHW = tiles_BHWC[..., 1].astype(np.float32)  # green is most of the luma
    return np.hstack([block_edges(plane_BHW), np.log(_LEVEL + noise_level(plane_BHW))])


def _edges_along(steps_BX: Floats) -> Floats:
    """Mean step at the file's own grid and at the steepest offset against the mean step of all others, as logarithms."""
    num, length = steps_BX.shape
    if length < _BLOCK:
        return np.zeros((num, 2))
    offset_means = np.stack([steps_BX[:, offset::_BLOCK].mean(axis=1) for offset in range(_BLOCK)], axis=1)
    others = (offset_means.sum(axis=1, keepdims=True) - offset_means) / (_BLOCK - 1)
    ratios = np.log((offset_means + _LEVEL) / (others + _LEVEL))
    return np.column_stack([ratios[:, -1], ratios.max(axis=1)])  # pixel 7 to 8 is the file's own grid
