"""Fills the object store of every node of the cluster at RAY_ADDRESS beyond its size, says so, and holds on until told."""

import sys

import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

SIZE = 30 * 2**20


@ray.remote(num_cpus=0)
def filled() -> np.ndarray:
    return np.zeros(SIZE, np.uint8)


if __name__ == "__main__":
    ray.init(logging_level="ERROR", log_to_driver=False)
    held = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        num_objects = int(node["Resources"]["object_store_memory"] // SIZE) + 2
        held += [filled.options(scheduling_strategy=there).remote() for _ in range(num_objects)]
    ray.wait(held, num_returns=len(held), fetch_local=False)
    print("full", flush=True)
    sys.stdin.read()
