"""A lab bench for low-rank fine-tuning: boosting with rank-1 adapters, round by round.

Names are imported on first use (PEP 562), so `import xgblora_lab` and the command line's `--help` stay quick.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adapters as adapters
    from . import check as check
    from . import figures as figures
    from . import spectra as spectra
    from . import widgets as widgets
    from .bench import Bench, resume
    from .ensemble import Ensemble
    from .hooks import Checkpoint, Gain, Gradient, Hook, Probe, Spectrum, Stop
    from .methods import METHODS, Full, LoRA, Method, XGBLoRA, make_method
    from .models import load, load_model, load_tokenizer
    from .planted import matrix, planted
    from .race import Race, race
    from .records import History, Round
    from .tasks import load_task

__version__ = "0.1.0"

_SUBMODULES = ("adapters", "check", "figures", "spectra", "widgets")
_NAMES = {
    "bench": ("Bench", "resume"),
    "ensemble": ("Ensemble",),
    "hooks": ("Checkpoint", "Gain", "Gradient", "Hook", "Probe", "Spectrum", "Stop"),
    "methods": ("METHODS", "Full", "LoRA", "Method", "XGBLoRA", "make_method"),
    "models": ("load", "load_model", "load_tokenizer"),
    "planted": ("matrix", "planted"),
    "race": ("Race", "race"),
    "records": ("History", "Round"),
    "tasks": ("load_task",),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "METHODS",
    "Bench",
    "Checkpoint",
    "Ensemble",
    "Full",
    "Gain",
    "Gradient",
    "History",
    "Hook",
    "LoRA",
    "Method",
    "Probe",
    "Race",
    "Round",
    "Spectrum",
    "Stop",
    "XGBLoRA",
    "adapters",
    "check",
    "figures",
    "load",
    "load_model",
    "load_task",
    "load_tokenizer",
    "make_method",
    "matrix",
    "planted",
    "race",
    "resume",
    "spectra",
    "widgets",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """Importing `xgblora_lab.race` must not replace the function `race` by the module of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
