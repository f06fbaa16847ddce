"""What every peer serves: the ResNet-18 of the bench's bundle, eager torch in fp32, and one JPEG decoded for it."""

import json
import os
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from safetensors.torch import load_file

from historay.models.zoo import build_model

FOLDER = Path(os.environ["BENCH_BUNDLE"])
SPEC = json.loads((FOLDER / "model.json").read_text())
MAX_BATCH = 16


def load() -> torch.nn.Module:
    torch.set_num_threads(2)
    model = build_model(SPEC["architecture"], len(SPEC["classes"]), SPEC["preprocessing"]["input_px"], 0.0)
    model.load_state_dict(load_file(FOLDER / "model.safetensors"))
    return model.eval()


def decode(jpeg: bytes) -> np.ndarray:
    return simplejpeg.decode_jpeg(jpeg, colorspace="RGB")


def probabilities(model: torch.nn.Module, tiles: list[np.ndarray]) -> list[dict[str, float]]:
    mean, std = (torch.tensor(SPEC["preprocessing"][name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    with torch.inference_mode():
        batch = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)
        found = torch.softmax(model(batch), 1).tolist()
    return [dict(zip(SPEC["classes"], row, strict=True)) for row in found]
