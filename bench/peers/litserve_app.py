"""LitServe as its documentation has it: one worker, dynamic batches of up to 16 that wait 2 ms at most."""

import sys
from typing import Any

import litserve
import network
from fastapi import Request


class Tiles(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 LitServe's own signature
        self.model = network.load()

    def decode_request(self, request: Request) -> Any:
        return network.decode(request["image"].file.read())

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, inputs: list[Any]) -> list[dict[str, float]]:
        return network.probabilities(self.model, inputs)

    def unbatch(self, output: list[dict[str, float]]) -> list[dict[str, float]]:
        return output

    def encode_response(self, output: dict[str, float]) -> dict[str, float]:
        return output


if __name__ == "__main__":
    api = Tiles(max_batch_size=network.MAX_BATCH, batch_timeout=0.002)
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning"
    )
