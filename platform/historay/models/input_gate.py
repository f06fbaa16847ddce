"""The input gate: whether a tile is one that the model can be asked about, judged before its answer is relied on.

Fitted on the validation split, whose tiles it lets pass at a stated rate. Suffixes as in evaluation/tile_statistics.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from historay.errors import DataError
from historay.evaluation.familiarity import Familiarity, held_out_distance, joint_limits
from historay.evaluation.metrics import Floats
from historay.evaluation.tile_statistics import NUM_COLOURS, NUM_HUES, TileStatistics

Code = Literal["blank", "not-he", "unlike-training", "blurred", "pen"]

MIN_TILES = 10  # of validation with tissue; below, limits would say nothing
_NUM_AXES = 64  # more find no more on PCam, see docs/serving.md
_TISSUE = 0.02  # share of pixels below which a tile is blank, and its colours and sharpness say nothing
_BLANKS = 0.05  # share of validation's tiles from which blank ones are what the model was made for, such as background
# Pixels of validation that may be called foreign: the rarest colours, which together hold no more than this share.
_RARE = 5e-4
_NEAR = 2  # bins beside a familiar hue that count as familiar: 10 degrees, since another slide's stain is a little off
_MARKED = 0.05  # share of foreign pixels up to which a tile is never taken for marked
_OVERRUN = 0.5  # share of foreign pixels from which it is not a mark any more, but another image


class FeatureSpace(NamedTuple):
    """What is large of a gate: a file of the bundle of its own, input_gate.safetensors."""

    mean_F: NDArray[np.float32]
    axes_FK: NDArray[np.float32]


class Rejection(NamedTuple):
    """One reason not to rely on a tile's answer."""

    code: Code
    detail: str


class InputGate(BaseModel):
    """The limits of one model's gate, with what the distances are measured from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    quantile: float  # share of validation's tiles that passes all checks, blank ones apart, or more
    num_tiles: int  # of validation; n of them cannot promise fewer false rejects than 4 / (n + 1)
    stain_mean: tuple[float, ...]  # (S,)
    stain_axes: tuple[tuple[float, ...], ...]  # (S, S)
    stain_variances: tuple[float, ...]  # (S,)
    stain_limit: float  # distance, see Familiarity
    feature_variances: tuple[float, ...]  # (K,), of the axes in FeatureSpace
    feature_rest: float
    feature_limit: float
    tissue_limit: float  # least share of pixels that are tissue; 0: blank tiles are let pass
    detail_limit: float  # least log of fine over coarse detail
    foreign_colours: tuple[int, ...]  # bins that validation's pixels hardly ever fall into
    foreign_limit: float  # largest share of pixels in them

    def judge(
        self, statistics: TileStatistics, features_BF: NDArray[np.float32], space: FeatureSpace
    ) -> list[tuple[Rejection, ...]]:
        """Returns the reasons against each tile, from its pixels and the features that the network gave it; none: it passes."""
        stain_B = self._stains().distance(statistics.stain_BS)
        feature_B = self._features(space).distance(features_BF.astype(np.float64))
        foreign_B = statistics.colours_BK[:, list(self.foreign_colours)].sum(axis=1)
        figures_B = zip(statistics.tissue_B, stain_B, feature_B, statistics.detail_B, foreign_B, strict=True)
        return [self._rejections(*map(float, figures)) for figures in figures_B]

    def _rejections(self, tissue: float, stain: float, feature: float, detail: float, foreign: float) -> tuple[Rejection, ...]:
        """The reasons against one tile; of a blank one nothing else can be said."""
        if tissue < self.tissue_limit:
            return (Rejection("blank", f"{tissue:.2%} of it is tissue; at least {self.tissue_limit:.2%} is wanted"),)
        found: list[Rejection] = []
        coloured = tissue >= _TISSUE
        if coloured and (stain > self.stain_limit or foreign > max(_OVERRUN, self.foreign_limit)):
            found.append(
                Rejection("not-he", f"colours {stain:.3g} from those of validation; {self.stain_limit:.3g} is allowed")
            )
        if feature > self.feature_limit:
            detail_words = f"features {feature:.3g} from those of validation; {self.feature_limit:.3g} is allowed"
            found.append(Rejection("unlike-training", detail_words))
        if coloured and detail < self.detail_limit:
            sharpness, wanted = np.exp([detail, self.detail_limit])
            found.append(
                Rejection("blurred", f"fine detail is {sharpness:.3g} of coarse detail; at least {wanted:.3g} is wanted")
            )
        if self.foreign_limit < foreign <= _OVERRUN:
            words = f"{foreign:.1%} of it has hues or darkness that validation lacks; {self.foreign_limit:.1%} is allowed"
            found.append(Rejection("pen", words))
        return tuple(found)

    def _stains(self) -> Familiarity:
        return Familiarity(np.array(self.stain_mean), np.array(self.stain_axes), np.array(self.stain_variances), 1.0)

    def _features(self, space: FeatureSpace) -> Familiarity:
        variances_K, (mean_F, axes_FK) = np.array(self.feature_variances), (part.astype(np.float64) for part in space)
        return Familiarity(mean_F, axes_FK, variances_K, self.feature_rest)


def fit_input_gate(
    statistics: TileStatistics,
    features_NF: NDArray[np.float32],
    groups_N: NDArray[np.str_] | None,
    *,
    quantile: float = 0.99,
    seed: int = 0,
) -> tuple[InputGate, FeatureSpace]:
    """Fits a gate to all tiles of the validation split, so that ``quantile`` of such tiles pass all checks.

    What may be rejected is shared by the checks, equally strict. Distances are those to fits without the tile's own group
    (its patient, where known). DataError below 10 tiles with tissue.
    """
    full_N = statistics.tissue_B >= _TISSUE
    blanks_pass = bool((~full_N).mean() > _BLANKS)
    if full_N.sum() < MIN_TILES:
        raise DataError(
            f"validation has {full_N.sum()} tiles with tissue, and an input gate needs {MIN_TILES}; add tiles to val"
        )
    asked_N = full_N | blanks_pass
    features, stain_NS = features_NF.astype(np.float64), statistics.stain_BS
    num_stains = stain_NS.shape[1]
    foreign = _foreign_colours(statistics.colours_BK)
    marked_N = statistics.colours_BK[:, list(foreign)].sum(axis=1)
    value_N4 = np.full((len(features), 4), -np.inf)
    value_N4[full_N, 0] = held_out_distance(stain_NS[full_N], _of(groups_N, full_N), num_stains, seed)
    value_N4[asked_N, 1] = held_out_distance(features[asked_N], _of(groups_N, asked_N), _NUM_AXES, seed)
    value_N4[full_N, 2] = -statistics.detail_B[full_N]
    value_N4[asked_N, 3] = np.maximum(marked_N[asked_N], _MARKED)
    stain_limit, feature_limit, blur_limit, foreign_limit = map(float, joint_limits(value_N4[asked_N], 1 - quantile))
    stains, known = Familiarity.fit(stain_NS[full_N], num_stains), Familiarity.fit(features[asked_N], _NUM_AXES)
    gate = InputGate(
        quantile=quantile,
        num_tiles=int(asked_N.sum()),
        stain_mean=tuple(stains.mean_F.tolist()),
        stain_axes=tuple(map(tuple, stains.axes_FK.tolist())),
        stain_variances=tuple(stains.variance_K.tolist()),
        stain_limit=stain_limit,
        feature_variances=tuple(known.variance_K.tolist()),
        feature_rest=known.rest,
        feature_limit=feature_limit,
        tissue_limit=0.0 if blanks_pass else _TISSUE,
        detail_limit=-blur_limit,
        foreign_colours=foreign,
        foreign_limit=foreign_limit,
    )
    return gate, FeatureSpace(known.mean_F.astype(np.float32), known.axes_FK.astype(np.float32))


def _of(groups_N: NDArray[np.str_] | None, kept_N: NDArray[np.bool_]) -> NDArray[np.str_] | None:
    return None if groups_N is None else groups_N[kept_N]


def _foreign_colours(colours_NK: Floats) -> tuple[int, ...]:
    """The rarest bins, as many as hold no more than _RARE of all pixels together, but for those beside a familiar one."""
    share_K = colours_NK.mean(axis=0)
    order_K = np.argsort(share_K, kind="stable")
    num_rare = int(np.searchsorted(share_K[order_K].cumsum(), _RARE, side="right"))
    familiar_K = np.ones(NUM_COLOURS, dtype=np.bool_)
    familiar_K[order_K[:num_rare]] = False
    hues = familiar_K[:NUM_HUES]
    near = np.any([np.roll(hues, shift) for shift in range(-_NEAR, _NEAR + 1)], axis=0)
    return tuple(np.flatnonzero(~np.concatenate([near, familiar_K[NUM_HUES:]])).tolist())
