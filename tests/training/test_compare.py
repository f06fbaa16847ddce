"""Two models are compared on what each itself said of the test tiles, however often their runs were judged since."""

import pytest
from bundles import PROBES, SPEC, network
from evidence import cohort

from historay.errors import BundleError, NotFound
from historay.evaluation.predictions import Predictions
from historay.models.bundle import BundleSpec, save_bundle
from historay.storage import LocalStore
from historay.training.compare import CompareConfig, CompareResult, compare_models
from historay.training.run import run_key, write_predictions

SOUND, NOISY = cohort(1).predictions, cohort(1, bad_site=3.0).predictions


def saved(store: LocalStore, spec: BundleSpec, report: bytes) -> str:
    return f"demo@{save_bundle(store, spec, network(), {'report.json': report}, PROBES)}"


def evaluated(store: LocalStore, predictions: Predictions, seed: int) -> str:
    """A bundle of the run ``demo``, as an evaluation leaves it."""
    kept = {"test": write_predictions(store, "demo", "test", predictions)}
    return saved(store, SPEC.model_copy(update={"predictions": kept, "seed": seed}), b"{}")


def evaluated_long_ago(store: LocalStore, predictions: Predictions, report: bytes) -> str:
    """The same before predictions were kept by digest: the run has only those of its latest evaluation."""
    store.write(run_key("demo", "predictions-test.parquet"), predictions.to_parquet())
    store.write(run_key("demo", "report.json"), report)
    return saved(store, SPEC, report)


def compared(store: LocalStore, first: str, second: str) -> CompareResult:
    return compare_models(CompareConfig(models=(first, second), store=store.uri, num_resamples=100))


def test_two_models_of_one_run_are_each_compared_by_their_own_predictions(store: LocalStore) -> None:
    sound, noisy = evaluated(store, SOUND, 1), evaluated(store, NOISY, 2)
    difference = compared(store, sound, noisy).comparison.figures["roc_auc"].difference
    assert difference.low is not None
    assert difference.low > 0
    same = compared(store, sound, evaluated(store, SOUND, 3)).comparison.figures["roc_auc"].difference
    assert same.value == 0


def test_a_model_made_before_predictions_were_kept_by_digest_is_compared_while_its_run_was_not_judged_again(
    store: LocalStore,
) -> None:
    old = evaluated_long_ago(store, NOISY, b"{}")
    sound = evaluated(store, SOUND, 1)
    assert (compared(store, sound, old).comparison.figures["roc_auc"].difference.value or 0) > 0
    evaluated_long_ago(store, SOUND, b"{ }")
    with pytest.raises(NotFound, match="was judged again since"):
        compared(store, sound, old)


def test_predictions_that_were_changed_are_refused(store: LocalStore) -> None:
    sound = evaluated(store, SOUND, 1)
    (key,) = [item.key for item in store.list("runs/demo") if "predictions-test" in item.key]
    store.write(key, NOISY.to_parquet())
    with pytest.raises(BundleError, match="was changed after it was written"):
        compared(store, sound, sound)
