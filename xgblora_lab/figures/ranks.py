"""Figures 3 and 4: how the update's rank grows, and how its leading subspace turns towards the truth."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import pandas as pd
from plotly.subplots import make_subplots

from xgblora_lab.bench.records import History
from xgblora_lab.figures._figure import Figure, blank
from xgblora_lab.figures._read import (
    Array,
    brief,
    measured,
    natural,
    number,
    plural,
    setting,
    short,
    single,
    spectra,
    subject,
)
from xgblora_lab.figures._style import BLUE, GREEN, GREY, INK, VERMILLION, layout
from xgblora_lab.figures.spectrum import MISSING

KINDS = {  # name: (colour, dash, marker)
    "numerical rank": (VERMILLION, "solid", "circle"),
    "effective rank": (BLUE, "dash", "square"),
    "stable rank": (GREEN, "dashdot", "triangle-up"),
}
MERGING = ("xgblora", "relora", "cola")  # methods whose update gains a factor each time a module is chosen


def ranks(history: History | Iterable[History], module: str | None = None) -> Figure:
    """Numerical, effective and stable rank of the accumulated update by round, and the bound they must obey.

    Left the mean over modules (or one `module`), right every module after the last measured round. The bound
    is r × times chosen for methods that merge, r for those that do not; full fine-tuning has none but its
    shape. Raises ValueError for a module that no round measured.
    """
    history = single(history)
    indices, found = spectra(history)
    if not any(len(rows[-1]) for rows in found.values() if rows):
        return blank("Rank of the accumulated update", MISSING)
    if module is not None and module not in found:
        raise ValueError(f"No spectrum of module {module!r} was measured; measured are {', '.join(found)}.")
    table = _rank_table(history, indices, found)
    names = sorted(found, key=natural)
    plot = make_subplots(
        rows=1, cols=2, column_widths=[0.55, 0.45], horizontal_spacing=0.16,
        subplot_titles=(module or f"mean over {plural(len(names), 'module')}",
        f"every module after round {indices[-1]}"),
    )  # fmt: skip
    scope = table[table["module"] == module] if module else table
    mean = scope.groupby("round", sort=True).mean(numeric_only=True)
    last = table[table["round"] == indices[-1]].set_index("module").loc[names]
    ticks = list(short(names).values())
    for kind, (colour, dash, marker) in KINDS.items():
        dots = {"color": colour, "symbol": marker, "size": 10, "maxdisplayed": 12}
        plot.add_scatter(
            x=mean.index, y=mean[kind], name=kind, legendgroup=kind, mode="lines+markers", marker=dots,
            line={"color": colour, "dash": dash, "width": 3}, row=1, col=1,
        )  # fmt: skip
        plot.add_scatter(
            x=last[kind], y=ticks, name=kind, legendgroup=kind, mode="markers", showlegend=False,
            marker=dots | {"size": 12}, row=1, col=2,
        )  # fmt: skip
    if mean["bound"].notna().any():
        plot.add_scatter(
            x=mean.index, y=mean["bound"], name="bound: r × times chosen" if _merges(history) else "bound: r",
            mode="lines", line={"color": INK, "dash": "dot", "width": 2.5}, row=1, col=1,
        )  # fmt: skip
    plot.add_scatter(
        x=last["bound"], y=ticks, name="bound", showlegend=False, mode="markers",
        marker={"symbol": "line-ns-open", "size": 16, "color": INK, "line": {"width": 2.5}}, row=1, col=2,
    )  # fmt: skip
    layout(
        plot, f"Rank of the accumulated update: {subject(history)}", height=max(560, 24 * len(names) + 200)
    )
    plot.update_xaxes(title_text="round t", row=1, col=1)
    plot.update_yaxes(title_text="rank", rangemode="tozero", row=1, col=1)
    plot.update_xaxes(title_text="rank", rangemode="tozero", row=1, col=2)
    plot.update_yaxes(
        autorange="reversed", showgrid=True, row=1, col=2, **({"dtick": 1} if len(names) <= 40 else {})
    )
    return Figure(plot, _rank_words(history, mean, last, module), table)


def _merges(history: History) -> bool:
    return bool(setting(history, "merges", history.method in MERGING))


def _rank_table(history: History, indices: Sequence[int], found: Mapping[str, list[Array]]) -> pd.DataFrame:
    from torch import as_tensor

    from xgblora_lab.lowrank.spectra import effective_rank, numerical_rank, stable_rank

    r, merges = number(setting(history, "rank")), _merges(history)
    times = dict.fromkeys(found, 0)
    bounds: dict[int, dict[str, float]] = {}
    for record in history:
        for name in record.modules:
            if name in times:
                times[name] += 1
        bounds[record.index] = {name: r * (n if merges else 1) for name, n in times.items()}
    known: dict[
        bytes, tuple[float, float, float]
    ] = {}  # a module not chosen keeps its spectrum, and its ranks
    rows = []
    for name, values in found.items():
        for t, s in zip(indices, values, strict=True):
            if (key := s.tobytes()) not in known:
                three = (float(rank(as_tensor(s))) for rank in (numerical_rank, effective_rank, stable_rank))
                known[key] = tuple(three) if s.size and s[0] > 0 else (0.0, 0.0, 0.0)  # type: ignore[assignment]
            bound = bounds[t][name]
            rows.append(
                {"round": t, "module": name} | dict(zip(KINDS, known[key], strict=True)) | {"bound": bound}
            )
    return pd.DataFrame(rows)


def _rank_words(history: History, mean: pd.DataFrame, last: pd.DataFrame, module: str | None) -> str:
    now = mean.iloc[-1]
    where = module or f"the mean over {plural(len(last), 'module')}"
    text = f"{subject(history)}, after round {mean.index[-1]}, {where}: "
    text += f"numerical rank {brief(now['numerical rank'])}, "
    text += f"effective rank {brief(now['effective rank'])}, stable rank {brief(now['stable rank'])}."
    if np.isfinite(now["bound"]):
        over = int((last["numerical rank"] > last["bound"] + 1e-9).sum())
        text += f" The bound is {brief(now['bound'])};"
        text += (
            " no module exceeds its own."
            if not over
            else f" {plural(over, 'module')} above it: this is an error."
        )
    return text


def alignment(history: History | Iterable[History]) -> Figure:
    """Mean squared cosine of the update's leading subspace with the truth's, and the distance left, by round.

    Reads the measurements `"alignment"` (0 to 1, by module) and, where present, `"distance"` (relative
    Frobenius distance to the truth, by module). Thin lines are modules, the thick line is their median.
    """
    history = single(history)
    angle, far = (_by_round(history, key) for key in ("alignment", "distance"))
    title = "Subspace alignment with the reference"
    if angle.empty and far.empty:
        return blank(
            title,
            "No alignment was measured: add the hook that compares the accumulated update with the planted "
            "truth or with full fine-tuning's update, and run again.",
        )
    panels = [(name, frame) for name, frame in (("alignment", angle), ("distance", far)) if not frame.empty]
    titles = {"alignment": "mean squared cosine", "distance": "relative distance"}
    reference = str(setting(history, "reference", "the truth"))
    plot = make_subplots(rows=1, cols=len(panels), horizontal_spacing=0.14)
    for column, (kind, frame) in enumerate(panels, 1):
        labels = short(list(frame.columns))
        for name in sorted(frame.columns, key=natural):
            plot.add_scatter(
                x=frame.index, y=frame[name], mode="lines", line={"color": "#BBBBBB", "width": 1.5},
                name="one module",
                legendgroup="one", showlegend=column == 1 and name == frame.columns[0] and frame.shape[1] > 1,
                visible=frame.shape[1] > 1, row=1, col=column,
                hovertemplate="round %{x}: %{y:.3g}<extra>" + labels[name] + "</extra>",
            )  # fmt: skip
        colour, dash, marker = (
            (VERMILLION, "solid", "circle") if kind == "alignment" else (BLUE, "dash", "square")
        )
        plot.add_scatter(
            x=frame.index, y=frame.median(axis=1), mode="lines+markers", row=1, col=column,
            name=f"{titles[kind]}, median" if frame.shape[1] > 1 else f"{titles[kind]}, {frame.columns[0]}",
            line={"color": colour, "dash": dash, "width": 3.5},
            marker={"color": colour, "symbol": marker, "size": 10, "maxdisplayed": 12},
        )  # fmt: skip
        best = 1.0 if kind == "alignment" else 0.0
        plot.add_hline(y=best, line={"color": GREY, "dash": "dot", "width": 2}, row=1, col=column)
    layout(plot, f"Subspace alignment with {reference}: {subject(history)}")
    plot.update_xaxes(title_text="round t")
    for column, (kind, _) in enumerate(panels, 1):
        top = [0, 1.04] if kind == "alignment" else None
        name = (
            "mean squared cosine (1 = same subspace)"
            if kind == "alignment"
            else "‖ΔW − ΔW*‖ / ‖ΔW*‖ (0 = reached)"
        )
        plot.update_yaxes(title_text=name, range=top, rangemode="tozero", row=1, col=column)
    return Figure(plot, _aligned_words(history, angle, far), _aligned_table(angle, far))


def _by_round(history: History, key: str) -> pd.DataFrame:
    """Rows: rounds; columns: modules; a module that is not measured again keeps its last value."""
    rows = {
        r.index: {
            name: number(v) for name, v in (found if isinstance(found, Mapping) else {"all": found}).items()
        }
        for r, found in measured(history, key)
    }
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
    return frame.ffill() if not frame.empty else frame


def _aligned_words(history: History, angle: pd.DataFrame, far: pd.DataFrame) -> str:
    text = f"{subject(history)}: "
    parts = []
    for frame, what in ((angle, "mean squared cosine with the reference"), (far, "relative distance to it")):
        if frame.empty:
            continue
        middle = frame.median(axis=1)
        step = f"{what} went from {brief(float(middle.iloc[0]))} to {brief(float(middle.iloc[-1]))}"
        parts.append(
            step
            + f" in {plural(len(middle), 'measured round')} (median of {plural(frame.shape[1], 'module')})"
        )
    text += "; ".join(parts) + "."
    if not angle.empty and angle.shape[1] > 1:
        last = angle.iloc[-1]
        text += f" Best {last.idxmax()} with {brief(float(last.max()))},"
        text += f" worst {last.idxmin()} with {brief(float(last.min()))}."
    return text


def _aligned_table(angle: pd.DataFrame, far: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for name in dict.fromkeys([*angle.columns, *far.columns]):
        for t in dict.fromkeys([*angle.index, *far.index]):
            row = {"round": t, "module": name}
            for key, frame in (("alignment", angle), ("distance", far)):
                if name in frame.columns and t in frame.index:
                    row[key] = frame.loc[t, name]
            rows.append(row)
    return pd.DataFrame(rows)
