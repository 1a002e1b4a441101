"""The interactive pieces, for JupyterLab 4, Notebook 7, VS Code and Colab.

    Stepper(bench)              train round by round; look back, rewind, drop a booster
    SpectrumExplorer(history)   module × round × reference
    RaceView(race)              methods on and off, any budget, every learning rate of the sweep

Each shows figures of `xgblora_lab.figures` and says beside them, in words, what they show.
"""

from importlib.util import find_spec

if find_spec("ipywidgets") is None:
    raise ImportError("The interactive pieces need ipywidgets: pip install 'xgblora-lab[lab]'.")

from .canvas import Canvas
from .explorer import SpectrumExplorer
from .panel import Panel
from .race_view import RaceView
from .stepper import Stepper

__all__ = ["Canvas", "Panel", "RaceView", "SpectrumExplorer", "Stepper"]
