"""How the update's leading subspace turns towards the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import brief, by_module, natural, plural, short, single, subject
from xgblora_lab.figures._style import BLUE, GREY, VERMILLION, layout, points

MISSING = (
    "No alignment was measured: train on a task that knows the truth (planted, matrix) with the hook, "
    "Bench(…, hooks=[Spectrum()])."
)


@dataclass(frozen=True)
class _Kind:
    """One measurement that says how near the update is, and how it is drawn."""

    name: str
    axis: str
    words: str
    reached: float  # its value where the update is the truth
    look: tuple[str, str, str]  # colour, dash, marker


KINDS = {
    "alignment": _Kind(
        "mean squared cosine",
        "mean squared cosine<br>1 = same subspace",
        "mean squared cosine with the truth",
        1.0,
        (VERMILLION, "solid", "circle"),
    ),
    "distance": _Kind(
        "relative distance",
        "‖ΔW − ΔW*‖ / ‖ΔW*‖<br>0 = reached",
        "relative distance to the truth",
        0.0,
        (BLUE, "dash", "square"),
    ),
}


def alignment(history: History | Iterable[History]) -> Figure:
    """Mean squared cosine of the update's leading subspace with the truth's, and the distance left, by round.

    Thin lines are modules, the thick line is their median.

    Parameters
    ----------
    history : History
        Of one run with the measurements `"alignment"` (0 to 1, by module) or `"distance"` (relative Frobenius
        distance to the truth, by module); the hook `Spectrum` makes both where the task knows the truth.

    Returns
    -------
    Figure
        With one row per measured round and module in its table.

    Raises
    ------
    ValueError
        For several histories.
    """
    history = single(history)
    frames = {key: frame for key in KINDS if not (frame := by_module(history, key)).empty}
    title = "Subspace alignment with the truth"
    if not frames:
        return blank(title, MISSING)
    plot = make_subplots(rows=1, cols=len(frames), horizontal_spacing=0.14)
    for column, (key, frame) in enumerate(frames.items(), 1):
        _draw(plot, KINDS[key], frame, column)
    layout(plot, f"{title}: {subject(history)}")
    plot.update_xaxes(title_text="round t")
    for column, key in enumerate(frames, 1):
        top = [0, 1.04] if key == "alignment" else None
        plot.update_yaxes(title_text=KINDS[key].axis, range=top, rangemode="tozero", row=1, col=column)
    return Figure(plot, _words(history, frames), _table(frames))


def _draw(plot: go.Figure, kind: _Kind, frame: pd.DataFrame, column: int) -> None:
    labels, several = short(list(frame.columns)), frame.shape[1] > 1
    for name in sorted(frame.columns, key=natural) if several else ():
        plot.add_scatter(
            x=frame.index,
            y=frame[name],
            mode="lines",
            line={"color": "#BBBBBB", "width": 1.5},
            name="one module",
            legendgroup="one",
            showlegend=column == 1 and name == frame.columns[0],
            hovertemplate="round %{x}: %{y:.3g}<extra>" + labels[name] + "</extra>",
            row=1,
            col=column,
        )
    colour, dash, marker = kind.look
    plot.add_scatter(
        x=frame.index,
        y=frame.median(axis=1),
        mode="lines+markers",
        name=f"{kind.name}, {'median' if several else frame.columns[0]}",
        line={"color": colour, "dash": dash, "width": 3.5},
        marker=points(colour, marker),
        row=1,
        col=column,
    )
    plot.add_hline(y=kind.reached, line={"color": GREY, "dash": "dot", "width": 2}, row=1, col=column)


def _words(history: History, frames: Mapping[str, pd.DataFrame]) -> str:
    parts = []
    for key, frame in frames.items():
        middle = frame.median(axis=1)
        change = f"from {brief(float(middle.iloc[0]))} to {brief(float(middle.iloc[-1]))}"
        count = f"{plural(len(middle), 'measured round')} (median of {plural(frame.shape[1], 'module')})"
        parts.append(f"{KINDS[key].words} went {change} in {count}")
    text = f"{subject(history)}: {'; '.join(parts)}."
    angle = frames.get("alignment")
    if angle is not None and angle.shape[1] > 1:
        last = angle.iloc[-1]
        text += f" Best {last.idxmax()} with {brief(float(last.max()))},"
        text += f" worst {last.idxmin()} with {brief(float(last.min()))}."
    return text


def _table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row per module and round, in the order of the modules."""
    long = [
        frame.rename_axis("round")
        .melt(ignore_index=False, var_name="module", value_name=key)
        .set_index("module", append=True)
        for key, frame in frames.items()
    ]
    return pd.concat(long, axis=1).reset_index()
