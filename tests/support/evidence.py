"""What a pass over a split of a two-class cohort would gather, drawn from a known truth with faults planted on demand."""

from typing import Any

import numpy as np

from historay.evaluation.assessment import Evidence
from historay.evaluation.flow import Flow, SplitCount
from historay.evaluation.predictions import Predictions
from historay.evaluation.report import Provenance

NUM_PATIENTS = 80


def cohort(
    seed: int,
    *,
    num_patients: int = NUM_PATIENTS,
    tiles: int = 25,
    shortcut: float = 0.3,
    sharpness: float = 1.0,
    bad_site: float = 0.0,
    which_bad: int = 0,
    num_sites: int = 4,
    num_features: int = 16,
    families: tuple[str, ...] = ("colour_histogram",),
) -> Evidence:
    """Calibrated probabilities of AUC about 0.93 for ``sharpness`` 1.

    Args:
        seed: of all that is drawn.
        num_patients: each of one of ``num_sites`` sites and two scanners, with two slides.
        tiles: of each patient.
        shortcut: signal of the colour baseline, in standard deviations; the model's own is about 2.
        sharpness: factor on the model's logits; above 1 it is too sure.
        bad_site: standard deviation of noise on the logits at one site.
        which_bad: the number of that site.
        num_sites: of the cohort.
        num_features: of the network; a ResNet-18 has 512.
        families: shortcuts that were tried, all with the same signal.
    """
    generator = np.random.default_rng([7, seed])
    num = num_patients * tiles
    patient = np.repeat(np.arange(num_patients), tiles)
    logit = 3 * generator.normal(size=num) + 0.3 * np.repeat(generator.normal(size=num_patients), tiles)
    labels = (generator.random(num) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    said = sharpness * logit + np.where(patient % num_sites == which_bad, bad_site, 0) * generator.normal(size=num)
    ids = np.array([f"{number:06d}" for number in range(num)])
    predictions = Predictions(
        ids,
        labels,
        _both(said),
        np.array([f"patient-{number:04d}" for number in patient]),
        ("normal", "tumour"),
        slides=np.array([f"patient-{number:04d}-{tile % 2}" for tile, number in enumerate(patient)]),
        sites=np.array([f"site-{number % num_sites}" for number in patient]),
        scanners=np.array([f"scanner-{number % 2}" for number in patient]),
        mpps=np.full(num, 0.5),
    )
    features = np.empty((num, num_features), np.float32)
    for block in np.array_split(features, -(-num // 20_000)):  # doubles of all would be twice the memory
        block[:] = generator.normal(size=block.shape)
    told = {name: _both(shortcut * (2 * labels - 1) + generator.normal(size=num)) for name in families}
    return Evidence(predictions, features, generator.random((num, 9)), generator.random((num, 48)), told)


def provenance(**changes: Any) -> Provenance:
    """Where the figures of such a cohort would come from."""
    values: dict[str, Any] = {
        "model": "m",
        "run": "r",
        "architecture": "small_cnn",
        "num_parameters": 1,
        "weights_sha256": "0" * 64,
        "dataset": "d@0",
        "dataset_digest": "0" * 64,
        "accepted_leaks": (),
        "leaks": (),
        "seed": 0,
        "num_epochs": 1,
        "num_steps": 1,
        "num_workers": 1,
        "training_seconds": 1.0,
        "settings": {"epochs": "1", "monitor": "val_auc", "averaging": "none"},
        "input_px": 96,
        "mpp": 0.5,
        "machine": "a test",
        "versions": {"historay": "0"},
    }
    return Provenance(**{**values, **changes})


def flow() -> Flow:
    """The counts of such a data set."""
    return Flow(
        num_found=6010,
        quarantined={"truncated": 7, "empty": 3},
        num_kept=6000,
        num_duplicates={"identical_within_a_split": 1},
        splits={name: SplitCount(num_tiles=2000, num_patients=NUM_PATIENTS) for name in ("train", "val", "test")},
        by_class={"normal": {"train": 1000}, "tumour": {"train": 1000}},
        split_rule="a test",
    )


def _both(logit_N: np.ndarray) -> np.ndarray:
    positive = 1 / (1 + np.exp(-logit_N))
    return np.column_stack([1 - positive, positive])
