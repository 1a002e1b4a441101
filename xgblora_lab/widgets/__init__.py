"""The interactive pieces, for JupyterLab 4, Notebook 7, VS Code and Colab.

    first_look()                the stepper over one matrix, ready to press
    Stepper(bench)              train round by round; look back, rewind, drop a booster
    SpectrumExplorer(history)   module × round × reference
    RaceView(race)              methods on and off, any budget, every learning rate of the sweep

Each shows figures of `xgblora_lab.figures` and says beside them, in words, what they show.
"""

from importlib.util import find_spec

if find_spec("ipywidgets") is None:
    raise ImportError("The interactive pieces need ipywidgets: pip install 'xgblora-lab[lab]'.")

from xgblora_lab.widgets.canvas import Canvas
from xgblora_lab.widgets.explorer import SpectrumExplorer
from xgblora_lab.widgets.first_look import first_look
from xgblora_lab.widgets.panel import Panel
from xgblora_lab.widgets.race_view import RaceView
from xgblora_lab.widgets.stepper import Stepper

__all__ = ["Canvas", "Panel", "RaceView", "SpectrumExplorer", "Stepper", "first_look"]
