"""The endpoint as Ray Serve's own config files name it: what stands under ``args`` is a ServeConfig."""

import pytest
from bundles import PROBES, SPEC, network
from ray import serve
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary

from historay.errors import BundleError, ConfigError
from historay.models.bundle import save_bundle
from historay.models.registry import CANDIDATE, set_alias
from historay.serving.app import ServeConfig, application
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
