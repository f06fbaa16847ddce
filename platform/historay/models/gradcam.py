"""Where in a tile the evidence for a class lies (Grad-CAM, Selvaraju et al. 2017), and its picture over the tile.

Suffixes: B tiles, K classes, C channels, H rows, W columns of the tile, h rows and w columns of the feature map.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from historay.data.transforms import Preprocessing, to_input
from historay.errors import BundleError
from historay.models.averaging import without_averaging

# Two by two would only name a corner. All networks of the zoo shrink by 32, so from 96 px on their last map is taken.
_MIN_SIDE = 3
_OPACITY = 0.5
# Luminance of ITU-R BT.601, as Pillow makes grey.
_GREY = np.array([0.299, 0.587, 0.114])


def grad_cam(
    model: nn.Module, tiles_BHWC: NDArray[np.uint8], preprocessing: Preprocessing, class_B: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns each tile's heat for its class (B, H, W), 0 where nothing speaks for it, 1 at the tile's hottest pixel.

    The map looked at is the last of at least 3 x 3 pixels that any layer puts out, in the order of execution: the input
    of the pooling over space. The gradient is that of log(p / (1 - p)) and not of the logit, since what raises all
    logits alike is no evidence. Heat is relative to its own tile: two tiles cannot be compared by it. The model must be
    in evaluation mode; its weights need no gradient and get none; an averaging
    network is asked about the tile as it is. Raises BundleError for a network without such a map.
    """
    assert not model.training, "batch statistics would mix the tiles"
    model = without_averaging(model)
    device = next(model.parameters()).device
    tiles = torch.from_numpy(np.ascontiguousarray(tiles_BHWC)).to(device)
    with torch.enable_grad(), _last_map_of(model) as seen:
        logits_BK = model(to_input(tiles, preprocessing).requires_grad_())
        if not seen:
            raise BundleError(f"no layer puts out a map of at least {_MIN_SIDE} x {_MIN_SIDE} pixels, which Grad-CAM looks at")
        (map_BChw,) = seen
        odds = _log_odds(logits_BK, torch.from_numpy(class_B).to(device))
        (gradient_BChw,) = torch.autograd.grad(odds.sum(), map_BChw)
    with torch.no_grad():
        heat_Bhw = (gradient_BChw.mean(dim=(2, 3), keepdim=True) * map_BChw).sum(dim=1, keepdim=True).relu().float()
        heat_BHW = F.interpolate(heat_Bhw, size=tuple(tiles.shape[1:3]), mode="bilinear", align_corners=False).squeeze(1)
        hottest = heat_BHW.amax(dim=(1, 2), keepdim=True)
        return np.asarray(torch.where(hottest > 0, heat_BHW / hottest, 0.0).cpu().numpy())


def overlay(tile_HWC: NDArray[np.uint8], heat_HW: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Lays heat over a tile, which turns grey: blue is cold, yellow is hot (cividis, Nunez et al. 2018).

    Its lightness grows evenly with the heat, and it looks nearly the same with every common colour vision deficiency.
    """
    grey_HW1 = (tile_HWC @ _GREY)[..., None]
    colour_HWC = 255 * np.asarray(mpl.colormaps["cividis"](heat_HW))[..., :3]
    return np.asarray((1 - _OPACITY) * grey_HW1 + _OPACITY * colour_HWC).round().astype(np.uint8)


def _log_odds(logits_BK: Tensor, class_B: Tensor) -> Tensor:
    """Returns log(p / (1 - p)) of each row's class, which stays finite where p rounds to 1."""
    chosen = F.one_hot(class_B, logits_BK.shape[1]).bool()
    return logits_BK[chosen] - logits_BK.masked_fill(chosen, -torch.inf).logsumexp(dim=1)


@contextmanager
def _last_map_of(model: nn.Module) -> Iterator[list[Tensor]]:
    """Keeps the last large enough map that a layer put out in this thread: a server may run the model in several."""
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def hook(_: nn.Module, __: Any, output: Any) -> None:
        is_map = isinstance(output, Tensor) and output.ndim == 4 and min(output.shape[2:]) >= _MIN_SIDE
        if is_map and threading.get_ident() == thread:
            seen[:] = [output]

    handles = [module.register_forward_hook(hook) for module in model.modules() if module is not model]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
