"""One visual language: a colour, a dash and a marker per method, the same in every figure.

Colours are Okabe and Ito's palette without its yellow, which vanishes on white when projected. Dash and
marker repeat what the colour says, for readers who do not see it and for prints in grey.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

VERMILLION, BLUE, BLACK, GREEN = "#D55E00", "#0072B2", "#000000", "#009E73"
PURPLE, SKY, ORANGE = "#CC79A7", "#56B4E9", "#E69F00"
COLOURS = (VERMILLION, BLUE, BLACK, GREEN, PURPLE, SKY, ORANGE)
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "longdashdot")
MARKERS = (
    "circle", "square", "diamond", "triangle-up", "x", "star", "cross",
    "triangle-down", "pentagon", "hexagon", "triangle-left", "triangle-right", "hourglass",
)  # fmt: skip
METHODS = (
    "xgblora", "lora", "full", "gora", "lora-ga", "lora-pro", "lora-rite",
    "rora", "beamlora", "lora-ggpo", "alora", "sora", "lora+", "dora",
    "pissa", "adalora", "relora", "cola", "lora-mgpo", "adapad",
)  # fmt: skip

INK, GREY, PALE = "#222222", "#6E6E6E", "#DDDDDD"
HEAT = "Cividis"  # monotone in lightness, so a print in grey keeps the order
DIVERGING = ((0.0, BLUE), (0.5, "#FFFFFF"), (1.0, VERMILLION))
FONT = "Open Sans, DejaVu Sans, Arial, sans-serif"
HEIGHT = 560  # pixels; the width follows the page
TOOLBAR = 44  # pixels on the right for plotly's buttons, which would else lie on a title or a plot


@dataclass(frozen=True)
class Style:
    """How one method is drawn.

    Parameters
    ----------
    colour : str
        As "#D55E00".
    dash, marker : str
        plotly's names.
    """

    colour: str
    dash: str
    marker: str

    def line(self, width: float = 3) -> dict[str, Any]:
        """Plotly's settings of a line, `width` pixels wide."""
        return {"color": self.colour, "dash": self.dash, "width": width}

    def points(self, size: float = 10, shown: int = 12) -> dict[str, Any]:
        """At most `shown` markers on a line, so that 200 rounds stay a line."""
        return points(self.colour, self.marker, size, shown) | {"line": {"width": 1, "color": "white"}}


def style(method: str, variant: int = 0) -> Style:
    """The style of a method.

    Parameters
    ----------
    method : str
        Its name. One that is not in `METHODS` gets a style from its name, the same in every figure.
    variant : int, default 0
        Tells runs of one method apart, e.g. LoRA of rank 1 and of rank 8, by dash and marker.

    Returns
    -------
    Style
        Colour, dash and marker.
    """
    name = "-".join(method.lower().replace("_", "-").split())
    free = len(COLOURS) * len(DASHES) - len(METHODS)
    index = METHODS.index(name) if name in METHODS else len(METHODS) + zlib.crc32(name.encode()) % free
    column, row = index % len(COLOURS), index // len(COLOURS)
    marker = MARKERS[(index + 3 * variant) % len(MARKERS)]
    return Style(COLOURS[column], DASHES[(column + row + variant) % len(DASHES)], marker)


def points(colour: str, marker: str, size: float = 10, shown: int = 12) -> dict[str, Any]:
    """Plotly's settings of a line's markers, at most `shown` of them."""
    return {"color": colour, "symbol": marker, "size": size, "maxdisplayed": shown}


def banded(
    plot: go.Figure, x: Any, curves: tuple[Any, Any, Any], name: str, look: Style, **place: Any
) -> None:
    """Add three traces: the lowest and the highest of several seeds with the area between, and the median.

    Parameters
    ----------
    plot : plotly.graph_objects.Figure
        Changed in place.
    x : array (T,)
        What the curves are drawn against.
    curves : tuple of three arrays (T,)
        Median, lowest and highest; of one seed, three times the same.
    name : str
        In the legend.
    look : Style
        Of the method.
    **place
        Row and column, as for `add_scatter`.
    """
    mid, low, high = curves
    hidden = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    group = {"legendgroup": name} | place
    plot.add_scatter(x=x, y=low, **hidden, **group)
    plot.add_scatter(x=x, y=high, fill="tonexty", fillcolor=_faint(look.colour), **hidden, **group)
    plot.add_scatter(
        x=x,
        y=mid,
        name=name,
        mode="lines+markers",
        line=look.line(3.5),
        marker=look.points(),
        hovertemplate="%{x:,}: %{y:.4g}<extra>" + name + "</extra>",
        **group,
    )


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.16)"


def layout(figure: go.Figure, title: str, note: str = "", height: int = HEIGHT) -> go.Figure:
    """The common look: large type, a title on the left, thin grid, the legend below the axes."""
    heading: dict[str, Any] = {"text": title, "pad": {"t": 14}, "font": {"size": 22, "color": INK}}
    heading |= {"x": 0, "xref": "paper", "xanchor": "left", "y": 1, "yref": "container", "yanchor": "top"}
    if note:
        heading["subtitle"] = {"text": note, "font": {"size": 16, "color": GREY}}
    figure.update_layout(
        title=heading,
        font={"family": FONT, "size": 16, "color": INK},
        template="none",
        paper_bgcolor="white",
        plot_bgcolor="white",
        height=height,
        margin={"l": 90, "r": TOOLBAR + (80 if _has_bar(figure) else 0), "t": 104 if note else 84, "b": 70},
        modebar={"orientation": "v", "bgcolor": "rgba(0,0,0,0)", "remove": ["select", "lasso", "autoscale"]},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": -0.2, "yanchor": "top", "font_size": 16},
        hoverlabel={"font": {"size": 15}},
        hovermode="closest",
    )
    axis = {"showline": True, "linecolor": INK, "ticks": "outside", "tickcolor": INK, "gridcolor": PALE}
    axis |= {"zeroline": False, "automargin": True, "title": {"standoff": 12}, "exponentformat": "power"}
    figure.update_xaxes(**axis)
    figure.update_yaxes(**axis)
    figure.update_annotations(font={"size": 17})  # the subplots' titles
    return figure


def _has_bar(figure: go.Figure) -> bool:
    """Whether a colour bar stands on the right of the plots."""
    for trace in figure.data:
        coloured = trace if trace.type == "heatmap" else getattr(trace, "marker", None)
        if coloured is None:
            continue
        shown = coloured.showscale is not False if trace.type == "heatmap" else coloured.showscale
        if shown and (coloured.colorbar.x is None or coloured.colorbar.x >= 1):
            return True
    return False


def say(figure: go.Figure, message: str, **place: Any) -> go.Figure:
    """Write a sentence into the figure where something is missing; `place` as for `add_annotation`."""
    spot: dict[str, Any] = {"x": 0.5, "y": 0.5, "xref": "paper", "yref": "paper"} | place
    frame = {"bgcolor": "rgba(255,255,255,0.9)", "bordercolor": GREY, "borderwidth": 1, "borderpad": 10}
    font = {"size": 17, "color": INK}
    figure.add_annotation(text=wrapped(message), showarrow=False, font=font, align="left", **frame, **spot)
    return figure


def log_ticks(values: Any, unit: str = "") -> dict[str, Any]:
    """Settings of a logarithmic axis with whole numbers as ticks; plotly's own are bare digits between."""
    import numpy as np

    found = np.ravel(np.asarray(values, dtype=float))
    found = found[np.isfinite(found) & (found > 0)]
    if not found.size:
        return {"type": "log"}
    low, high = np.log10(found.min()), np.log10(found.max())
    digits = (1, 2, 5) if high - low < 2.5 else (1,)
    stride = max(1, int((high - low) // 6))
    powers = range(int(np.floor(low)) - 1, int(np.ceil(high)) + 2)
    ticks = [d * 10.0**n for n in powers for d in digits if n % stride == 0]
    text = [si(t) + unit if unit else f"{t:,.0f}" if t >= 1 else f"{t:.6g}" for t in ticks]
    return {"type": "log", "tickvals": ticks, "ticktext": text}


def scaled(title: str, kind: str) -> str:
    """An axis title that says so where the axis is logarithmic (`kind` "log")."""
    return f"{title}, log scale" if kind == "log" else title


def si(value: float) -> str:
    """12000 → "12 k", for a tick before a unit."""
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            return f"{value:.3g} {prefix}"
        value /= 1000
    raise AssertionError


def wrapped(text: str, width: int = 60) -> str:
    """Plotly breaks lines only where it is told to."""
    import textwrap

    return "<br>".join(textwrap.wrap(text, width, break_on_hyphens=False))


def ratio_axis(values: Any, factor: float = 8.0) -> str:
    """`"log"` where positive values span more than `factor`, so that equal ratios are equal distances."""
    import numpy as np

    finite = np.asarray([v for v in np.ravel(np.asarray(values, dtype=float)) if np.isfinite(v)])
    if finite.size == 0 or finite.min() <= 0:
        return "linear"
    return "log" if finite.max() / finite.min() > factor else "linear"
