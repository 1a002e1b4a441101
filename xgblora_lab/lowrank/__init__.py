"""What a low-rank update is: its spectrum, the linear maps it adapts, boosters, the weights, the ensemble."""

from xgblora_lab.lowrank import spectra
from xgblora_lab.lowrank.ensemble import Ensemble

__all__ = ["Ensemble", "spectra"]
