"""Schedules rise, fall and end; decay spares norms; the average follows the weights."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from historay.models.zoo import build_model
from historay.training.optim import build_ema, build_optimizer, lr_factor


@given(total=st.integers(2, 500), warmup=st.integers(0, 100))
def test_a_falling_schedule_never_rises_after_the_warm_up_and_ends_at_nothing(total: int, warmup: int) -> None:
    for name in ("cosine", "linear"):
        factors = [lr_factor(step, name, warmup, warmup + total) for step in range(warmup, warmup + total + 1)]  # type: ignore[arg-type]
        assert factors[0] == pytest.approx(1.0)
        assert all(after <= before + 1e-12 for before, after in itertools.pairwise(factors))
        assert factors[-1] == pytest.approx(0.0, abs=1e-12)


def test_the_warm_up_rises_in_a_line() -> None:
    assert [lr_factor(step, "constant", 4, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_weight_decay_spares_norms_and_biases() -> None:
    optimizer = build_optimizer(build_model("small_cnn", 2, 32), "adamw", 1e-3, 0.9, 0.05)
    decayed, spared = optimizer.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.05, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in spared["params"])


def test_the_average_is_the_exponential_one_of_the_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    ema = build_ema(model, 0.9)
    expected = None
    for value in (1.0, 2.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        ema.update_parameters(model)
        expected = value if expected is None else 0.9 * expected + 0.1 * value
    assert float(ema.module.weight.detach()) == pytest.approx(expected)
