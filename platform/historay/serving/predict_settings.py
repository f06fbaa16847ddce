"""The settings of a prediction: a few images on the screen, or millions into Parquet."""

from typing import Annotated, Literal

import tyro
from pydantic import Field, model_validator

from historay.config import Config
from historay.data.schema import Split
from historay.models.runtime import RuntimeName


class PredictConfig(Config):
    """Predicts images, folders or s3:// prefixes with a bundle, or through an endpoint by --url; with --out by the million."""

    images: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Image files, folders of images, CSV or Parquet files with a column path, or s3:// addresses of any."""
    dataset: str | None = None
    """With ``out``, instead of images: ``name`` or ``name@version`` of a data set in the store."""
    split: Split = "test"
    """The data set's tiles to predict."""
    model: str | None = None
    """``name``, ``name@alias`` or ``name@version`` of a bundle in the store."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    url: str | None = None
    """Endpoint to ask instead of a bundle; its key comes from HISTORAY_API_KEY."""
    runtime: RuntimeName = "auto"
    """What runs a bundle's network; auto: bfloat16 on a GPU, else OpenVINO, in bfloat16 where the CPU computes in it."""
    format: Literal["table", "json"] = "table"
    """json prints one object a line."""
    limit: int | None = Field(default=None, ge=1)
    """Stop after so many images."""
    out: str | None = None
    """Folder or s3://bucket/prefix for Parquet, a row per image, by Ray workers; the same command goes on where it stopped."""
    images_per_part: int = Field(default=1024, ge=1)
    """With ``out``: images in one file of the output, which is written whole; of a data set each shard is one."""
    num_workers: int = Field(default=1, ge=1)
    """With ``out``: Ray workers, each with a copy of the network."""
    cpus_per_worker: int = Field(default=2, ge=1)
    """With ``out``: CPUs that Ray sets aside for each worker, and threads of its network."""
    use_gpu: bool = False
    """With ``out``: one GPU per worker."""

    @model_validator(mode="after")
    def _check(self) -> "PredictConfig":
        if not self.images and self.dataset is None:
            raise ValueError("no images: name files, folders or s3:// addresses, or --dataset with --out")
        if (self.model is None) == (self.url is None):
            raise ValueError(f"model={self.model} and url={self.url}: give exactly one of --model and --url")
        if self.out is not None and self.url is not None:
            raise ValueError(f"out={self.out} and url={self.url}: --out runs a bundle in its own workers; give --model")
        if self.dataset is not None and (self.images or self.out is None or self.limit is not None):
            raise ValueError(
                f"dataset={self.dataset}, images={list(self.images)}, out={self.out}, limit={self.limit}: "
                "a data set is predicted whole, into --out, and alone"
            )
        return self
