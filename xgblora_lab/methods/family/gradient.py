"""The mean gradient of the frozen weights, which some methods look at before they train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import watched
from xgblora_lab.lowrank.linear import factor_dtype, weight_shape

if TYPE_CHECKING:
    from xgblora_lab.methods.base import Loop


def mean_gradients(loop: Loop, modules: Mapping[str, nn.Module], passes: int) -> dict[str, Tensor]:
    """∂loss/∂W of every module, the mean over the batches of the next steps.

    The same on all processes: each adds its part of DᵀX, with X (n, k) a module's inputs and D (n, d) the
    loss's gradient at its outputs. The weights stay frozen, so packed ones work too. It costs `passes`
    forward-backward passes, counted in the record, and d·k numbers per module.

    Parameters
    ----------
    loop : Loop
        A bench inside a round, before the round's first step.
    modules : mapping of str to nn.Module
        The linear maps looked at.
    passes : int
        Batches.

    Returns
    -------
    dict of str to Tensor
        (d, k) by module, on the CPU, in float32 (float64 on a float64 base). Zeros for a module that the loss
        does not depend on.

    Raises
    ------
    RuntimeError
        Outside a round, where there is no next step.
    ValueError
        Where a gradient is not finite.
    """
    sums = {name: torch.zeros(weight_shape(m), dtype=factor_dtype(m)) for name, m in modules.items()}

    def add(name: str, X: Tensor, D: Tensor) -> None:
        total = sums[name]
        total += (D.to(total.dtype).T @ X.to(total.dtype)).cpu()

    with watched(dict(modules), add):
        loop.probe_gradients(passes)
    scaler = loop.accelerator.scaler  # fp16 only: the loss was multiplied before its backward pass
    count = passes * (1.0 if scaler is None else scaler.get_scale())
    means = {}
    for name, total in sums.items():
        means[name] = loop.summed(total.to(loop.accelerator.device)).cpu() / count
        if not torch.isfinite(means[name]).all():
            raise ValueError(
                f"The gradient of {name!r} is not finite: check the data and the base's loss, or use bf16."
            )
    return means
