"""A small untrained model, to be saved, served and tampered with."""

import numpy as np
import torch

from historay.data.transforms import Preprocessing
from historay.evaluation.operating_point import OperatingPoint
from historay.models.bundle import BundleSpec, make_probes
from historay.models.zoo import build_model

SPEC = BundleSpec(
    name="demo",
    architecture="small_cnn",
    dropout=0.0,
    classes=("normal", "tumour"),
    preprocessing=Preprocessing(input_px=48, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    mpp=0.5,
    operating_point=OperatingPoint(positive_class="tumour", threshold=0.4, rule="a test"),
    dataset="demo@0",
    dataset_digest="0" * 64,
    accepted_leaks=("near-duplicate",),
    run="demo",
    seed=0,
    created="2026-01-01T00:00:00+00:00",
    historay="0",
)


def network() -> torch.nn.Module:
    torch.manual_seed(1)
    return build_model("small_cnn", 2, 48).eval()


PROBES = make_probes(network(), np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8), SPEC.preprocessing)
