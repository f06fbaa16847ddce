"""How the workers of a run exchange gradients: DistributedDataParallel, in bfloat16 where the network runs in it."""

from typing import Any

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

# Buckets keep torch's 25 MiB. Once exchanged, gradients are views of the buckets, not a second copy of them. Batch
# statistics are the first worker's, which all get before validation and not, as by default, in every step.
DDP_SETTINGS: dict[str, Any] = {"gradient_as_bucket_view": True, "forward_sync_buffers": False}


def exchange_in_bf16(model: nn.Module) -> None:
    """Halves the bytes that workers exchange; gradients of bfloat16 weights have its 8 bits before that already.

    NCCL and gloo both add in bfloat16. Does nothing to a network that is not shared by workers.
    """
    if isinstance(model, DistributedDataParallel):
        model.register_comm_hook(None, bf16_compress_hook)
