"""Shortcuts are seen where they were planted, on real tiles, and not where there are none."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from images import encoded, texture
from numpy.typing import NDArray
from pcam import read_pcam
from scipy import ndimage
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold

from historay.data.decode import decode_tile
from historay.data.synthetic import CLASSES, SyntheticConfig, write_synthetic
from historay.evaluation.intervals import Estimate, Named, auc_tally, estimate, units_of
from historay.evaluation.metrics import Floats
from historay.evaluation.shortcut import FAMILIES, Metadata, colour_histograms, extract, fit_baseline
from historay.evaluation.shortcut_verdict import ShortcutVerdict, judge_shortcuts


class Tiles(NamedTuple):
    encoded: list[bytes]
    labels: NDArray[np.int64]
    sites: list[str | None]
    patients: list[str] | None

    def pixels(self) -> NDArray[np.uint8]:
        return np.stack([decode_tile(data) for data in self.encoded])

    def features(self) -> dict[str, Floats]:
        names = tuple(sorted({site for site in self.sites if site}))
        return extract(self.pixels(), self.encoded, Metadata([None] * len(self.labels), self.sites, names))


def pcam(folder: Path, split: str, num_per_class: int) -> Tiles:
    images, labels = read_pcam(folder, split, num_per_class)
    return Tiles(images, labels, [None] * len(labels), None)


def saved_again(tiles: Tiles, quality_of_class: dict[int, int]) -> Tiles:
    pairs = zip(tiles.pixels(), tiles.labels, strict=True)
    again = [simplejpeg.encode_jpeg(tile, quality=quality_of_class[int(label)], colorspace="RGB") for tile, label in pairs]
    return tiles._replace(encoded=again)


def synthetic(folder: Path, *, confounded: bool) -> Tiles:
    write_synthetic(SyntheticConfig(out=str(folder), num_tiles=720, num_patients=24, defects=False, confounded=confounded))
    manifest = pd.read_csv(folder / "manifest.csv")
    labels = manifest["label"].map(CLASSES.index).to_numpy()
    data = [(folder / path).read_bytes() for path in manifest["path"]]
    return Tiles(data, labels, manifest["site"].tolist(), manifest["patient"].tolist())


def shape_and_colour(pixels_NHWC: NDArray[np.uint8]) -> Floats:
    """What a small network might see: blobs by size, in optical density at half the resolution, and colour."""
    density = -np.log((pixels_NHWC[:, ::2, ::2, 1].astype(np.float32) + 1) / 256)
    found = [colour_histograms(pixels_NHWC)]
    for scale in (0.7, 1, 1.5, 2, 3):
        blobs = ndimage.gaussian_laplace(density, (0, scale, scale))
        square = blobs * blobs
        moments = [power.mean(axis=(1, 2)) for power in (square, square * blobs, square * square)]
        found += [np.column_stack([*moments, blobs.min(axis=(1, 2)), blobs.max(axis=(1, 2))])]
    return np.hstack(found)


def judged(labels_N: NDArray[np.int64], found: dict[str, Floats], patients: list[str] | None) -> ShortcutVerdict:
    """Verdict from the probabilities (N, K) of ``model`` and of the families, each class against the rest."""
    num_classes = found["model"].shape[1]
    units = units_of(None if patients is None else np.array(patients), len(labels_N), seed=0)
    tallies = [
        auc_tally(f"{name}:{k}", labels_N == k, np.ascontiguousarray(probability[:, k]), units)
        for name, probability in found.items()
        for k in range(num_classes)
    ]

    def derive(named: Named) -> Named:
        macro = {name: np.mean([named[f"{name}:{k}"] for k in range(num_classes)], axis=0) for name in found}
        return macro | {f"gain:{name}": macro["model"] - macro[name] for name in FAMILIES}

    figures = estimate(tallies, units, 1000, 0, derive, undefined="a class has no tiles")
    gains = {name: figures[f"gain:{name}"] for name in FAMILIES}
    return judge_shortcuts(figures["model"], {name: figures[name] for name in FAMILIES}, gains)


def fitted(features: dict[str, Floats], labels_N: NDArray[np.int64], test_N: NDArray[np.bool_], num: int) -> dict[str, Floats]:
    """Probabilities of the test tiles by every family's baseline."""
    return {
        name: fit_baseline(values[~test_N], labels_N[~test_N], num).probabilities(values[test_N])
        for name, values in features.items()
    }


def judged_on_new_patients(tiles: Tiles) -> ShortcutVerdict:
    """Trains on two thirds of the patients of every site, a model on shapes as well as each family, and judges on the rest."""
    assert tiles.patients is not None
    test_N = np.array([int(patient[1:]) // 4 % 3 == 2 for patient in tiles.patients])
    seen = shape_and_colour(tiles.pixels())
    model = ExtraTreesClassifier(100, random_state=0).fit(seen[~test_N], tiles.labels[~test_N])
    found = fitted(tiles.features(), tiles.labels, test_N, 2) | {"model": model.predict_proba(seen[test_N])}
    return judged(tiles.labels[test_N], found, np.array(tiles.patients)[test_N].tolist())


def test_a_jpeg_quality_planted_by_class_is_seen_in_real_tiles_and_none_where_none_was_planted(pcam_source: Path) -> None:
    train, test = pcam(pcam_source, "train", 400), pcam(pcam_source, "test", 200)
    planted = {0: 90, 1: 60}
    aucs = []
    for fit_on, tried_on in ((train, test), (saved_again(train, planted), saved_again(test, planted))):
        baseline = fit_baseline(fit_on.features()["jpeg_artefacts"], fit_on.labels, 2)
        aucs.append(roc_auc_score(test.labels, baseline.probabilities(tried_on.features()["jpeg_artefacts"])[:, 1]))
    assert aucs[0] < 0.8
    assert aucs[1] > 0.999


def test_colour_alone_goes_far_on_real_tiles(pcam_source: Path) -> None:
    train, test = pcam(pcam_source, "train", 1000), pcam(pcam_source, "test", 400)
    baseline = fit_baseline(colour_histograms(train.pixels()), train.labels, 2)
    assert roc_auc_score(test.labels, baseline.probabilities(colour_histograms(test.pixels()))[:, 1]) > 0.84


def test_the_alarm_is_raised_on_70_real_tiles_that_colour_tells_apart(shared_data: Path) -> None:
    folders = sorted(path for path in (shared_data / "crc-val-he-7k").iterdir() if path.is_dir())
    files = [(path, label) for label, folder in enumerate(folders) for path in sorted(folder.glob("*.jpg"))]
    labels = np.array([label for _, label in files])
    tiles = Tiles([path.read_bytes() for path, _ in files], labels, [None] * len(files), None)
    seen, features, parts = shape_and_colour(tiles.pixels()), tiles.features(), []
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(seen, labels):
        model = ExtraTreesClassifier(100, random_state=0).fit(seen[train], labels[train])
        found = fitted(features, labels, np.isin(np.arange(len(labels)), test), 7) | {"model": model.predict_proba(seen[test])}
        parts.append((np.sort(test), found))
    order = np.concatenate([test for test, _ in parts])
    joined = {name: np.concatenate([found[name] for _, found in parts]) for name in parts[0][1]}
    verdict = judged(labels[order], joined, None)
    assert (verdict.verdict, verdict.best) == ("alarm", "colour_histogram")


def test_the_alarm_is_raised_where_the_site_tells_the_class(tmp_path: Path) -> None:
    verdict = judged_on_new_patients(synthetic(tmp_path, confounded=True))
    assert verdict.verdict == "alarm"
    assert verdict.best in {"site", "colour_histogram"}
    assert verdict.share == pytest.approx(1, abs=0.05)


def test_a_model_that_sees_shapes_is_cleared_where_only_shapes_tell_the_class(tmp_path: Path) -> None:
    verdict = judged_on_new_patients(synthetic(tmp_path, confounded=False))
    assert verdict.verdict == "clear", verdict.sentence


def test_a_site_gives_the_frequencies_of_the_classes_there() -> None:
    rng = np.random.default_rng(0)
    site = rng.integers(3, size=3000)
    labels = (rng.random(3000) < np.array([0.1, 0.5, 0.8])[site]).astype(np.int64)
    one_hot = (site[:, None] == np.arange(3)).astype(np.float64)
    tumour = fit_baseline(one_hot, labels, 2).probabilities(np.eye(3))[:, 1]
    assert tumour == pytest.approx([labels[site == k].mean() for k in range(3)], abs=0.01)


@pytest.mark.parametrize(
    ("features", "reason"),
    [(np.ones((6, 3)), "it is the same for every training tile"), (np.empty((6, 0)), "it is not known")],
)
def test_a_family_with_nothing_to_say_gives_the_class_frequencies_and_says_so(features: Floats, reason: str) -> None:
    baseline = fit_baseline(features, np.array([0, 0, 0, 2, 2, 0]), 3)
    assert baseline.nothing_to_say == reason
    assert baseline.probabilities(features[:2]) == pytest.approx(np.array([[4 / 6, 0, 2 / 6]] * 2))


def test_rounding_that_differs_by_batch_is_no_feature() -> None:
    rounded = np.full((8, 2), np.log(7.0)) + np.array([0, 1e-15] * 4)[:, None]
    assert fit_baseline(rounded, np.arange(8) % 2, 2).nothing_to_say == "it is the same for every training tile"


def test_one_class_in_training_gives_that_class() -> None:
    baseline = fit_baseline(np.arange(4.0)[:, None], np.ones(4, dtype=np.int64), 2)
    assert baseline.nothing_to_say == "all training tiles are of one class"
    assert baseline.probabilities(np.zeros((2, 1))).tolist() == [[0, 1], [0, 1]]


@pytest.mark.parametrize("num_classes", [2, 4])
def test_a_baseline_agrees_with_scikit_learn_whatever_constant_stands_beside_it(num_classes: int) -> None:
    rng = np.random.default_rng(num_classes)
    features = rng.normal(size=(400, 5))
    labels = (features[:, :num_classes] + rng.gumbel(size=(400, num_classes))).argmax(axis=1)
    scaled = (features - features.mean(axis=0)) / features.std(axis=0)
    expected = LogisticRegression(max_iter=5000, tol=1e-8).fit(scaled, labels).predict_proba(scaled)
    with_constant = np.hstack([features, np.full((400, 1), 7.0)])
    found = fit_baseline(with_constant, labels, num_classes + 1).probabilities(with_constant)
    assert found[:, :-1] == pytest.approx(expected, abs=2e-3)
    assert (found[:, -1] == 0).all()  # a class that training does not have


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.integers(16, 40))
def test_colour_is_blind_to_where_a_pixel_stands_and_counts_as_numpy_does(seed: int, side: int) -> None:
    rng = np.random.default_rng(seed)
    tile = rng.integers(256, size=(1, side, side, 3), dtype=np.uint8)
    seen = tile[0, ::2, ::2].reshape(-1, 3)
    expected = [np.histogram(seen[:, channel], 16, (0, 256))[0] / len(seen) for channel in range(3)]
    assert colour_histograms(tile)[0] == pytest.approx(np.concatenate(expected))
    shuffled = tile.copy()
    shuffled[0, ::2, ::2] = rng.permutation(seen).reshape(shuffled[0, ::2, ::2].shape)
    assert (colour_histograms(shuffled) == colour_histograms(tile)).all()


def test_size_format_and_resolution_are_told_apart() -> None:
    pixels = texture(0)
    files = [encoded(pixels, quality=90), encoded(pixels, "PNG")]
    found = extract(np.stack([pixels, pixels]), files, Metadata([0.5, None], ["a", "c"], ("a", "b")))
    expected = [[np.log(96), np.log(96), np.log(len(files[0])), np.log(0.5), 0, 1, 0, 0]]
    expected += [[np.log(96), np.log(96), np.log(len(files[1])), 0, 1, 0, 1, 0]]
    assert found["metadata"] == pytest.approx(np.array(expected))
    assert found["site"].tolist() == [[1, 0], [0, 0]]
    assert found["channel_means"] == pytest.approx(np.array([pixels[::2, ::2].mean(axis=(0, 1))] * 2))


def exact(value: float, low: float, high: float) -> Estimate:
    return Estimate(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("model", "shortcut", "low", "expected"),
    [
        (0.95, 0.60, 0.30, "clear"),
        (0.95, 0.82, 0.10, "caution"),  # 0.32 of 0.45 is 71 %
        (0.95, 0.91, 0.02, "alarm"),  # 91 %
        (0.95, 0.70, -0.01, "alarm"),  # the interval holds 0
        (0.70, 0.75, -0.08, "alarm"),
        (0.49, 0.40, 0.05, "alarm"),  # no better than chance
    ],
)
def test_the_verdict_follows_from_the_gain_and_from_what_the_best_shortcut_reaches(
    model: float, shortcut: float, low: float, expected: str
) -> None:
    gain = model - shortcut
    aucs = {"site": exact(0.3, 0.2, 0.4), "metadata": exact(shortcut, shortcut - 0.02, shortcut + 0.02)}
    gains = {"site": exact(model - 0.3, 0.1, 0.9), "metadata": exact(gain, low, gain + 0.05)}
    verdict = judge_shortcuts(exact(model, model - 0.02, model + 0.02), aucs, gains)
    assert (verdict.verdict, verdict.best) == (expected, "metadata")
    assert FAMILIES["metadata"].words in verdict.sentence
    assert f"{low:.3f} to" in verdict.sentence


def test_an_undefined_auc_gives_no_verdict_but_its_reason() -> None:
    undefined = Estimate(value=None, low=None, high=None, reason="no tiles of class tumour in this split")
    verdict = judge_shortcuts(undefined, {"site": undefined}, {"site": undefined})
    assert verdict.verdict == "unknown"
    assert "no tiles of class tumour" in verdict.sentence


def test_a_gain_without_interval_alarms_where_the_shortcut_reaches_the_model_and_is_unknown_elsewhere() -> None:
    gain = Estimate(value=0.0, low=None, high=None, reason="a single patient cannot be resampled")
    for shortcut, expected in ((0.9, "alarm"), (0.6, "unknown")):
        aucs = {"site": Estimate(value=shortcut, low=None, high=None, reason=gain.reason)}
        verdict = judge_shortcuts(Estimate(value=0.92, low=None, high=None, reason=gain.reason), aucs, {"site": gain})
        assert verdict.verdict == expected
        assert "a single patient cannot be resampled" in verdict.sentence
