"""Several methods against each other, fairly."""

from xgblora_lab.racing.measures import Forgetting, Intruders, Sharpness
from xgblora_lab.racing.race import Race, race

__all__ = ["Forgetting", "Intruders", "Race", "Sharpness", "race"]
