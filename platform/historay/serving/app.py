"""The endpoint on Ray Serve: replicas that each hold a verified bundle, behind one HTTP proxy."""

import ipaddress
import logging
import os
import signal
import socket
import sys
import threading
import time
from functools import cache
from typing import Any

import ray
import torch
from fastapi import FastAPI
from pydantic import Field
from ray import serve as ray_serve

from historay.errors import ConfigError, ServingError
from historay.log import log_event, setup_logging
from historay.models.bundle import read_spec
from historay.models.registry import resolve
from historay.ray_session import connect_ray
from historay.serving.audit import located
from historay.serving.client import Client
from historay.serving.http import build_app
from historay.serving.keys import API_KEY, KeyRing, open_keys
from historay.serving.limits import RequestConfig
from historay.serving.metrics import Metrics
from historay.serving.ray_metrics import RayCollector
from historay.serving.replica import Replica
from historay.serving.service import Service
from historay.storage import open_store

_START_TIMEOUT_S = 300
# Ray's defaults are 30 s and 600 s. A replica takes about 10 s to come; one that goes too early comes back cold.
_UPSCALE_DELAY_S = 5.0
_DOWNSCALE_DELAY_S = 120.0
_HAND_OVER_S = 5.0
_LOOPBACK_NAMES = {"localhost", "127.0.0.1", "[::1]"}


class ServeConfig(RequestConfig):
    """Serves a model over HTTP with Ray Serve until Ctrl-C."""

    model: str
    """``name`` (production, else candidate), ``name@alias`` or ``name@version``."""
    store: str = "historay-store"
    """Where Historay keeps everything; a local path or s3://bucket/prefix."""
    host: str = "127.0.0.1"
    """Address to listen on; any but loopback needs a key in HISTORAY_API_KEY, or a keys file."""
    keys_file: str | None = None
    """File with the hashes of the keys that are let in (``historay keys``), then these alone; read again when it changes."""
    port: int = Field(default=8000, ge=1, le=65535)
    """Port to listen on."""
    min_replicas: int = Field(default=1, ge=0)
    """Replicas that are always there; with 0 the first request after an idle time waits for a model to be loaded."""
    max_replicas: int = Field(default=1, ge=1)
    """Replicas under load."""
    cpus_per_replica: int = Field(default=1, ge=1)
    """CPUs that Ray sets aside for each replica, and threads of its network."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that one replica works on at once; batches form among them."""
    max_queued_requests: int = Field(default=128, ge=1)
    """Requests that wait for a replica; more are answered with 429 and Retry-After."""
    alias_poll_s: float = Field(default=10.0, gt=0)
    """How often a replica looks whether its alias names another version, seconds; a pinned version never changes."""


_replicas: list[Replica] = []  # of this process: at most one


def current_service() -> Service | None:
    """Returns what this replica has loaded, or None while it is loading."""
    return _replicas[0].current() if _replicas else None


def start_replica(config: ServeConfig, name: str, version: str) -> None:
    """Loads a bundle into this replica's process and follows the alias that named it."""
    setup_logging()
    torch.set_num_threads(config.cpus_per_replica)
    metrics = replica_metrics()
    replica = Replica(config.store, config.model, config, config.cpus_per_replica, metrics)
    replica.load(name, version)
    _replicas[:] = [replica]
    replica.follow(config.alias_poll_s)
    threading.Thread(target=_hand_over_for_ever, args=(metrics,), name="metrics", daemon=True).start()


@cache
def replica_metrics() -> Metrics:
    """Returns the numbers of this replica's process, which leave it through Ray."""
    return Metrics(RayCollector())


def _hand_over_for_ever(metrics: Metrics) -> None:
    """Nobody asks a replica for its numbers, so that it hands them to Ray now and then."""
    while True:
        time.sleep(_HAND_OVER_S)
        try:
            metrics.exposition()
        except Exception as error:  # whatever it is, the next look may succeed
            log_event("WARNING metrics not handed over", because=error)


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
    config, name, version, keys = _prepare(config)
    _refuse_taken_port(config)
    connect_ray()
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    http = {"host": config.host, "port": config.port, "request_timeout_s": config.request_timeout_s + 5}
    try:
        ray_serve.start(http_options=http)
        ray_serve.run(_application(config, name, version, keys), name="historay", route_prefix="/")
    except (RuntimeError, ray.exceptions.RayError) as error:
        ray_serve.shutdown()  # type: ignore[no-untyped-call]
        raise ServingError(f"no replica of {name}@{version} came up: {error}") from None
    _wait_until_ready(config)
    log_event("serve ready", model=f"{name}@{version}", host=config.host, port=config.port)
    return f"{name}@{version}"


def application(config: ServeConfig) -> Any:
    """Builds the endpoint for Ray Serve's config files: ``import_path: historay.serving.app:application``, ``args: {...}``.

    Ray makes the ServeConfig from the args; the proxy's own address stands in the config file. Raises as ``start`` does.
    """
    return _application(*_prepare(config))


def is_loopback(host: str) -> bool:
    """Tells whether an address is only reached from this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _prepare(config: ServeConfig) -> tuple[ServeConfig, str, str, KeyRing | None]:
    """Returns the config with the store's full address, the model's name and version, and the keys."""
    keys = open_keys(config.keys_file)
    if not is_loopback(config.host) and keys is None:
        raise ConfigError(f"host={config.host} can be reached by others: set {API_KEY} or keys_file, or listen on 127.0.0.1")
    store = open_store(config.store)
    # Absolute addresses: a replica stands in another folder, where relative ones lead nowhere.
    config = config.model_copy(update={"store": store.uri, "audit_log": located(config.audit_log)})
    name, version = resolve(store, config.model)
    read_spec(store, name, version)
    return config, name, version, keys


def _application(config: ServeConfig, name: str, version: str, keys: KeyRing | None) -> Any:
    def app() -> FastAPI:  # called in each replica: metrics and the audit log's thread belong to its process
        hosts = _LOOPBACK_NAMES | {config.host} if keys is None else None
        return build_app(current_service, config, keys, replica_metrics(), hosts)

    class Endpoint:
        """One replica."""

        def __init__(self) -> None:
            start_replica(config, name, version)

        def check_health(self) -> None:
            if current_service() is None:
                raise ServingError("the model is not loaded")

    deployment = ray_serve.deployment(
        name="endpoint",
        autoscaling_config={
            "min_replicas": config.min_replicas,
            "max_replicas": max(config.min_replicas, config.max_replicas),
            # Half of what one works on: a replica that comes in time finds the others not yet full.
            "target_ongoing_requests": config.max_ongoing_requests / 2,
            "upscale_delay_s": _UPSCALE_DELAY_S,
            "downscale_delay_s": _DOWNSCALE_DELAY_S,
        },
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


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def _wait_until_ready(config: ServeConfig) -> None:
    """The proxy listens a moment before it knows a replica; where there may be none, that it listens is all there is."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    host = "127.0.0.1" if config.host in {"0.0.0.0", "::"} else config.host  # noqa: S104 only asked, not bound
    with Client(f"http://{f'[{host}]' if ':' in host else host}:{config.port}") as client:
        while time.monotonic() < deadline:
            if client.is_ready() or (config.min_replicas == 0 and _listens(host, config.port)):
                return
            time.sleep(0.2)
    raise ServingError(
        f"nothing answers on {config.host}:{config.port} after {_START_TIMEOUT_S} s; see the logs below /tmp/ray"
    )
