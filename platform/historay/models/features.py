"""What a network sees before it decides: the input of its last linear layer, from the same pass that gives the logits."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from historay.data.transforms import Preprocessing
from historay.models.inference import predict_logits


def predict_logits_and_features(
    model: nn.Module, tiles_BHWC: NDArray[np.uint8], preprocessing: Preprocessing
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Returns logits (B, K), the very ones of ``predict_logits``, and features (B, F), in one forward pass."""
    with _inputs_of(last_linear(model)) as seen:
        logits_BK = predict_logits(model, tiles_BHWC, preprocessing)
    # Several passes are those of an averaging network, whose last layer may as well see the mean.
    features = torch.stack([each.flatten(1).float() for each in seen]).mean(0)
    return logits_BK, np.asarray(features.cpu().numpy())


def last_linear(model: nn.Module) -> nn.Linear:
    """Returns the layer that makes the logits: the last ``nn.Linear`` in the order of registration, in every network here."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collects what reaches the layer from this thread: a server may run the same model in several."""
    seen: list[Tensor] = []
    thread = threading.get_ident()

    def hook(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if threading.get_ident() == thread:
            seen.append(arguments[0])

    handle = layer.register_forward_pre_hook(hook)
    try:
        yield seen
    finally:
        handle.remove()
