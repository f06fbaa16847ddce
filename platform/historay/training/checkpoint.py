"""Checkpoints as safetensors and JSON, written whole and never pickled."""

import json
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from historay.storage import Store
from historay.training.loop import Learner, bare_model, judged_model
from historay.training.run import WEIGHTS, checkpoint_prefix, complete_epochs

_TRAINING = "training.safetensors"
_STATE = "state.json"


def save_checkpoint(store: Store, run: str, epoch: int, learner: Learner, extra: dict[str, Any]) -> None:
    """Writes an epoch's checkpoint: the weights that count, all that training goes on from, and state.json last.

    ``extra`` is kept as JSON, and comes back from ``load_checkpoint``. No random state is kept: each epoch seeds its own.
    """
    optimizer = learner.optimizer.state_dict()
    tensors = {f"model.{name}": tensor for name, tensor in bare_model(learner.model).state_dict().items()}
    if learner.ema is not None:
        tensors |= {f"ema.{name}": tensor for name, tensor in learner.ema.state_dict().items()}
    for number, slots in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in slots.items() if value is not None}
    groups = [{name: value for name, value in group.items() if name != "params"} for group in optimizer["param_groups"]]
    state = {"step": learner.step, "schedule": learner.schedule.last_epoch, "groups": groups, "extra": extra}
    prefix = checkpoint_prefix(run, epoch)
    store.write(f"{prefix}/{WEIGHTS}", save_tensors(_plain(judged_model(learner).state_dict())))
    store.write(f"{prefix}/{_TRAINING}", save_tensors(_plain(tensors)))
    store.write(f"{prefix}/{_STATE}", json.dumps(state).encode())


def load_checkpoint(store: Store, run: str, epoch: int, learner: Learner) -> dict[str, Any]:
    """Puts a learner where it stood at the end of an epoch, and returns what was kept with it."""
    prefix = checkpoint_prefix(run, epoch)
    state: dict[str, Any] = json.loads(store.read(f"{prefix}/{_STATE}"))
    tensors = load_tensors(store.read(f"{prefix}/{_TRAINING}"))
    bare_model(learner.model).load_state_dict(_below(tensors, "model."))
    if learner.ema is not None:
        learner.ema.load_state_dict(_below(tensors, "ema."))
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _below(tensors, "optimizer.").items():
        number, _, slot = name.partition(".")
        slots.setdefault(int(number), {})[slot] = _laid_out(tensor, parameters[int(number)])
    fresh = learner.optimizer.state_dict()["param_groups"]
    groups = [{**kept, "params": group["params"]} for kept, group in zip(state["groups"], fresh, strict=True)]
    learner.optimizer.load_state_dict({"state": slots, "param_groups": groups})
    learner.schedule.last_epoch = state["schedule"]
    learner.step = state["step"]
    extra: dict[str, Any] = state["extra"]
    return extra


def drop_checkpoints(store: Store, run: str, keep: set[int]) -> None:
    """Removes whole checkpoints but those of the given epochs, the marker first, so that none is ever taken for whole."""
    for epoch in set(complete_epochs(store, run)) - keep:
        for name in (_STATE, _TRAINING, WEIGHTS):
            store.delete(f"{checkpoint_prefix(run, epoch)}/{name}")


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def _laid_out(tensor: Tensor, parameter: Tensor) -> Tensor:
    """Returns a state whose numbers lie in memory as the parameter's do: a fused optimiser goes through both in one line."""
    return torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor) if tensor.shape == parameter.shape else tensor


def _below(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
