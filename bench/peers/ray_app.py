"""Ray Serve by its defaults: its Python proxy, one replica, eager torch, one request after the other."""

import sys
import time

import network
import ray
from ray import serve
from starlette.requests import Request


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 2})
class Tiles:
    def __init__(self) -> None:
        self.model = network.load()

    async def __call__(self, request: Request) -> dict[str, float]:
        return network.probabilities(self.model, [network.decode(await request.body())])[0]


if __name__ == "__main__":
    ray.init(address="local", num_cpus=4, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Tiles.bind())
    while True:
        time.sleep(1)
