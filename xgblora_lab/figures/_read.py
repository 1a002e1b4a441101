"""What the figures read off a history: units, series by round, spectra, and numbers in words."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from xgblora_lab.bench.records import History, Round

Array = np.ndarray[Any, np.dtype[np.float64]]
NATS = ("classification", "causal-lm", "seq2seq-lm", "prompt-answer", "planted")  # kinds of task
NAT_METRICS = ("accuracy", "matthews", "f1", "perplexity", "bits_per_byte", "relative")
SQUARES = {"matrix": "½‖W − W*‖²", "regression": "mean squared error"}


def listed(histories: History | Iterable[History]) -> list[History]:
    """A list of histories from one or several.

    Raises
    ------
    ValueError
        Where there is none, or where something is no history.
    """
    found = [histories] if isinstance(histories, History) else list(histories)
    for history in found:
        if not isinstance(history, History):
            kind = type(history).__name__
            raise ValueError(f"A figure takes a History or a list of them, not {kind}: pass bench.history.")
    if not found:
        raise ValueError("A figure needs at least one History, and the list is empty: pass [bench.history].")
    return found


def single(history: History | Iterable[History]) -> History:
    """The one history of a figure that shows one run.

    Raises
    ------
    ValueError
        Where there are several, or none.
    """
    found = listed(history)
    if len(found) > 1:
        raise ValueError(f"This figure shows one run and got {len(found)} histories: pass one of them.")
    return found[0]


def subject(history: History) -> str:
    """Who ran on what, for a title."""
    data = history.settings.data
    return f"{history.label} on {data}" if data else history.label


def unit(history: History) -> str:
    """The unit of the losses, for an axis title."""
    kind = history.settings.kind or history.settings.data
    if kind in SQUARES:
        return SQUARES[kind]
    return "nats" if kind in NATS or history.settings.metric in NAT_METRICS else "task's unit"


def number(value: Any) -> float:
    """A float from a record or from its JSON, in which nan and inf are words; nan where there is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


def array(values: Iterable[Any]) -> Array:
    """`number` of every value."""
    return np.array([number(v) for v in values], dtype=float)


def measured(history: History, key: str) -> list[tuple[Round, Any]]:
    """The rounds that carry a hook's measurement, with it."""
    return [(r, r.measurements[key]) for r in history if r.measurements.get(key) is not None]


def by_module(history: History, key: str) -> pd.DataFrame:
    """A hook's measurement by module.

    Parameters
    ----------
    history : History
        Of one run.
    key : str
        The measurement: a number per module, or one for all.

    Returns
    -------
    DataFrame (measured rounds, modules)
        Indexed by the round. A module that is not measured again keeps its last value.
    """
    rows = {}
    for r, found in measured(history, key):
        named = found if isinstance(found, Mapping) else {"all": found}
        rows[r.index] = {name: number(value) for name, value in named.items()}
    frame = pd.DataFrame.from_dict(rows, orient="index", dtype=float)
    return frame.ffill() if not frame.empty else frame


def residual(history: History) -> tuple[Array, str]:
    """The residual loss after every round, and what it was measured on (probe batch, else own batch)."""
    probe = array(r.probe_after for r in history)
    if np.isfinite(probe).any() or not np.isfinite(array(r.loss_after for r in history)).any():
        return probe, "probe batch"
    return array(r.loss_after for r in history), "own batch"


def starting_loss(history: History) -> float:
    """The residual loss before the first round, on the batch that `residual` uses."""
    first = history[0]
    return first.probe_before if residual(history)[1] == "probe batch" else first.loss_before


def chosen(histories: Sequence[History]) -> list[History]:
    """The runs that count: of every label with a marked learning rate, only those at it."""
    marked = {h.label for h in histories if h.settings.chosen}
    return [h for h in histories if h.settings.chosen or h.label not in marked]


def variants(histories: Sequence[History]) -> dict[str, tuple[str, int]]:
    """Label → (method, variant): labels of one method share its colour and differ in dash and marker."""
    seen: dict[str, tuple[str, int]] = {}
    for history in histories:
        if history.label not in seen:
            before = sum(1 for method, _ in seen.values() if method == history.method)
            seen[history.label] = (history.method, before)
    return seen


def spectra(history: History) -> tuple[list[int], dict[str, list[Array]]]:
    """The measured rounds' indices, and module → its singular values after each of them (descending).

    A module that a measured round does not name was not touched, so its last spectrum stands.
    """
    rows = measured(history, "spectrum")
    names = list(dict.fromkeys(name for _, found in rows for name in found))
    found: dict[str, list[Array]] = {name: [] for name in names}
    for _, spectrum in rows:
        for name in names:
            now = spectrum.get(name)
            last = found[name][-1] if found[name] else np.zeros(0)
            found[name].append(last if now is None else np.sort(np.abs(array(now)))[::-1].copy())
    return [r.index for r, _ in rows], found


def target_spectrum(history: History, target: Any = None) -> tuple[dict[str, Array], str]:
    """The spectrum to reach.

    Parameters
    ----------
    history : History
        The run that is drawn.
    target : History, mapping of str to sequence of float, or None
        A reference run, whose last spectrum counts; or module to singular values. Default: the planted
        truth's, which is empty where the task does not know it.

    Returns
    -------
    tuple of dict and str
        Module to singular values, descending; and their name.

    Raises
    ------
    ValueError
        Where the target is something else.
    """
    if isinstance(target, History):
        _, found = spectra(target)
        return {name: rows[-1] for name, rows in found.items() if rows}, f"{target.label}, last round"
    known = history.settings.truth_spectrum if target is None else target
    if not isinstance(known, Mapping):
        kind = type(target).__name__
        raise ValueError(
            f"A target is a History (full fine-tuning's, say) or a dict of module to singular values, "
            f"not {kind}."
        )
    return {str(k): np.sort(array(v))[::-1] for k, v in known.items()}, "target"


_LAYER = re.compile(r"^(.*?\.)?(\d+)(?=\.|$)")


def layer(module: str) -> str:
    """The module's layer: its dotted name up to the first number, or all but its last part."""
    match = _LAYER.match(module)
    return match.group(0) if match else module.rpartition(".")[0] or module


def short(modules: Sequence[str]) -> dict[str, str]:
    """Names that fit on an axis: layer number and last part where that is unambiguous, else the full name."""
    brief = {}
    for name in modules:
        match = _LAYER.match(name)
        brief[name] = f"{match.group(2)}·{name.rpartition('.')[2]}" if match else name.rpartition(".")[2]
    unambiguous = len(set(brief.values())) == len(set(modules))
    return brief if unambiguous else {name: name for name in modules}


def natural(name: str) -> list[tuple[int, int, str]]:
    """A sort key that puts layer 10 after layer 9."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", name) if part
    ]


def brief(value: float) -> str:
    """Three significant digits, thousands separated, no exponent where it can be avoided."""
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if (value == int(value) and abs(value) < 1e15) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def in_bytes(value: float) -> str:
    """A number of bytes with its unit, e.g. "1.5 MB"."""
    if not math.isfinite(value):
        return "unknown"
    for name in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000 or name == "GB":
            return f"{value:.3g} {name}"
        value /= 1000
    raise AssertionError


def plural(count: int, noun: str) -> str:
    """The count and the noun in its number, e.g. "3 rounds"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
