"""LoRA+: B learns faster than A (Hayou, Ghosh and Yu 2024, arXiv 2402.12354)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from xgblora_lab.methods.base import adamw
from xgblora_lab.methods.lora import LoRA


@dataclass
class LoRAPlus(LoRA):
    """LoRA whose B, which starts at zero, takes steps `ratio` times as large as A's.

    lr: of A, 1e-4 by default: with the default ratio B learns at 1.6e-3, about what a plain LoRA's B does.
    ratio: B's learning rate over A's, 1 or more; 16 by default, the paper's advice. 1 is LoRA bit for bit.
    Costs nothing beyond LoRA.
    """

    lr: float = 1e-4
    ratio: float = 16.0

    name: ClassVar[str] = "lora+"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.ratio >= 1:
            raise ValueError(f"ratio, B's learning rate over A's, must be at least 1, got {self.ratio}.")

    def new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        B = [p for name, p in self.trainable().items() if name.endswith(".B")]
        faster = {id(p) for p in B}
        others = [p for p in parameters if id(p) not in faster]
        optimizer = adamw(others, self.lr, self.betas, self.weight_decay)
        optimizer.add_param_group({"params": B, "lr_ratio": self.ratio})
        return optimizer
