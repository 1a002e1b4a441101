"""What every lesson writes on the board: a sentence from the run's numbers, charts, their lines, its sizes.

A notebook that imports these shows its own idea and not the frame around it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import plotly.graph_objects as go

from xgblora_lab.figures._style import COLOURS, DASHES, INK, MARKERS, Style, layout, points, scaled

if TYPE_CHECKING:
    from xgblora_lab.racing.summary import Difference

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


def forest(
    title: str, x: str, differences: Mapping[str, Difference], groups: Mapping[str, str], *, note: str = ""
) -> go.Figure:
    """Draw differences as dots with their intervals, one below the other, and a line at 0.

    Parameters
    ----------
    title, x : str
        Of the figure and of its axis, with the unit.
    differences : mapping of str to Difference
        Name → mean and interval, from top to bottom. One without an interval is a dot alone.
    groups : mapping of str to str
        Name → the group whose colour and marker it has, by the place of the group. It may name others too.
    note : str, default ""
        A second line below the title.

    Returns
    -------
    plotly.graph_objects.Figure
        A dot beyond the range of most others stands on the edge of the figure; a diverged one is not drawn.
    """
    middle = sorted(abs(d.mean) for d in differences.values() if math.isfinite(d.mean))
    reach = 2 * middle[round(0.9 * (len(middle) - 1))] + 1e-9 if middle else 1.0
    ends = [0.0]
    figure = go.Figure()
    for place, group in enumerate(dict.fromkeys(groups.values())):
        here = {name: d for name, d in differences.items() if groups[name] == group}
        if not here:
            continue
        half = [(d.high - d.low) / 2 if math.isfinite(d.high) else 0.0 for d in here.values()]
        dots = [max(-reach, min(d.mean, reach)) if math.isfinite(d.mean) else math.nan for d in here.values()]
        ends += [end for dot, h in zip(dots, half, strict=True) for end in (dot - h, dot + h) if dot == dot]
        figure.add_scatter(
            x=dots,
            y=list(here),
            name=group,
            mode="markers",
            error_x={"array": half, "thickness": 2.5, "width": 6},
            marker={"size": 13, "color": COLOURS[place % len(COLOURS)], "symbol": MARKERS[place]},
            customdata=[str(d) for d in here.values()],
            hovertemplate="%{customdata}<extra>%{y}</extra>",
        )
    figure.add_vline(x=0, line={"color": INK, "width": 2})
    rows = sum(20 + 14 * (1 + name.count("<br>")) for name in differences)
    layout(figure, title, note, 260 + rows)
    figure.update_layout(legend={"y": -90 / (86 + rows)})  # in plot heights: below the axis' title
    low, high = max(min(ends), -2 * reach), min(max(ends), 2 * reach)
    room = 0.05 * (high - low) + 1e-9
    figure.update_xaxes(title=x, range=[low - room, high + room], showgrid=True)
    return figure.update_yaxes(categoryorder="array", categoryarray=list(differences)[::-1], dtick=1)
