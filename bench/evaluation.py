"""The whole judgement of a million predictions: python bench/evaluation.py [num_tiles]. Target: under 60 s and 4 GiB."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from evidence import cohort

from historay.evaluation.assessment import Policy, assess
from historay.evaluation.intervals import auc_tally, estimate, units_of
from historay.evaluation.shortcut import FAMILIES

T = TypeVar("T")
MILLION = 1_000_000


def timed(what: str, run: Callable[[], T]) -> T:
    started = time.perf_counter()
    found = run()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{what:<70} {time.perf_counter() - started:8.2f} s   peak so far {peak:5.2f} GiB", flush=True)
    return found


if __name__ == "__main__":
    num = int(sys.argv[1]) if len(sys.argv) > 1 else MILLION
    validation = cohort(0, num_patients=500, tiles=40).predictions
    # As wide as a ResNet-18, with every family of shortcuts.
    whole = {"num_patients": num // 200, "tiles": 200, "num_features": 512, "families": tuple(FAMILIES)}
    test = timed(f"drawn: {num:,} predictions of {num // 200:,} patients", lambda: cohort(1, **whole))
    small = cohort(2, num_patients=500, tiles=200).predictions
    units = units_of(small.patients, len(small.labels), 0)
    tally = auc_tally("auc", small.labels == 1, small.probabilities[:, 1], units)
    timed("ROC-AUC of 100,000, 10,000 resamples of 500 patients", lambda: estimate([tally], units, 10_000, 0))
    assessment = timed(f"judged whole: {num:,} predictions, 2,000 resamples", lambda: assess(validation, test, Policy()))
    print(assessment.judgement.headline["roc_auc"])
