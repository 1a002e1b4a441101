"""Figures of a run or a race: histories in, a `Figure` out (a plotly figure, its text twin, its table).

    figures.loss(history)                    the residual loss, round by round
    figures.spectrum(history, module)        singular values of the accumulated update, scrubbed by a slider
    figures.ranks(history)                   numerical, effective and stable rank, and their bound
    figures.alignment(history)               how the update's subspace turns towards the truth
    figures.race(histories, x="tokens")      methods against a budget, beside the learning-rate sweep
    figures.gains(history, by="layer")       where the gain comes from
    figures.boosting_map(table)              when boosting wins
    figures.costs(histories)                 memory and time
    figures.sweep(race)                      learning rates tried, and what the others lose
    figures.pareto(histories, x="memory")    the score against what it costs
    figures.intruders(histories)             directions that the base does not know

All are pure functions: they read records, train nothing and change nothing.
"""

from xgblora_lab.figures._figure import CONFIG, Figure
from xgblora_lab.figures._lanes import AXES
from xgblora_lab.figures._style import METHODS, Style, style
from xgblora_lab.figures._theme import DARK, dark
from xgblora_lab.figures.alignment import alignment
from xgblora_lab.figures.boosting_map import boosting_map
from xgblora_lab.figures.costs import costs
from xgblora_lab.figures.gains import gains
from xgblora_lab.figures.intruders import intruders
from xgblora_lab.figures.loss import loss
from xgblora_lab.figures.pareto import pareto
from xgblora_lab.figures.race import race
from xgblora_lab.figures.ranks import ranks
from xgblora_lab.figures.spectrum import spectrum
from xgblora_lab.figures.sweep import sweep

__all__ = [
    "AXES",
    "CONFIG",
    "DARK",
    "METHODS",
    "Figure",
    "Style",
    "alignment",
    "boosting_map",
    "costs",
    "dark",
    "gains",
    "intruders",
    "loss",
    "pareto",
    "race",
    "ranks",
    "spectrum",
    "style",
    "sweep",
]
