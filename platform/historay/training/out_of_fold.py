"""Out-of-fold predictions: what each fold's model says of the tiles that it was not trained on, as one set."""

from collections.abc import Sequence

import numpy as np

from historay.data.dataset import open_dataset
from historay.data.loading import iter_tiles
from historay.evaluation.predictions import Predictions
from historay.models.inference import predict_logits, probabilities
from historay.storage import Store
from historay.training.run import load_run

_BATCH = 256


def pool_out_of_fold(store: Store, runs: Sequence[str]) -> Predictions:
    """Predicts each fold's held-out tiles with its run's best weights; sorted by tile_id.

    A run's best epoch is chosen on the same tiles, which flatters all candidates alike.
    """
    tile_ids: list[str] = []
    labels, found = [], []
    patients: dict[str, str | None] = {}
    for run in runs:
        record, model = load_run(store, run, "best")
        dataset = open_dataset(store, record.dataset)
        known = dataset.manifest(["tile_id", "patient"]).to_pydict()
        patients |= dict(zip(known["tile_id"], known["patient"], strict=True))
        for batch in iter_tiles(dataset, "val", record.preprocessing.input_px, _BATCH):
            tile_ids += batch.tile_ids
            labels.append(batch.labels)
            found.append(probabilities(predict_logits(model, batch.tiles_BHWC, record.preprocessing)))
    order = np.argsort(tile_ids)
    named = [patients[tile_ids[row]] for row in order]
    return Predictions(
        tile_ids=np.array(tile_ids)[order],
        labels=np.concatenate(labels)[order],
        probabilities=np.concatenate(found)[order],
        patients=None if None in named else np.array(named),
        classes=record.classes,
    )
