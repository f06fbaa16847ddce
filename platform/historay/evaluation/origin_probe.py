"""Whether a model's features tell where a tile comes from: its site, or its patient.

What tells the site can stand in for the class wherever sites differ in their share of it. The class, seen rightly, tells
something of the site there too: the figure says that a shortcut is open, not that the model took it. No patient's tiles stand
on both sides of a fold when the site is asked for, nor a slide's when the patient is: one look is not taken for the other.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from sklearn.covariance import ledoit_wolf
from sklearn.decomposition import PCA

from historay.evaluation.metrics import Floats

Origin = Literal["site", "patient"]

_MAX_TILES = 5000  # balanced accuracy is then known to about 0.01, and 100 permutations take seconds
_MAX_ORIGINS = 100  # of thousands of patients, as many as tell whether patients can be told
_MAX_COMPONENTS = 64
_NUM_FOLDS = 5
_HELD_OUT: dict[Origin, str] = {"site": "patient", "patient": "slide"}


class OriginProbe(BaseModel):
    """How well the origin is told from features, in cross-validation, and how well from colour alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    origin: Origin
    held_out: str  # what is never on both sides of a fold: patient, slide or tile
    num_origins: int  # sites or patients that could be asked for
    num_tiles: int
    chance: float | None  # balanced accuracy of guessing
    from_features: float | None  # balanced accuracy; None where it cannot be had
    from_colour: float | None  # of the same probe on colour histograms
    p_value: float | None  # of from_features, by permutation of the origins over what is held out
    sentence: str


class _Asked(NamedTuple):
    """N tiles of known origin, numbered: the origin of each group, and the group of each tile."""

    row_N: NDArray[np.int64]  # into the caller's arrays
    group_N: NDArray[np.int64]
    origin_G: NDArray[np.int64]


def probe_origin(
    origin: Origin,
    origin_N: Sequence[str | None],
    group_N: Sequence[str | None] | None,
    features_by_kind: tuple[Floats | NDArray[np.float32], Floats],
    num_permutations: int,
    seed: int,
) -> OriginProbe:
    """Predicts the origin of tiles from the model's features, and from colour histograms beside it.

    Args:
        origin: what is asked for.
        origin_N: the site, or patient, of each tile; tiles of unknown origin are left out.
        group_N: the patient of each tile if sites are asked for, the slide if patients; None holds out single tiles.
        features_by_kind: (N, F) of the model, and (N, 48) colour histograms.
        num_permutations: of origins over groups, behind the p-value.
        seed: decides which 5,000 tiles are taken, the folds and the permutations.
    """
    generator = np.random.default_rng(seed)
    held_out = "tile" if group_N is None else _HELD_OUT[origin]
    asked = _asked(origin_N, group_N, generator)
    num_origins = len(np.unique(asked.origin_G))
    if num_origins < 2:
        return _without(origin, held_out, num_origins, len(asked.row_N))
    model_NC, colour_NC = (_components(kind[asked.row_N].astype(np.float64), seed) for kind in features_by_kind)
    from_features = _balanced_accuracy(model_NC, asked.group_N, asked.origin_G, np.random.default_rng(seed))
    from_colour = _balanced_accuracy(colour_NC, asked.group_N, asked.origin_G, np.random.default_rng(seed))
    shuffled = [generator.permutation(asked.origin_G) for _ in range(num_permutations)]
    by_chance = [_balanced_accuracy(model_NC, asked.group_N, permuted, generator) for permuted in shuffled]
    p_value = (1 + sum(value >= from_features for value in by_chance)) / (1 + num_permutations)
    sentence = (
        f"From the model's features the {origin} of a tile is told with a balanced accuracy of {from_features:.3f}, from "
        f"colour alone with {from_colour:.3f}, by chance with {1 / num_origins:.3f} (permutation p = {p_value:.2g}; "
        f"{num_origins} {origin}s; no {held_out} on both sides of a fold)."
    )
    return OriginProbe(
        origin=origin,
        held_out=held_out,
        num_origins=num_origins,
        num_tiles=len(asked.row_N),
        chance=1 / num_origins,
        from_features=from_features,
        from_colour=from_colour,
        p_value=p_value,
        sentence=sentence,
    )


def _without(origin: Origin, held_out: str, num_origins: int, num_tiles: int) -> OriginProbe:
    sentence = f"Whether features tell the {origin} was not asked: fewer than two {origin}s have two {held_out}s each."
    return OriginProbe(
        origin=origin,
        held_out=held_out,
        num_origins=num_origins,
        num_tiles=num_tiles,
        chance=None,
        from_features=None,
        from_colour=None,
        p_value=None,
        sentence=sentence,
    )


def _asked(origin_N: Sequence[str | None], group_N: Sequence[str | None] | None, generator: np.random.Generator) -> _Asked:
    """Takes at most 5,000 tiles of 100 origins, of known origin and group, each origin with at least two groups."""
    groups: Sequence[str | int | None] = range(len(origin_N)) if group_N is None else group_N
    pairs = list(zip(origin_N, groups, strict=True))
    rows = _of_two_groups([row for row, pair in enumerate(pairs) if None not in pair], pairs)
    names = sorted({str(pairs[row][0]) for row in rows})
    chosen = {names[index] for index in generator.permutation(len(names))[:_MAX_ORIGINS]}
    rows = [row for row in rows if pairs[row][0] in chosen]
    rows = _of_two_groups([rows[index] for index in np.sort(generator.permutation(len(rows))[:_MAX_TILES])], pairs)
    # A patient seen at two sites is two groups, so that each group has one origin.
    numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs[row] for row in rows))}
    origins = {name: number for number, name in enumerate(dict.fromkeys(name for name, _ in numbers))}
    group = np.array([numbers[pairs[row]] for row in rows], dtype=np.int64)
    return _Asked(np.array(rows, dtype=np.int64), group, np.array([origins[name] for name, _ in numbers], dtype=np.int64))


def _of_two_groups(rows: list[int], pairs: Sequence[tuple[str | None, str | int | None]]) -> list[int]:
    """Keeps the rows whose origin has two groups or more: with one, nothing tells its look from its only group's."""
    num_groups = Counter(name for name, _ in {pairs[row] for row in rows})
    return [row for row in rows if num_groups[pairs[row][0]] > 1]


def _components(features_NF: Floats, seed: int) -> Floats:
    """Returns the 64 strongest principal components of standardised features: (N, C); they know nothing of the origin."""
    spread_F = features_NF.std(axis=0)
    scaled_NF = (features_NF - features_NF.mean(axis=0))[:, spread_F > 0] / spread_F[spread_F > 0]
    num = min(_MAX_COMPONENTS, *scaled_NF.shape)
    return np.asarray(PCA(num, random_state=seed).fit_transform(scaled_NF)) if num else np.zeros((len(features_NF), 1))


def _balanced_accuracy(
    x_NC: Floats, group_N: NDArray[np.int64], origin_G: NDArray[np.int64], generator: np.random.Generator
) -> float:
    """Mean over the origins of the share of their tiles told rightly, each tile by a probe that never saw its group."""
    fold_N = _folds(origin_G, generator)[group_N]
    origin_N = origin_G[group_N]
    told_N = np.empty(len(x_NC), dtype=np.int64)
    for fold in np.unique(fold_N):
        inside = fold_N == fold
        told_N[inside] = _nearest_origin(x_NC[~inside], origin_N[~inside], x_NC[inside])
    right_O = np.bincount(origin_N, weights=told_N == origin_N)
    return float(np.mean(right_O / np.bincount(origin_N)))


def _folds(origin_G: NDArray[np.int64], generator: np.random.Generator) -> NDArray[np.int64]:
    """Deals each origin's groups in random order onto five folds, so that none holds all of an origin."""
    order = generator.permutation(len(origin_G))
    by_origin = order[np.argsort(origin_G[order], kind="stable")]
    first = np.searchsorted(origin_G[by_origin], origin_G[by_origin])
    fold_G = np.empty(len(origin_G), dtype=np.int64)
    fold_G[by_origin] = (np.arange(len(origin_G)) - first) % _NUM_FOLDS
    return fold_G


def _nearest_origin(train_NC: Floats, origin_N: NDArray[np.int64], test_MC: Floats) -> NDArray[np.int64]:
    """Returns the origin (M,) whose mean is nearest, in units of the spread within origins (Fisher's linear discriminant)."""
    origins, index_N = np.unique(origin_N, return_inverse=True)
    member_ON = (index_N == np.arange(len(origins))[:, None]).astype(np.float64)
    mean_OC = member_ON @ train_NC / member_ON.sum(axis=1, keepdims=True)
    within_CC, _ = ledoit_wolf(train_NC - mean_OC[index_N], assume_centered=True)
    weight_CO = np.linalg.pinv(within_CC, hermitian=True) @ mean_OC.T
    closeness_MO = test_MC @ weight_CO - (mean_OC.T * weight_CO).sum(axis=0) / 2
    return np.asarray(origins[closeness_MO.argmax(axis=1)])
