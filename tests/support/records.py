"""What run.json of a small run says."""

from historay.data.transforms import Preprocessing
from historay.training.run import RunRecord

RECORD = RunRecord(
    run="r",
    attempt="a",
    status="running",
    config={"lr": 0.001, "model": "small_cnn", "epochs": 2},
    dataset="d@0",
    dataset_digest="0" * 64,
    accepted_leaks=(),
    classes=("a", "b"),
    architecture="small_cnn",
    dropout=0.0,
    preprocessing=Preprocessing(input_px=32, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    mpp=None,
    seed=0,
    world_size=1,
    steps_per_epoch=3,
    num_steps=None,
    created="2026-01-01T00:00:00+00:00",
    versions={},
)
