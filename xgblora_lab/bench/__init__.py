"""The one loop, and what it leaves behind: rounds, their records, hooks, going back."""

from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.checkpoint import Checkpoint, resume
from xgblora_lab.bench.hooks import Gain, Gradient, Hook, Probe, Spectrum, Stop
from xgblora_lab.bench.records import History, Round

__all__ = ["Bench", "Checkpoint", "Gain", "Gradient", "History", "Hook", "Probe", "Round", "Spectrum", "Stop"]
__all__ += ["resume"]
