"""The one way from tiles to probabilities, used by evaluation, the endpoint and batch prediction alike."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.fx.experimental.optimization import fuse

from historay.data.transforms import Preprocessing, to_input
from historay.models.averaging import D4Average, averaged
from historay.models.equivariant import GroupConv, fold


def predict_logits(model: nn.Module, tiles_BHWC: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Returns logits (B, K) of uint8 tiles (B, input_px, input_px, 3), computed in fp32 on the model's device.

    A tile's logits are the same alone and in any batch up to about 1e-5: libraries sum in another order.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits_BK = model(to_input(torch.from_numpy(np.ascontiguousarray(tiles_BHWC)).to(device), preprocessing))
    return np.asarray(logits_BK.float().cpu().numpy())


def for_inference(model: nn.Module) -> nn.Module:
    """Returns a network that says the same up to rounding (1e-5) in less time: norms go into the convolutions before them.

    Group convolutions become plain ones on the way; an averaging stays around what it averages. The model, in evaluation
    mode, is left as it is; without batch norms it is itself the answer.
    """
    assert not model.training, "batch statistics cannot be folded"
    if isinstance(model, D4Average):
        return averaged(for_inference(model.network), "d4")
    if any(isinstance(module, GroupConv) for module in model.modules()):
        return fold(model)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return model
    fused: nn.Module = fuse(model)
    return fused.eval()


def probabilities(logits_BK: NDArray[np.float32]) -> NDArray[np.float64]:
    """Returns the softmax of logits in float64; rows sum to 1."""
    precise = logits_BK.astype(np.float64)
    exponentials = np.exp(precise - precise.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
