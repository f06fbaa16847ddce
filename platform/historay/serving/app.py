"""The endpoint on Ray Serve: replicas that each hold a verified bundle, behind one HTTP proxy."""

import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from typing import Any

import ray
import torch
from fastapi import FastAPI
from pydantic import Field
from ray import serve as ray_serve

from historay.errors import ConfigError, ServingError
from historay.log import log_event, setup_logging
from historay.models.bundle import load_bundle, read_spec
from historay.models.registry import resolve
from historay.ray_session import connect_ray
from historay.serving.http import API_KEY, Service, build_app, digest_key, make_service
from historay.serving.limits import RequestConfig
from historay.storage import open_store

_START_TIMEOUT_S = 300


class ServeConfig(RequestConfig):
    """Serves a model over HTTP with Ray Serve until Ctrl-C."""

    model: str
    """``name`` (production, else candidate), ``name@alias`` or ``name@version``."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback needs a key in HISTORAY_API_KEY."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    min_replicas: int = Field(default=1, ge=1)
    """Replicas that are always there."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas under load."""
    cpus_per_replica: int = Field(default=1, ge=1)
    """CPUs that Ray sets aside for each replica, and threads of its network."""
    max_ongoing_requests: int = Field(default=16, ge=1)
    """Requests that one replica works on at once."""
    max_queued_requests: int = Field(default=128, ge=1)
    """Requests that wait for a replica; more are answered with 429 and Retry-After."""


_loaded: dict[str, Service] = {}  # of this replica's process


def current_service() -> Service | None:
    """Returns what this replica has loaded, or None while it is loading."""
    return _loaded.get("service")


def load_service(config: ServeConfig, name: str, version: str) -> None:
    """Loads a bundle into this replica's process."""
    setup_logging()
    torch.set_num_threads(config.cpus_per_replica)
    _loaded["service"] = make_service(load_bundle(open_store(config.store), name, version), config)


def serve(config: ServeConfig) -> None:
    """Starts the endpoint, says where it is, and blocks until Ctrl-C or SIGTERM; then shuts down in order."""
    running = start(config)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    url = f"http://{config.host}:{config.port}"
    key = "" if API_KEY not in os.environ else f' -H "Authorization: Bearer ${API_KEY}"'
    print(f"{running} answers at {url}\ntry: curl{key} -F images=@tile.jpg {url}/v1/predict\nCtrl-C ends it", file=sys.stderr)  # noqa: T201
    while not stop.wait(timeout=1.0):
        pass
    log_event("serve stopping")
    ray_serve.shutdown()  # type: ignore[no-untyped-call]


def start(config: ServeConfig) -> str:
    """Starts the endpoint, waits until it is ready, and returns the model's name@version.

    Raises ConfigError without a key on an address that others reach, ServingError if the port is taken or no replica comes up.
    """
    key = os.environ.get(API_KEY)
    if not is_loopback(config.host) and not key:
        raise ConfigError(f"host={config.host} can be reached by others: set {API_KEY}, or listen on 127.0.0.1")
    store = open_store(config.store)
    # The store's own address: a replica stands in another folder, where a relative one leads nowhere.
    config = config.model_copy(update={"store": store.uri})
    name, version = resolve(store, config.model)
    read_spec(store, name, version)
    _refuse_taken_port(config)
    connect_ray()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    ray_serve.start(http_options={"host": config.host, "port": config.port, "request_timeout_s": config.request_timeout_s + 5})
    try:
        ray_serve.run(_application(config, name, version, digest_key(key) if key else None), name="historay", route_prefix="/")
    except (RuntimeError, ray.exceptions.RayError) as error:
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
        raise ServingError(f"no replica of {name}@{version} came up: {error}") from None
    _wait_until_ready(config)
    log_event("serve ready", model=f"{name}@{version}", host=config.host, port=config.port)
    return f"{name}@{version}"


def is_loopback(host: str) -> bool:
    """Tells whether an address is only reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _application(config: ServeConfig, name: str, version: str, key_digest: str | None) -> Any:
    app: FastAPI = build_app(current_service, config, key_digest)

    class Endpoint:
        """One replica."""

        def __init__(self) -> None:
            load_service(config, name, version)

        def check_health(self) -> None:
            if current_service() is None:
                raise ServingError("the model is not loaded")

    deployment = ray_serve.deployment(
        name="endpoint",
        autoscaling_config={"min_replicas": config.min_replicas, "max_replicas": max(config.min_replicas, config.max_replicas)},
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        backpressure_config={"status_code": 429, "retry_after_s": 1},
        ray_actor_options={"num_cpus": config.cpus_per_replica},
    )
    return deployment(ray_serve.ingress(app)(Endpoint)).bind()


def _refuse_taken_port(config: ServeConfig) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ServingError(
                f"cannot listen on {config.host}:{config.port}: {error.strerror}; choose another --port"
            ) from None


def _wait_until_ready(config: ServeConfig) -> None:
    """The proxy answers a moment after the replicas do."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    host = "127.0.0.1" if config.host in {"0.0.0.0", "::"} else config.host  # noqa: S104 only asked, not bound
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex((host, config.port)) == 0:
                return
        time.sleep(0.2)
    raise ServingError(
        f"nothing answers on {config.host}:{config.port} after {_START_TIMEOUT_S} s; see the logs below /tmp/ray"
    )
