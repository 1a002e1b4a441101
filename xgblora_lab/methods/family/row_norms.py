"""The norms of the rows of an adapted weight, without forming the weight: for DoRA and LoRA-GGPO."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.lowrank.linear import can_merge, dense_weight
from xgblora_lab.stored import refuse_sharded


@torch.no_grad()
def row_norms(module: nn.Module, booster: LowRank, frozen: Tensor | None = None) -> Tensor:
    """2-norms of the rows of W + sBA, (d,), without forming the sum.

    Parameters
    ----------
    module : nn.Module
        Holds W (d, k).
    booster : LowRank
        Holds s, B and A.
    frozen : Tensor, (d,), optional
        The norms of W's rows, where known.

    Raises
    ------
    ValueError
        Where the weight is stored packed or sharded.
    """
    refuse_sharded({"weight": module.weight}, "the norms of its rows are not known; use lora.")  # type: ignore[dict-item]
    if not can_merge(module):
        raise ValueError(
            f"{type(module).__name__} stores its weight packed, so the norms of its rows are not known; "
            "use a model in float32, bfloat16 or float16 with this method."
        )
    W = dense_weight(module).detach().to(booster.A.dtype)
    square = W.square().sum(1) if frozen is None else frozen.square()
    A, B = booster.A.detach(), booster.B.detach() * booster.scale
    cross = ((W @ A.T) * B).sum(1)
    return (square + 2 * cross + ((B @ (A @ A.T)) * B).sum(1)).clamp_min(0).sqrt()
