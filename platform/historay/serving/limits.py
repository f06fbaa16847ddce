"""What a request may cost the server: the part of the configuration that the HTTP application reads."""

from typing import Self

from pydantic import Field, model_validator

from historay.config import Config
from historay.models.runtime import RuntimeName

# Boundary, headers and line ends of one multipart part.
PART_OVERHEAD_BYTES = 512
# Images in a request with explain=true: each takes a backward pass of its own, while others wait.
MAX_EXPLAINED = 16


class RequestConfig(Config):
    """Limits on one request and on the threads that answer it."""

    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest request body, bytes; more is answered with 413."""
    max_files: int = Field(default=256, ge=1)
    """Most images in one request; more is answered with 413."""
    max_image_bytes: int = Field(default=16 * 2**20, ge=1)
    """Largest encoded image, bytes."""
    max_pixels: int = Field(default=25_000_000, ge=1)
    """Largest decoded image, width times height in pixels; read from the header before decoding."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time from a request's arrival at a replica to its answer, seconds; later is answered with 504."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """Longest time in which a request's body must arrive, seconds; slower is answered with 408."""
    max_requests_per_s: float | None = Field(default=None, gt=0)
    """Requests a second that one key may make of a replica, in the long run; more are answered with 429. None: no limit."""
    request_burst: int = Field(default=32, ge=1)
    """Requests that one key may make at once on top of max_requests_per_s, after a pause."""
    audit_log: str = "stderr"
    """Where a JSON line per request goes, without images or names: stderr, stdout, or a folder that replicas may share."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads of a replica that check and decode images; the network has its own."""
    runtime: RuntimeName = "auto"
    """What runs the network; auto: bfloat16 on a GPU, else OpenVINO, in bfloat16 where the CPU computes in it."""
    max_batch: int = Field(default=16, ge=1)
    """Most tiles in one pass of the network; a pass takes what waits, and waits for nothing."""
    max_queued_tiles: int = Field(default=512, ge=1)
    """Tiles of a replica that wait for the network; more are answered with 429 and Retry-After."""

    @model_validator(mode="after")
    def _one_image_fits_the_body(self) -> Self:
        if self.max_image_bytes + PART_OVERHEAD_BYTES > self.max_body_bytes:
            raise ValueError(
                f"max_image_bytes={self.max_image_bytes} does not fit into max_body_bytes={self.max_body_bytes}; "
                f"a body needs {PART_OVERHEAD_BYTES} bytes more than its image"
            )
        return self
