"""RoRA: LoRA whose scale falls with the root of the rank (Liu et al. 2025, arXiv 2501.04315)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xgblora_lab.methods.lora import LoRA


@dataclass
class RoRA(LoRA):
    """LoRA with the scale alpha/√r in place of alpha/r, so that the update does not fade as the rank grows.

    It costs nothing beyond LoRA. It is the same rule as rsLoRA's, which RoRA's authors try on pruned models:
    `RoRA(rank=r, alpha=a)` is `LoRA(rank=r, alpha=a·√r)`.

    Parameters
    ----------
    lr : float
        With AdamW the first step grows with √r, so the default is about LoRA's 1e-3 over √8. Tune it anew for
        another rank.
    scaling : str
        As in LoRA.

    References
    ----------
    Liu et al. 2025, arXiv 2501.04315; Kalajdzievski 2023 (rsLoRA), arXiv 2312.03732.
    """

    lr: float = 3e-4
    scaling: str = "rslora"

    name: ClassVar[str] = "rora"
