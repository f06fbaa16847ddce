"""The settings of a training run."""

from typing import Literal

from pydantic import Field, model_validator

from historay.config import Config, Name
from historay.data.schema import LeakKind
from historay.data.stain import StainMethod
from historay.data.transforms import Augmentation
from historay.training.optim import OptimizerName, ScheduleName
from historay.training.run import Logger

# Where and how a run is carried out may change between its attempts; what is trained may not.
MAY_CHANGE = {"store", "max_failures", "logger", "cache_gib", "cpus_per_worker", "min_workers", "hang_timeout_s"}
Monitor = Literal["val_auc", "val_loss", "val_accuracy", "val_balanced_accuracy"]


class TrainConfig(Config):
    """Trains a network from random weights with Ray Train; the same command resumes a broken run."""

    run: Name
    """What the run is called in the store; the same name and settings go on where it stopped."""
    dataset: str
    """``name`` for the newest version of a data set, or ``name@version``."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    model: str = "small_cnn"
    """Architecture: small_cnn, p4m_resnet (which no turn or flip of a tile changes), or a torchvision name such as resnet18,
    densenet121, efficientnet_b0, convnext_tiny."""
    epochs: int = Field(default=10, ge=1)
    """Passes over the training tiles."""
    batch_size: int = Field(default=128, ge=1)
    """Tiles per step over all workers together; a last, smaller batch of an epoch is left out."""
    accumulate: int = Field(default=1, ge=1)
    """Parts in which each worker runs its share of a batch, for one that does not fit its memory; the step is the same up to
    rounding, but batch norm sees a part at a time."""
    optimizer: OptimizerName = "adamw"
    """sgd has Nesterov momentum."""
    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate, reached after the warm-up."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd, beta1 of adam and adamw."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On the weights of convolutions and linear layers only; about 5e-4 suits sgd."""
    schedule: ScheduleName = "cosine"
    """How the learning rate falls after the warm-up."""
    warmup_epochs: float = Field(default=1.0, ge=0)
    """Epochs over which the learning rate rises from 0."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target that is spread over all classes."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Before the last layer."""
    class_weights: Literal["none", "balanced"] = "none"
    """balanced weighs each class by the inverse of its number of training tiles."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of the gradient."""
    ema_decay: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of a moving average of the weights, which is then what is judged; 0.999 suits 1,000 steps and more."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after so many epochs without a better value of ``monitor``."""
    monitor: Monitor = "val_auc"
    """What makes an epoch the best, on the validation split."""
    augment: Augmentation = "full"
    """d4 turns and flips; full also jitters the stain; strong jitters it more, mixes colours, blurs, compresses as JPEG."""
    stain_normalisation: StainMethod = "none"
    """Gives every tile, in training and serving, the colours of the first training tiles; costs what colour tells."""
    input_px: int | None = Field(default=None, ge=32)
    """Side to which tiles are resized; the data set's own tile size if it has one."""
    num_workers: int = Field(default=2, ge=1)
    """Ray Train workers, each with a copy of the network (DDP)."""
    min_workers: int | None = Field(default=None, ge=1)
    """Go on with as few workers while nodes are lost, and with ``num_workers`` again when they are back; else wait for all."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs that Ray sets aside for each worker."""
    use_gpu: bool = False
    """One GPU per worker."""
    bf16: bool = True
    """Run forward and backward under bfloat16 autocast, and exchange gradients in it; weights stay float32."""
    max_failures: int = Field(default=3, ge=0)
    """How often lost workers are replaced, each time from the last checkpoint."""
    hang_timeout_s: int = Field(default=600, ge=1)
    """How long workers wait for one that hangs before all are replaced; more than one may start or read later than another."""
    cache_gib: float = Field(default=8.0, ge=0)
    """Memory of each worker for decoded tiles. A larger share is kept on local disk, or if that is full, and with 0, decoded in
    each epoch."""
    seed: int = 0
    """Decides initial weights, order, augmentation and dropout."""
    accept_leaks: tuple[LeakKind, ...] = ()
    """Kinds of leak to train in spite of; stamped on everything downstream."""
    logger: Logger = "none"
    """Where metrics go besides metrics.jsonl; mlflow, which gets the bundle too, is the one at MLFLOW_TRACKING_URI."""

    @model_validator(mode="after")
    def _check(self) -> "TrainConfig":
        if self.batch_size % self.num_workers:
            raise ValueError(
                f"batch_size={self.batch_size} and num_workers={self.num_workers}: the batch is shared out evenly, "
                "so it must be a multiple of the workers"
            )
        if self.batch_size // self.num_workers % self.accumulate:
            raise ValueError(
                f"batch_size={self.batch_size}, num_workers={self.num_workers} and accumulate={self.accumulate}: a worker's "
                "share of the batch is split evenly, so the batch must be a multiple of workers times parts"
            )
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(f"min_workers={self.min_workers} and num_workers={self.num_workers}: the fewest are more than all")
        if self.warmup_epochs >= self.epochs and self.schedule != "constant":
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} and epochs={self.epochs}: the warm-up must end before the run"
            )
        return self
