"""How the rank of the accumulated update grows, and the bound that it must obey."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import Array, brief, natural, number, plural, short, single, spectra, subject
from xgblora_lab.figures._style import BLUE, GREEN, INK, VERMILLION, layout, points
from xgblora_lab.figures.spectrum import MISSING

KINDS = {  # name: (colour, dash, marker)
    "numerical rank": (VERMILLION, "solid", "circle"),
    "effective rank": (BLUE, "dash", "square"),
    "stable rank": (GREEN, "dashdot", "triangle-up"),
}


def ranks(history: History | Iterable[History], module: str | None = None) -> Figure:
    """Numerical, effective and stable rank of the accumulated update by round, and the bound they must obey.

    Left the mean over modules (or one module), right every module after the last measured round. The bound
    is the method's: the rank of one booster × the times that the module was chosen where rounds are merged,
    the largest rank that the method allows where they are not. Where the record states none (full
    fine-tuning, DoRA), the shape alone is a bound, and none is drawn.

    Parameters
    ----------
    history : History
        Of one run with the hook `Spectrum`.
    module : str, optional
        The one module to show on the left. Default: the mean over all.

    Returns
    -------
    Figure
        With one row per measured round and module in its table.

    Raises
    ------
    ValueError
        For several histories, or a module that no round measured.
    """
    history = single(history)
    indices, found = spectra(history)
    if not any(len(rows[-1]) for rows in found.values() if rows):
        return blank("Rank of the accumulated update", MISSING)
    if module is not None and module not in found:
        raise ValueError(f"No spectrum of module {module!r} was measured; measured are {', '.join(found)}.")
    table = _table(history, indices, found)
    names = sorted(found, key=natural)
    scope = table[table["module"] == module] if module else table
    mean = scope.groupby("round", sort=True).mean(numeric_only=True)
    last = table[table["round"] == indices[-1]].set_index("module").loc[names]
    titles = (
        module or f"mean over {plural(len(names), 'module')}",
        f"every module after round {indices[-1]}",
    )
    plot = make_subplots(
        rows=1, cols=2, column_widths=[0.55, 0.45], horizontal_spacing=0.16, subplot_titles=titles
    )
    ticks = list(short(names).values())
    _draw(plot, mean, last, ticks)
    _draw_bound(plot, history, mean, last, ticks)
    height = max(560, 24 * len(names) + 200)
    layout(plot, f"Rank of the accumulated update: {subject(history)}", height=height)
    plot.update_xaxes(title_text="round t", row=1, col=1)
    plot.update_yaxes(title_text="rank", rangemode="tozero", row=1, col=1)
    plot.update_xaxes(title_text="rank", rangemode="tozero", row=1, col=2)
    every = {"dtick": 1} if len(names) <= 40 else {}
    plot.update_yaxes(autorange="reversed", showgrid=True, **every, row=1, col=2)
    return Figure(plot, _words(history, mean, last, module), table)


def _draw(plot: go.Figure, mean: pd.DataFrame, last: pd.DataFrame, ticks: list[str]) -> None:
    for kind, (colour, dash, marker) in KINDS.items():
        line = {"color": colour, "dash": dash, "width": 3}
        look = {"name": kind, "legendgroup": kind}
        plot.add_scatter(
            x=mean.index,
            y=mean[kind],
            mode="lines+markers",
            line=line,
            marker=points(colour, marker),
            **look,
            row=1,
            col=1,
        )
        dots = points(colour, marker, 12)
        plot.add_scatter(
            x=last[kind], y=ticks, mode="markers", marker=dots, showlegend=False, **look, row=1, col=2
        )


def _draw_bound(
    plot: go.Figure, history: History, mean: pd.DataFrame, last: pd.DataFrame, ticks: list[str]
) -> None:
    bound = history.settings.rank_bound
    if bound is None:
        return
    name = f"bound: {bound} × times chosen" if history.settings.merges else f"bound: {bound}"
    line = {"color": INK, "dash": "dot", "width": 2.5}
    plot.add_scatter(x=mean.index, y=mean["bound"], name=name, mode="lines", line=line, row=1, col=1)
    bar = {"symbol": "line-ns-open", "size": 16, "color": INK, "line": {"width": 2.5}}
    plot.add_scatter(
        x=last["bound"], y=ticks, name="bound", showlegend=False, mode="markers", marker=bar, row=1, col=2
    )


def _bounds(history: History, modules: Iterable[str]) -> dict[int, dict[str, float]]:
    """Round → module → the bound on the rank of its update; nan where the record states none."""
    once, merges = number(history.settings.rank_bound), history.settings.merges
    own = history.settings.options.get("rank", 1)
    total = dict.fromkeys(modules, once * 0 if merges else once)
    bounds = {}
    for record in history:
        options = record.measurements.get("options") or {}  # where they changed between rounds
        for name in record.modules:
            if merges and name in total:
                total[name] += once * options.get("rank", own) / own
        bounds[record.index] = dict(total)
    return bounds


def _table(history: History, indices: Sequence[int], found: Mapping[str, list[Array]]) -> pd.DataFrame:
    bounds = _bounds(history, found)
    known: dict[bytes, dict[str, float]] = {}  # a module not chosen keeps its spectrum, and its ranks
    rows = []
    for name, values in found.items():
        for t, s in zip(indices, values, strict=True):
            if (key := s.tobytes()) not in known:
                known[key] = _three_ranks(s)
            rows.append({"round": t, "module": name} | known[key] | {"bound": bounds[t][name]})
    return pd.DataFrame(rows)


def _three_ranks(singular_values: Array) -> dict[str, float]:
    from torch import as_tensor

    from xgblora_lab.lowrank.spectra import effective_rank, numerical_rank, stable_rank

    if not singular_values.size or not singular_values[0] > 0:
        return dict.fromkeys(KINDS, 0.0)
    s = as_tensor(singular_values)
    three = (float(rank(s)) for rank in (numerical_rank, effective_rank, stable_rank))
    return dict(zip(KINDS, three, strict=True))


def _words(history: History, mean: pd.DataFrame, last: pd.DataFrame, module: str | None) -> str:
    now = mean.iloc[-1]
    where = module or f"the mean over {plural(len(last), 'module')}"
    text = f"{subject(history)}, after round {mean.index[-1]}, {where}: "
    text += f"numerical rank {brief(now['numerical rank'])}, "
    text += f"effective rank {brief(now['effective rank'])}, stable rank {brief(now['stable rank'])}."
    if np.isfinite(now["bound"]):
        over = int((last["numerical rank"] > last["bound"] + 1e-9).sum())
        verdict = (
            f"{plural(over, 'module')} above it: this is an error." if over else "no module exceeds its own."
        )
        text += f" The bound is {brief(now['bound'])}; {verdict}"
    return text
