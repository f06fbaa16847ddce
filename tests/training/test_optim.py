"""Schedules rise, fall and end; decay spares norms; the average follows the weights."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from historay.models.zoo import build_model
from historay.training.optim import OptimizerName, build_ema, build_optimizer, lr_factor, update_ema


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


def test_the_average_is_that_of_torch_batch_statistics_included() -> None:
    model = build_model("small_cnn", 2, 32)
    ours, theirs = build_ema(model, 0.9), build_ema(model, 0.9)
    for seed in range(3):
        torch.manual_seed(seed)
        model(torch.rand(4, 3, 32, 32))
        update_ema(ours, model)
        theirs.update_parameters(model)
    expected = theirs.state_dict()
    for name, found in ours.state_dict().items():
        assert torch.equal(found, expected[name]) or name.endswith("num_batches_tracked"), name


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_a_fused_step_is_the_plain_one_up_to_rounding(name: OptimizerName) -> None:
    found = []
    for fused in (True, False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 2))
        optimizer = build_optimizer(model, name, 1e-2, 0.9, 0.1)
        for group in optimizer.param_groups:
            group["fused"] = fused
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.rand(8, 5)).square().sum().backward()
            optimizer.step()
        found.append([parameter.detach() for parameter in model.parameters()])
    torch.testing.assert_close(*found)


def test_the_average_is_the_exponential_one_of_the_weights() -> None:
    model = torch.nn.Linear(1, 1, bias=False)
    ema = build_ema(model, 0.9)
    expected = None
    for value in (1.0, 2.0, 5.0):
        with torch.no_grad():
            model.weight.fill_(value)
        update_ema(ema, model)
        expected = value if expected is None else 0.9 * expected + 0.1 * value
    assert float(ema.module.weight.detach()) == pytest.approx(expected)
