"""ResNet-50 at 224 px on one GPU, against NVIDIA's 2,470 img/s on an A100: python bench/gpu.py. Needs a CUDA GPU; 5 minutes.

Their figure: DeepLearningExamples, PyTorch ResNet-50 v1.5, mixed precision, one GPU of a DGX A100 80 GB, container 21.03.
The bare loops train on one batch that is on the GPU already; ours begin with uint8 tiles in the CPU's memory.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

from historay.data.transforms import Augmentation, Preprocessing
from historay.models.zoo import build_model
from historay.training.loop import Learner, Recipe, train_one_epoch
from historay.training.optim import build_optimizer, build_schedule

PUBLISHED = 2470.0  # images/s
BATCH, PX, STEPS, CLASSES = 256, 224, 50, 1000


def learner() -> Learner:
    torch.manual_seed(0)
    model = build_model("resnet50", CLASSES, PX).cuda().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, "sgd", 0.1, 0.875, 3e-5)
    return Learner(model, optimizer, build_schedule(optimizer, "constant", 0, STEPS), None)


def rate(epoch: Callable[[int], object]) -> float:
    """Returns images a second of the second of two epochs."""
    epoch(10)
    torch.cuda.synchronize()
    started = time.perf_counter()
    epoch(STEPS)
    torch.cuda.synchronize()
    return STEPS * BATCH / (time.perf_counter() - started)


def bare(*, compiled: bool) -> float:
    """The shortest loop, on one batch that stays on the GPU."""
    one = learner()
    model = torch.compile(one.model) if compiled else one.model
    images = torch.randn(BATCH, 3, PX, PX, device="cuda").contiguous(memory_format=torch.channels_last)
    labels = torch.arange(BATCH, device="cuda") % CLASSES

    def epoch(steps: int) -> None:
        for _ in range(steps):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                loss = F.cross_entropy(model(images), labels)
            one.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            one.optimizer.step()

    return rate(epoch)


def ours(augmentation: Augmentation, accumulate: int = 1) -> float:
    """Our loop on uint8 tiles in the CPU's memory."""
    one = learner()
    tiles = np.random.default_rng(0).integers(0, 256, (BATCH, PX, PX, 3), dtype=np.uint8)
    preprocessing = Preprocessing(input_px=PX, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    recipe = Recipe(preprocessing, augmentation, 0.1, None, None, bf16=True, accumulate=accumulate)
    batch = (tiles, np.arange(BATCH) % CLASSES)
    return rate(lambda steps: train_one_epoch(one, [batch] * steps, recipe, torch.Generator().manual_seed(0)))


def main() -> None:
    """Prints a table, row by row."""
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device on this machine: bench/gpu.py measures nothing without one")
    torch.backends.cudnn.benchmark = True
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; ResNet-50, {PX} px, batch {BATCH}, bf16, channels last\n"
    )
    print("| loop | images/s | of NVIDIA's 2,470 (A100) |\n|---|---|---|")
    measured: dict[str, Callable[[], float]] = {
        "bare": lambda: bare(compiled=False),
        "ours, no augmentation": lambda: ours("none"),
        "ours, d4": lambda: ours("d4"),
        "ours, full": lambda: ours("full"),
        "ours, strong": lambda: ours("strong"),
        "ours, full, accumulate 4": lambda: ours("full", 4),
        "bare, torch.compile (needs a C compiler)": lambda: bare(compiled=True),
    }
    for name, measure in measured.items():
        found = measure()
        print(f"| {name} | {found:,.0f} | {found / PUBLISHED:.2f} |", flush=True)


if __name__ == "__main__":
    main()
