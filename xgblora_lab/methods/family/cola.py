"""Chain of LoRA: LoRA, merged, and LoRA again (Xia et al. 2024, arXiv 2401.04151)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from xgblora_lab.methods.xgblora import XGBLoRA


@dataclass
class COLA(XGBLoRA):
    """Boosting rounds of rank r on all modules, each with a new optimizer: every round is one LoRA run.

    It costs one merge a round beyond LoRA. The other options are XGBLoRA's.

    Parameters
    ----------
    lr : float
        LoRA's unit.
    rank : int
        Of each link of the chain, as LoRA's.
    steps_per_round : int
        The length of a link. The paper's chains have few links, so give it a large part of the run; the
        default is the bench's.

    References
    ----------
    Xia, Qin and Hazan 2024, "Chain of LoRA", arXiv 2401.04151.
    """

    lr: float = 1e-3
    rank: int = 8
    selection: str = "all"

    name: ClassVar[str] = "cola"

    @classmethod
    def knobs(cls, steps: int) -> list[dict[str, Any]]:
        return super(XGBLoRA, cls).knobs(steps)  # a chain has links of one length, and none is trained again
