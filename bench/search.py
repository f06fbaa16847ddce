"""TPE, as a search uses it, against random search on one budget, 5 seeds and 30, on an objective that costs nothing.

With one seed both begin with the same 10 random trials. Shown is the true value of the trial that looked best, since what
looks best among noisy values is partly luck. Run by hand: python bench/search.py (a minute on one core).
"""

import math

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler

from historay.training.search_settings import parse_space
from historay.training.study import make_sampler, sampler_seed

BUDGET, SHOWN = 60, (5, 10, 15, 20, 30, 40, 60)
NOISE = 0.003  # from one seed to another
SPACE = parse_space(
    {
        "lr": {"low": 1e-5, "high": 1e-1, "log": True},
        "weight_decay": {"low": 1e-4, "high": 1.0, "log": True},
        "dropout": {"low": 0.0, "high": 0.6},
        "label_smoothing": {"low": 0.0, "high": 0.3},
        "batch_size": [32, 64, 128, 256],
        "optimizer": ["sgd", "adam", "adamw"],
    }
)


def like_training(params: dict[str, float]) -> float:
    """An AUC such as training gives: a ridge over learning rate and batch size, at another place for each optimiser."""
    best_lr = {"sgd": -1.5, "adam": -3.0, "adamw": -2.8}[str(params["optimizer"])] + 0.5 * math.log10(params["batch_size"] / 64)
    lr = (math.log10(params["lr"]) - best_lr) / 1.2
    decay = (math.log10(params["weight_decay"]) + 1.5) / 2.5
    dropout, smoothing = (params["dropout"] - 0.2) / 0.6, (params["label_smoothing"] - 0.08) / 0.3
    bonus = {"sgd": 0.0, "adam": 0.004, "adamw": 0.012}[str(params["optimizer"])]
    loss = 0.16 * min(lr**2, 2.0) + 0.02 * decay**2 + 0.02 * dropout**2 + 0.01 * smoothing**2
    return 0.92 + bonus - loss


def best_curve(sampler: BaseSampler, space: dict[str, BaseDistribution], seed: int) -> np.ndarray:
    study = optuna.create_study(direction="maximize", sampler=sampler)
    rng, seen, true = np.random.default_rng(seed), [], []
    for _ in range(BUDGET):
        trial = study.ask(space)
        true.append(like_training(trial.params))
        seen.append(true[-1] + NOISE * rng.normal())
        study.tell(trial, seen[-1])
    return np.array([true[int(np.argmax(seen[: end + 1]))] for end in range(BUDGET)])


def print_table(num_seeds: int) -> None:
    seeds = range(num_seeds)
    curves = {
        "TPE": np.stack([best_curve(make_sampler(seed, 0), SPACE, seed) for seed in seeds]),
        "random": np.stack([best_curve(RandomSampler(seed=sampler_seed(seed, 0)), SPACE, seed) for seed in seeds]),
    }
    print("| trials | " + " | ".join(f"{name}, mean of {num_seeds} (min to max)" for name in curves) + " | TPE better, worse |")
    print("|---|" + "---|" * (len(curves) + 1))
    for trials in SHOWN:
        at = {name: curve[:, trials - 1] for name, curve in curves.items()}
        cells = [f"{value.mean():.4f} ({value.min():.4f} to {value.max():.4f})" for value in at.values()]
        better, worse = int((at["TPE"] > at["random"]).sum()), int((at["TPE"] < at["random"]).sum())
        print(f"| {trials} | {' | '.join(cells)} | {better}, {worse} |")


if __name__ == "__main__":
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    for num_seeds in (5, 30):
        print_table(num_seeds)
