"""Chain of LoRA: LoRA, merged, and LoRA again (COLA, arXiv 2401.04151)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from xgblora_lab.methods.xgblora import XGBLoRA


@dataclass
class COLA(XGBLoRA):
    """Boosting rounds of rank r on all modules, each with a new optimizer: every round is one LoRA run.

    rank: of each link (8 as LoRA here). lr: LoRA's unit, 1e-3. steps_per_round: the length of a link; the
    paper's chains have few links, so give it a large part of the run (20 is the bench's default, ours).
    Cost beyond LoRA: one merge a round. The other options are XGBLoRA's.
    """

    lr: float = 1e-3
    rank: int = 8
    selection: str = "all"

    name: ClassVar[str] = "cola"
