"""The finalists are ranked by what all of their runs reached."""

from historay.training.selection import Finalist, rank, score


def finalist(number: int, values: tuple[float, ...], num_failed: int = 0) -> Finalist:
    runs = tuple(f"run-{seed}" for seed in range(len(values) + num_failed))
    failed = dict.fromkeys(runs[len(values) :], "loss is not finite")
    mean, low, high = score(values)
    return Finalist(
        trial=f"trial-{number}",
        number=number,
        searched=0.9,
        runs=runs,
        values=values,
        failed=failed,
        mean=mean,
        low=low,
        high=high,
    )


def test_a_finalist_whose_runs_diverged_does_not_win_by_the_one_that_was_lucky() -> None:
    lucky, steady, dead = finalist(0, (0.99,), num_failed=2), finalist(1, (0.9, 0.9, 0.9)), finalist(2, (), num_failed=3)
    assert [one.number for one in rank([dead, lucky, steady], "val_auc")] == [1, 0, 2]
