"""Several methods against each other, fairly."""

from xgblora_lab.racing.race import Race, race

__all__ = ["Race", "race"]
