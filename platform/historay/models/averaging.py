"""Test-time averaging over the eight symmetries of the square, as a network around a network."""

from typing import Literal

import torch
from torch import Tensor, nn

from historay.data.transforms import apply_d4

Averaging = Literal["none", "d4"]


class D4Average(nn.Module):
    """Says the mean of the logits that a network gives for a tile's four quarter turns and their mirror images.

    Exactly the same for a turned tile up to rounding, at eight times the cost. The mean is of logits, so that the last
    layer, being linear, may as well see the mean of its inputs.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tiles_BCHW: Tensor) -> Tensor:
        """Maps (B, 3, side, side) to logits (B, K)."""
        return torch.stack([self.network(apply_d4(tiles_BCHW, element)) for element in range(8)]).mean(0)


def averaged(network: nn.Module, averaging: Averaging) -> nn.Module:
    """Puts the averaging around a network, in its mode."""
    return D4Average(network).train(network.training) if averaging == "d4" else network


def without_averaging(model: nn.Module) -> nn.Module:
    """Returns the network itself: its weights are what a bundle keeps, and it is what can be explained."""
    return model.network if isinstance(model, D4Average) else model
