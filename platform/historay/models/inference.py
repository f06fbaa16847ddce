"""The one way from tiles to probabilities, used by evaluation, the endpoint and batch prediction alike."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from historay.data.transforms import Preprocessing, to_input


def predict_logits(model: nn.Module, tiles_BHWC: NDArray[np.uint8], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Returns logits (B, K) of uint8 tiles (B, input_px, input_px, 3), computed in fp32 on the model's device.

    A tile's logits are the same alone and in any batch up to about 1e-5: libraries sum in another order.
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        logits_BK = model(to_input(torch.from_numpy(np.ascontiguousarray(tiles_BHWC)).to(device), preprocessing))
    return np.asarray(logits_BK.float().cpu().numpy())


def probabilities(logits_BK: NDArray[np.float32], temperature: float = 1.0) -> NDArray[np.float64]:
    """Returns softmax(logits / temperature) in float64; rows sum to 1 (Guo et al. 2017, equation 9)."""
    scaled = logits_BK.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))
