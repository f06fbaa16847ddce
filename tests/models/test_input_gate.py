"""The gate lets pass what validation holds, names what it does not, and says the same of a tile in any batch."""

import numpy as np
import pytest
from bundles import PROBES, SPEC, network
from tissue import Tiles, grey, marked, tissue

from historay.data.corruptions import corrupt
from historay.data.transforms import Preprocessing
from historay.errors import DataError
from historay.evaluation.tile_statistics import tile_statistics
from historay.models.bundle import CARD, load_bundle, save_bundle
from historay.models.features import predict_logits_and_features
from historay.models.input_gate import FeatureSpace, InputGate, Rejection, fit_input_gate
from historay.storage import LocalStore

VALIDATION, FRESH = tissue(1, 600), tissue(2, 200)
PREPROCESSING = Preprocessing(input_px=96, mean=(0.7, 0.5, 0.7), std=(0.2, 0.2, 0.2))
NETWORK = network()


def features_of(tiles: Tiles) -> np.ndarray:
    return predict_logits_and_features(NETWORK, tiles, PREPROCESSING)[1]


@pytest.fixture(scope="module")
def fitted() -> tuple[InputGate, FeatureSpace]:
    return fit_input_gate(tile_statistics(VALIDATION), features_of(VALIDATION), None)


def judged(fitted: tuple[InputGate, FeatureSpace], tiles: Tiles) -> list[tuple[Rejection, ...]]:
    gate, space = fitted
    return gate.judge(tile_statistics(tiles), features_of(tiles), space)


def share_of(fitted: tuple[InputGate, FeatureSpace], tiles: Tiles, code: str | None = None) -> float:
    """Share of tiles that are rejected, for this reason if one is given."""
    found = [{reason.code for reason in reasons} for reasons in judged(fitted, tiles)]
    return float(np.mean([bool(codes) if code is None else code in codes for codes in found]))


def test_validation_passes_as_promised_and_fresh_tiles_of_the_site_nearly_so(fitted: tuple[InputGate, FeatureSpace]) -> None:
    assert share_of(fitted, VALIDATION) <= 0.01
    assert share_of(fitted, FRESH) <= 0.04  # 1 % in expectation; 8 of 200 have a chance below 0.1 %


@pytest.mark.parametrize(
    ("code", "tiles"),
    [
        ("not-he", grey(FRESH)),
        ("not-he", 255 - FRESH),
        ("not-he", np.random.default_rng(0).integers(0, 256, (50, 96, 96, 3), dtype=np.uint8)),
        ("not-he", FRESH[..., [1, 0, 2]]),
        ("blurred", corrupt(FRESH, "blur", 4, 0)),
        ("pen", marked(FRESH, (20, 150, 60))),
        ("pen", marked(FRESH, (30, 50, 200))),
        ("blank", np.random.default_rng(0).integers(240, 256, (50, 96, 96, 3), dtype=np.uint8)),
    ],
)
def test_what_is_not_like_validation_is_named(fitted: tuple[InputGate, FeatureSpace], code: str, tiles: Tiles) -> None:
    assert share_of(fitted, tiles, code) > 0.95


def test_features_that_the_network_never_gave_are_unlike_training(fitted: tuple[InputGate, FeatureSpace]) -> None:
    gate, space = fitted
    statistics, features = tile_statistics(FRESH), features_of(FRESH)
    strange = features + 5 * features.std(axis=0) * np.random.default_rng(0).choice([-1, 1], features.shape)
    found = gate.judge(statistics, strange.astype(np.float32), space)
    assert np.mean(["unlike-training" in {reason.code for reason in reasons} for reasons in found]) > 0.95


def test_of_a_blank_tile_nothing_else_is_said(fitted: tuple[InputGate, FeatureSpace]) -> None:
    (reasons,) = judged(fitted, np.full((1, 96, 96, 3), 250, np.uint8))
    assert [reason.code for reason in reasons] == ["blank"]
    assert reasons[0].detail == "0.00% of it is tissue; at least 2.00% is wanted"


def test_blank_tiles_pass_a_model_that_was_validated_on_many() -> None:
    blank = np.random.default_rng(0).integers(240, 256, (60, 96, 96, 3), dtype=np.uint8)
    tiles = np.concatenate([VALIDATION, blank])
    fitted = fit_input_gate(tile_statistics(tiles), features_of(tiles), None)
    assert share_of(fitted, blank) <= 0.05
    assert share_of(fitted, grey(FRESH), "not-he") > 0.95


def test_a_tile_is_judged_alike_alone_and_in_any_batch(fitted: tuple[InputGate, FeatureSpace]) -> None:
    tiles = np.concatenate([FRESH[:10], marked(FRESH[10:20], (20, 150, 60)), corrupt(FRESH[20:30], "blur", 4, 0)])
    together = judged(fitted, tiles)
    assert together == [judged(fitted, tiles[n : n + 1])[0] for n in range(30)]
    assert together[::-1] == judged(fitted, tiles[::-1])


def test_the_order_of_validation_changes_no_verdict(fitted: tuple[InputGate, FeatureSpace]) -> None:
    order = np.random.default_rng(0).permutation(len(VALIDATION))
    again, _ = fit_input_gate(tile_statistics(VALIDATION[order]), features_of(VALIDATION[order]), None)
    assert again.foreign_colours == fitted[0].foreign_colours
    assert again.detail_limit == pytest.approx(fitted[0].detail_limit, abs=0.2)
    assert again.stain_limit == pytest.approx(fitted[0].stain_limit, rel=0.1)


def test_a_stricter_quantile_rejects_no_less(fitted: tuple[InputGate, FeatureSpace]) -> None:
    strict = fit_input_gate(tile_statistics(VALIDATION), features_of(VALIDATION), None, quantile=0.9)
    assert share_of(strict, FRESH) >= share_of(fitted, FRESH)
    assert 0.03 < share_of(strict, FRESH) < 0.2


def test_the_gate_comes_back_from_the_bundle_as_it_went_in(store: LocalStore, fitted: tuple[InputGate, FeatureSpace]) -> None:
    gate, space = fitted
    version = save_bundle(store, SPEC.model_copy(update={"input_gate": gate}), network(), {}, PROBES, space)
    bundle = load_bundle(store, SPEC.name, version)
    assert bundle.spec.input_gate is not None
    assert bundle.feature_space is not None
    assert "input gate | lets pass 99 % of tiles like the 600 of validation" in bundle.documents[CARD].decode()
    tiles = np.concatenate([FRESH[:20], grey(FRESH[:5])])
    assert judged((bundle.spec.input_gate, bundle.feature_space), tiles) == judged(fitted, tiles)


def test_a_handful_of_tiles_makes_no_gate_and_the_reason_is_given() -> None:
    with pytest.raises(DataError, match="validation has 9 tiles with tissue, and an input gate needs 10"):
        fit_input_gate(tile_statistics(VALIDATION[:9]), features_of(VALIDATION[:9]), None)


def test_few_tiles_make_a_gate_that_still_lets_them_all_pass() -> None:
    few = fit_input_gate(tile_statistics(VALIDATION[:20]), features_of(VALIDATION[:20]), None)
    assert share_of(few, VALIDATION[:20]) == 0
    assert share_of(few, grey(FRESH), "not-he") > 0.5
