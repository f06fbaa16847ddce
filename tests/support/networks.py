"""Networks of the zoo with random weights, made fast: torchvision fills 120 million weights of a VGG that we then drop."""

import torch

from historay.models.zoo import build_model


def quick_network(architecture: str, num_classes: int, input_px: int) -> torch.nn.Module:
    """Returns a network in evaluation mode whose activations neither vanish nor explode."""
    with torch.device("meta"):
        model = build_model(architecture, num_classes, input_px)
    model.to_empty(device="cpu")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.ndim > 1 and tensor[0].numel() > 1:
            torch.nn.init.uniform_(tensor, -1, 1).data.mul_((6 / tensor[0].numel()) ** 0.5)
        elif name.endswith(("running_mean", "bias", "num_batches_tracked")):
            torch.nn.init.zeros_(tensor)
        else:
            torch.nn.init.ones_(tensor)
    return model.eval()
