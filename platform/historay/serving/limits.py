"""What a request may cost the server: the part of the configuration that the HTTP application reads."""

from typing import Self

from pydantic import Field, model_validator

from historay.config import Config

# Boundary, headers and line ends of one multipart part.
PART_OVERHEAD_BYTES = 512


class RequestConfig(Config):
    """Limits on one request and on the threads that answer it."""

    max_body_bytes: int = Field(default=64 * 2**20, ge=1)
    """Largest request body, bytes; more is answered with 413."""
    max_files: int = Field(default=64, ge=1)
    """Most images in one request; more is answered with 413."""
    max_image_bytes: int = Field(default=16 * 2**20, ge=1)
    """Largest encoded image, bytes."""
    max_pixels: int = Field(default=25_000_000, ge=1)
    """Largest decoded image, width times height in pixels; read from the header before decoding."""
    request_timeout_s: float = Field(default=30.0, gt=0)
    """Longest time from a request's arrival at a replica to its answer, seconds; later is answered with 504."""
    decode_threads: int = Field(default=2, ge=1)
    """Threads of a replica that check and decode images; the network has one of its own."""

    @model_validator(mode="after")
    def _one_image_fits_the_body(self) -> Self:
        if self.max_image_bytes + PART_OVERHEAD_BYTES > self.max_body_bytes:
            raise ValueError(
                f"max_image_bytes={self.max_image_bytes} does not fit into max_body_bytes={self.max_body_bytes}; "
                f"a body needs {PART_OVERHEAD_BYTES} bytes more than its image"
            )
        return self
