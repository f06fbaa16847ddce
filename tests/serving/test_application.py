"""The endpoint as Ray Serve's own config files name it: what stands under ``args`` is a ServeConfig."""

import threading

import pytest
from bundles import PROBES, SPEC, network
from endpoint import listening
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from historay.errors import BundleError, ConfigError
from historay.models.bundle import Bundle, save_bundle
from historay.models.registry import CANDIDATE, set_alias
from historay.serving import app
from historay.serving.app import ServeConfig, application
from historay.serving.http import build_app
from historay.serving.limits import RequestConfig
from historay.serving.metrics import Metrics, PrometheusCollector
from historay.serving.service import Service, make_service
from historay.storage import LocalStore


@pytest.fixture
def served(store: LocalStore) -> dict[str, object]:
    """Arguments for a model that is in the store."""
    version = save_bundle(store, SPEC, network(), {}, PROBES)
    set_alias(store, SPEC.name, CANDIDATE, version, "a test")
    return {"model": SPEC.name, "store": store.uri}


def test_ray_builds_the_application_from_plain_arguments(served: dict[str, object]) -> None:
    built = call_user_app_builder_with_args_if_necessary(application, {**served, "max_queued_requests": 7})
    assert isinstance(built, serve.Application)
    assert built._bound_deployment.name == "endpoint"  # which the chart's GPU options name
    assert built._bound_deployment.max_queued_requests == 7


def test_arguments_go_through_the_config_unchanged(served: dict[str, object]) -> None:
    config = ServeConfig(**served, max_replicas=3)  # type: ignore[arg-type]
    assert ServeConfig.model_validate(config.model_dump(mode="json")) == config


def test_an_address_that_others_reach_asks_for_the_key(served: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HISTORAY_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="set HISTORAY_API_KEY or keys_file"):
        call_user_app_builder_with_args_if_necessary(application, {**served, "host": "0.0.0.0"})
    monkeypatch.setenv("HISTORAY_API_KEY", "key")
    assert call_user_app_builder_with_args_if_necessary(application, {**served, "host": "0.0.0.0"})


def test_a_model_that_is_not_there_is_named_before_any_replica_starts(store: LocalStore) -> None:
    with pytest.raises(BundleError, match="no model 'missing'"):
        call_user_app_builder_with_args_if_necessary(application, {"model": "missing", "store": store.uri})


def test_metrics_that_cannot_be_handed_over_once_are_handed_over_later(monkeypatch: pytest.MonkeyPatch) -> None:
    mishaps = [RuntimeError("Ray is away"), SystemExit()]

    class Fails(PrometheusCollector):
        def exposition(self) -> bytes:
            raise mishaps.pop(0)

    monkeypatch.setattr(app, "_HAND_OVER_S", 0.0)
    with pytest.raises(SystemExit):
        app._hand_over_for_ever(Metrics(Fails()))
    assert mishaps == []


def test_an_endpoint_has_started_when_a_replica_is_ready_and_not_when_its_proxy_listens() -> None:
    config = RequestConfig(runtime="torch")
    loaded: list[Service] = []
    service = make_service(Bundle(SPEC, network(), "f" * 16, PROBES), config)
    with listening(build_app(lambda: next(iter(loaded), None), config)) as (port, _):
        threading.Timer(1.0, lambda: loaded.append(service)).start()
        app._wait_until_ready(ServeConfig(model="demo", port=port))
    assert loaded
