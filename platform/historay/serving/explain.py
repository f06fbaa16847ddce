"""Heat maps for ``POST /v1/predict?explain=true``: where in an image the evidence for its label lies (Grad-CAM).

A heat map is a PNG of the network's input size whose opacity is the heat, so that it lies over the image as it is:
shown = (1 - s * alpha) * image + s * alpha * colour, with s from 0 to 1 as a slider sets it. In a browser that is an <img>
stretched over the image, whose ``opacity`` is s.

Suffixes: B tiles, H rows, W columns, C channels (RGB).
"""

import base64
import io
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from historay.errors import BundleError
from historay.models.bundle import Bundle
from historay.models.gradcam import grad_cam

_LEVELS = 256


class Explanation(NamedTuple):
    """A heat map as base64 of a PNG, or why there is none in words; the other is None."""

    heatmap_png: str | None
    heatmap_missing: str | None


def explain_tiles(bundle: Bundle, tiles_BHWC: NDArray[np.uint8], labels: Sequence[str]) -> Iterator[Explanation]:
    """Explains each prepared tile's label.

    One tile at a time: the same tile has the same map in any request, and what the backward pass keeps stays small.
    """
    for tile_HWC, label in zip(tiles_BHWC, labels, strict=True):
        class_B = np.array([bundle.spec.classes.index(label)])
        try:
            (heat_HW,) = grad_cam(bundle.model, tile_HWC[None], bundle.spec.preprocessing, class_B)
        except BundleError as error:
            yield Explanation(None, f"{bundle.spec.architecture} cannot be explained: {error}")
            continue
        if heat_HW.any():
            yield Explanation(base64.b64encode(heatmap_png(heat_HW)).decode(), None)
        else:
            yield Explanation(
                None, f"nothing in the image speaks for {label}; it is what the evidence against the others leaves"
            )


def heatmap_png(heat_HW: NDArray[np.float32]) -> bytes:
    """Encodes heat from 0 to 1 as a palette PNG: index and opacity are the heat in 255ths, the colour is cividis."""
    image = Image.fromarray(np.round(heat_HW * (_LEVELS - 1)).astype(np.uint8), mode="P")
    image.putpalette(np.asarray(mpl.colormaps["cividis"](np.arange(_LEVELS), bytes=True))[:, :3].tobytes())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=bytes(range(_LEVELS)))
    return buffer.getvalue()
