"""AdamW as every method uses it, and any optimizer's state as named tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class EagerAdamW(torch.optim.AdamW):
    """AdamW that is never compiled, and so needs no compiler: the same numbers, and seconds less to wait.

    torch marks these two methods for `torch.compile`, and imports all of its compiler for that at their first
    call. Here they are called below the mark.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        inspect.unwrap(torch.optim.Optimizer.add_param_group)(self, param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        found: float | None = inspect.unwrap(torch.optim.AdamW.step)(self, closure)
        return found


def adamw(
    parameters: list[nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float = 0.0
) -> EagerAdamW:
    """torch's AdamW, fused: one kernel call for all parameters, which matters when they are tiny.

    Parameters
    ----------
    parameters : list of nn.Parameter
        What it trains.
    lr : float
        Learning rate.
    betas : tuple of float
        Decay of the two moments.
    weight_decay : float, default 0.0
        Decoupled from the gradient.

    Returns
    -------
    EagerAdamW
    """
    return EagerAdamW(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def optimizer_tensors(
    optimizer: Optimizer, parameters: Mapping[str, nn.Parameter], prefix: str = ""
) -> dict[str, Tensor]:
    """The optimizer's state as named tensors, copied to the CPU.

    Parameters
    ----------
    optimizer : Optimizer
    parameters : mapping of str to nn.Parameter
        Whose state is wanted, by name.
    prefix : str, default ""
        What every name begins with.

    Returns
    -------
    dict
        `prefix + parameter name + "/" + key` to a copy.
    """
    return {
        f"{prefix}{name}/{key}": torch.as_tensor(value).detach().to("cpu", copy=True)
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(
    optimizer: Optimizer,
    parameters: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
    prefix: str = "",
) -> None:
    """Give an optimizer the state that `optimizer_tensors` took; parameters that had none stay fresh.

    Parameters
    ----------
    optimizer : Optimizer
    parameters : mapping of str to nn.Parameter
        Those of the optimizer, by the names that they had.
    tensors : mapping of str to Tensor
        The state; other tensors may be among them.
    prefix : str, default ""
        As it was.
    """
    for name, parameter in parameters.items():
        start = f"{prefix}{name}/"
        entry = {
            key[len(start) :]: value.to(parameter.device, copy=True)
            for key, value in tensors.items()
            if key.startswith(start)
        }
        if entry:
            optimizer.state[parameter] = entry
