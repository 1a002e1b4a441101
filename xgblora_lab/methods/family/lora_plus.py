"""LoRA+: B learns faster than A (Hayou, Ghosh and Yu 2024, arXiv 2402.12354)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from xgblora_lab.methods.lora import LoRA
from xgblora_lab.methods.optimizers import adamw
from xgblora_lab.methods.options import option


@dataclass
class LoRAPlus(LoRA):
    """LoRA whose B, which starts at zero, takes steps `ratio` times as large as A's.

    It costs nothing beyond LoRA.

    Parameters
    ----------
    lr : float
        Of A. With the default ratio B learns at 1.6e-3, about what a plain LoRA's B does.
    ratio : float
        B's learning rate over A's; the default is the paper's advice. 1 is LoRA bit for bit.

    References
    ----------
    Hayou, Ghosh and Yu 2024, arXiv 2402.12354: η_B = ratio · η_A.
    """

    lr: float = 1e-4
    ratio: float = option(16.0, low=1)

    name: ClassVar[str] = "lora+"

    def new_optimizer(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        B = [p for name, p in self.trainable().items() if name.endswith(".B")]
        faster = {id(p) for p in B}
        others = [p for p in parameters if id(p) not in faster]
        optimizer = adamw(others, self.lr, self.betas, self.weight_decay)
        optimizer.add_param_group({"params": B, "lr_ratio": self.ratio})
        return optimizer
