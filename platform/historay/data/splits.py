"""Splits tiles into train, val and test by whole groups, so that no patient stands on two sides."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, model_validator

from historay.data.duplicates import Pairs
from historay.errors import DataError


class SplitFractions(BaseModel):
    """The shares of the tiles that go to val and test; train takes the rest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    val: float = 0.15
    test: float = 0.15

    @model_validator(mode="after")
    def _leave_something_to_train(self) -> "SplitFractions":
        if min(self.val, self.test) < 0 or self.val + self.test >= 1:
            raise ValueError(f"val={self.val} and test={self.test}: both must be at least 0 and their sum below 1")
        return self

    def by_name(self) -> dict[str, float]:
        """Returns the share of each split, train first; empty ones are left out."""
        shares = {"train": 1 - self.val - self.test, "val": self.val, "test": self.test}
        return {name: share for name, share in shares.items() if share > 0}


def tile_groups(
    tile_ids: Sequence[str], patients: Sequence[str | None], slides: Sequence[str | None], duplicates: Pairs
) -> NDArray[np.str_]:
    """Names each tile's group: its patient, else its slide, else itself; groups that share a duplicate become one.

    A tile without a patient has the patient of its slide, where that is one. A merged group takes the smallest of its
    names, so that the names do not depend on the order of the rows.
    """
    rows = zip(tile_ids, _known_patients(patients, slides), slides, strict=True)
    own = np.array([f"p:{patient}" if patient else f"s:{slide}" if slide else f"t:{tile}" for tile, patient, slide in rows])
    names, group = np.unique(own, return_inverse=True)
    if not len(duplicates):
        return names[group]
    links = group[duplicates]
    graph = scipy.sparse.coo_array((np.ones(len(links)), (links[:, 0], links[:, 1])), shape=(len(names), len(names)))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)  # names are sorted, so the first is the smallest
    return names[first][component][group]


def _known_patients(patients: Sequence[str | None], slides: Sequence[str | None]) -> list[str | None]:
    """Fills in the patient of a slide's tiles that lack it, where the others have one and the same."""
    owner: dict[str | None, str | None] = {}
    for patient, slide in zip(patients, slides, strict=True):
        if patient:
            owner[slide] = patient if owner.get(slide, patient) == patient else None
    owner[None] = None
    return [patient or owner.get(slide) for patient, slide in zip(patients, slides, strict=True)]


def slide_names(patients: pd.Series, slides: pd.Series) -> pd.Series:
    """Returns what tells each slide from all others: its id, and its patient where several have it, e.g. a slide 1 each."""
    owners = patients.groupby(slides).nunique()
    shared = slides.isin(owners.index[owners > 1]) & patients.notna()
    return slides.where(~shared, patients + "\0" + slides)


def assign_splits(labels: NDArray[Any], groups: NDArray[Any], fractions: SplitFractions, seed: int) -> NDArray[np.str_]:
    """Returns 'train', 'val' or 'test' per tile: whole groups, each label shared out as the fractions say, as near as can be.

    Groups are taken in an order that only the seed and their names decide, large ones first, and each goes to the split
    that is furthest behind in the labels which the group brings. The order of the rows has no influence.

    Raises DataError if there are fewer groups than splits.
    """
    shares = fractions.by_name()
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < len(shares):
        raise DataError(
            f"{len(names)} group(s) of tiles cannot fill the splits {', '.join(shares)}: a patient is never divided. "
            "Bring more patients, or set the fraction of val or test to 0"
        )
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.bincount(group * len(classes) + label, minlength=len(names) * len(classes)).reshape(len(names), -1)
    split_of_group = _share_out(names, counts.astype(np.float64), np.array(list(shares.values())), seed)
    return np.array(list(shares))[split_of_group][group]


def assign_folds(labels: NDArray[Any], groups: NDArray[Any], num_folds: int, seed: int) -> NDArray[np.intp]:
    """Returns each tile's fold, from 0: whole groups, each label shared out evenly; shares and order as in assign_splits.

    Raises DataError if there are fewer groups than folds.
    """
    names, group = np.unique(groups, return_inverse=True)
    if len(names) < num_folds:
        raise DataError(
            f"{len(names)} group(s) of tiles cannot fill {num_folds} folds: a patient is never divided; lower folds"
        )
    classes, label = np.unique(labels, return_inverse=True)
    counts = np.bincount(group * len(classes) + label, minlength=len(names) * len(classes)).reshape(len(names), -1)
    return _share_out(names, counts.astype(np.float64), np.full(num_folds, 1 / num_folds), seed)[group]


def _share_out(names: NDArray[Any], counts: NDArray[np.float64], shares: NDArray[np.float64], seed: int) -> NDArray[np.intp]:
    """Gives each group (rows of ``counts``: tiles per label) to the split with the greatest need of what it brings."""
    weights = 1.0 / counts.sum(axis=0)  # a rare label counts as much as a common one
    need = shares[:, None] * np.ones(counts.shape[1])  # share of each label that each split still wants
    brought = counts * weights
    keys = np.array([hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest() for name in names])
    order = np.lexsort((keys, -_size_class(counts.sum(axis=1))))
    chosen = np.empty(len(names), dtype=np.intp)
    empty = set(range(len(shares)))
    for position, group in enumerate(order):
        gain = need @ brought[group] / brought[group].sum() / shares
        candidates = sorted(empty) if len(order) - position <= len(empty) else range(len(shares))
        split = max(candidates, key=lambda one: gain[one])
        need[split] -= brought[group]
        empty.discard(split)
        chosen[group] = split
    return chosen


def _size_class(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sizes to the power of two below, so that groups of about the same size are ordered by the seed alone."""
    return np.floor(np.log2(sizes))
