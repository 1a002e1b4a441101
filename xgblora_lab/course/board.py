"""What every lesson writes on the board: a sentence from the run's numbers, a chart, its lines, its sizes.

A notebook that imports these four shows its own idea and not the frame around it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import plotly.graph_objects as go

from xgblora_lab.figures._style import COLOURS, DASHES, MARKERS, Style, layout, points, scaled

Sizes = TypeVar("Sizes")
HEIGHT = 470  # pixels: a chart and the sentence below it fit on one screen


def pick(profile: str, profiles: Mapping[str, Sizes]) -> Sizes:
    """The sizes of a run.

    Parameters
    ----------
    profile : str
        The notebook's parameter.
    profiles : mapping of str to anything
        The profiles that the notebook has.

    Raises
    ------
    ValueError
        There is no such profile; the sentence lists those that there are.
    """
    if profile not in profiles:
        raise ValueError(f"profile is {profile!r}; choose one of {', '.join(profiles)}.")
    return profiles[profile]


def say(text: str) -> None:
    """Show a sentence whose numbers come from this run, behind a grey bar.

    Parameters
    ----------
    text : str
        Markdown.
    """
    from IPython.display import Markdown, display

    display(Markdown(f"> {text}"))


def chart(title: str, x: str, y: str, *, log: str = "", note: str = "") -> go.Figure:
    """Make an empty figure in the look of all figures here.

    Parameters
    ----------
    title, x, y : str
        Of the figure and its axes; an axis title holds the unit.
    log : str, default ""
        The axes that are logarithmic: "x", "y" or "xy". The others take numbers, or names.
    note : str, default ""
        A second line below the title.

    Returns
    -------
    plotly.graph_objects.Figure
        `line` adds to it, and `.show()` shows it.
    """
    figure = layout(go.Figure(), title, note, HEIGHT)
    for axis, name, text in ((figure.layout.xaxis, "x", x), (figure.layout.yaxis, "y", y)):
        axis.update(title_text=text, tickformat="~g")
        if name in log:  # plotly's own ticks are bare digits between the powers
            axis.update(title_text=scaled(text, "log"), type="log", dtick="D2")
    return figure.update_yaxes(showgrid=True)


def line(figure: go.Figure, name: str, x: Any, y: Any, look: int | Style = 0, **options: Any) -> go.Figure:
    """Add a named line to a chart.

    Parameters
    ----------
    figure : plotly.graph_objects.Figure
        Changed in place.
    name : str
        In the legend.
    x, y : sequence of float
        Of the same length.
    look : int or Style, default 0
        A number chooses colour, dash and marker together, so that no line is told by its colour alone; a
        method's own look is `figures.style(name)`.
    **options
        Of `add_scatter`, such as `mode="lines+markers"`.

    Returns
    -------
    plotly.graph_objects.Figure
        The same figure.
    """
    if not isinstance(look, Style):
        place = look % len(COLOURS)
        look = Style(COLOURS[place], DASHES[place % len(DASHES)], MARKERS[place])
    given = {"mode": "lines", "line": look.line(), "marker": points(look.colour, look.marker, 11, 60)}
    return figure.add_scatter(x=list(x), y=list(y), name=name, **given | options)
