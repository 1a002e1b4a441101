"""What a run or a race has to tell: its histories read from disk, and the figures they allow, in order."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from xgblora_lab import figures
from xgblora_lab.bench.records import History
from xgblora_lab.figures._read import chosen, measured, plural, residual, starting_loss, subject
from xgblora_lab.racing.result import Race
from xgblora_lab.racing.summary import median

Source = Any  # a History, a Race, a run's or a race's folder, a JSON file, or a list of these


@dataclass(frozen=True)
class Section:
    """One heading of the story."""

    title: str
    prose: str
    figures: dict[str, figures.Figure] = field(default_factory=dict)  # short name, for a file → figure


def histories(source: Source) -> list[History]:
    """Read the histories in a source.

    Parameters
    ----------
    source : History, Race, str, Path or a list of these
        A path leads to such a file, or to a folder that holds `race.json` or `history.jsonl`, or such
        folders.

    Raises
    ------
    FileNotFoundError
        There is no run in a folder.
    ValueError
        A file is not a history, or `source` is something else.
    """
    if isinstance(source, History):
        return [source]
    if isinstance(source, str | Path):
        return _read(Path(source))
    inside = getattr(source, "histories", source)  # a Race
    if not isinstance(inside, Iterable):
        kind = type(source).__name__
        raise ValueError(f"A report takes histories, a race or the folders of runs, not {kind}.")
    return [history for part in inside for history in histories(part)]


def _read(path: Path) -> list[History]:
    if path.is_file():
        return _parse(path)
    for name in ("race.json", "history.jsonl"):
        if (path / name).is_file():
            return _parse(path / name)
    found = sorted(path.rglob("history.jsonl")) if path.is_dir() else []
    if not found:
        raise FileNotFoundError(
            f"No run in {path}: it holds neither race.json nor history.jsonl. Give the folder that "
            "Checkpoint(folder), History.save or a race wrote."
        )
    return [history for file in found for history in _parse(file)]


def _parse(path: Path) -> list[History]:
    try:
        if path.suffix == ".jsonl":
            return [History.load(path)]
        return Race.from_dict(json.loads(path.read_text(encoding="utf-8"))).histories
    except (KeyError, TypeError, ValueError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not the history of a run or a race: {str(error).rstrip('.')}."
        ) from error


def sections(runs: list[History], cells: Any = None) -> list[Section]:
    """Draw every figure that the histories allow: first the race, where there is one, then one run per label.

    Parameters
    ----------
    runs : list of History
        At least one.
    cells : DataFrame, optional
        The table of `figures.boosting_map`.

    Raises
    ------
    ValueError
        There is no history.
    """
    if not runs:
        raise ValueError("A report needs at least one history: give a run's folder or [bench.history].")
    told = []
    if len(runs) > 1:
        told.append(_race(runs))
    told += [_run(run, alone=len(runs) == 1) for run in _one_per_label(runs)]
    if cells is not None:
        prose = "Races on planted updates, over the steepness of the spectrum and the budget of steps."
        told.append(Section("When boosting wins", prose, {"map": figures.boosting_map(cells)}))
    return [section for section in told if section.figures]


def lead(runs: list[History]) -> str:
    """Say in a sentence or two what happened, for a reader who has not seen a figure yet."""
    if len(runs) == 1:
        return _went(runs[0])
    ends: dict[str, list[float]] = {}
    for run in chosen(runs):
        ends.setdefault(run.label, []).append(last_loss(run))
    losses = sorted((median(values), label) for label, values in ends.items())
    losses.sort(key=lambda pair: not math.isfinite(pair[0]))
    first = f"{losses[0][1]} ended with the lowest loss, {losses[0][0]:.3g}"
    rest = ", ".join(f"{label} with {loss:.3g}" for loss, label in losses[1:])
    seeds = max(map(len, ends.values()))
    over = f" (medians over {seeds} seeds)" if seeds > 1 else ""
    if not rest:
        return f"{plural(seeds, 'run')} of {losses[0][1]} ended with a loss of {losses[0][0]:.3g}{over}."
    return f"{len(losses)} methods trained on the same data in the same order. {first}; {rest}{over}."


def _went(run: History) -> str:
    if not len(run):
        return f"{subject(run)} has no finished round yet."
    before, after = starting_loss(run), last_loss(run)
    moved = "fell" if after < before else "rose" if after > before else "stayed"
    loss = f"the loss {moved} from {before:.3g} to {after:.3g}"
    if not math.isfinite(after):
        loss = f"the loss began at {before:.3g} and was not finite at the end"
    work = f"{plural(len(run), 'round')} of {run.method or 'an unnamed method'}"
    peak = f"at most {max(r.peak_parameters for r in run):,} parameters in training"
    return f"In {work}, {run[-1].step:,} optimizer steps, {loss}, with {peak}."


def last_loss(run: History) -> float:
    """Return the residual loss after the last round; nan where there is none."""
    values = residual(run)[0]
    return float(values[-1]) if len(values) else math.nan


def _race(runs: list[History]) -> Section:
    labels = list(dict.fromkeys(h.label for h in runs))
    prose = f"{plural(len(runs), 'run')} of {', '.join(labels)}. Curves show the learning rate that was"
    prose += " chosen for each; the sweep it was chosen from stands beside them."
    drawn = {"race": figures.race(runs), "loss": figures.loss(runs), "costs": figures.costs(runs)}
    tuned = chosen(runs)
    if len({(h.label, h.settings.lr) for h in runs}) > len(labels):
        drawn["sweep"] = figures.sweep(runs)
    if len({h.label for h in tuned if len(h)}) > 1:
        drawn["memory"] = figures.pareto(runs, x="memory")
        if any(measured(h, "forgetting") for h in tuned):
            drawn["forgetting"] = figures.pareto(runs, x="forgetting")
    if any(measured(h, "intruders") for h in tuned):
        drawn["intruders"] = figures.intruders(runs)
    return Section("The race", prose, drawn)


def _one_per_label(runs: list[History]) -> list[History]:
    """Of every label its first chosen run."""
    first: dict[str, History] = {}
    for run in chosen(runs):
        first.setdefault(run.label, run)
    return list(first.values())


def _run(run: History, alone: bool) -> Section:
    drawn = {"loss": figures.loss(run)} if alone else {}
    has_spectrum = bool(measured(run, "spectrum"))
    if has_spectrum:
        drawn |= {"spectrum": figures.spectrum(run), "ranks": figures.ranks(run)}
    if measured(run, "alignment") or measured(run, "distance"):
        drawn["alignment"] = figures.alignment(run)
    if alone and measured(run, "intruders"):
        drawn["intruders"] = figures.intruders(run)
    if _gains_differ(run):
        drawn["gains"] = figures.gains(run)
    if alone:
        drawn["costs"] = figures.costs(run)
    prose = f"{plural(len(run), 'round')} of {run.method or 'an unnamed method'}"
    prose += f", seed {run.settings.seed}." if run.settings.seed is not None else "."
    if not has_spectrum:
        prose += " No spectrum was measured in this run: the Spectrum() hook adds it."
    return Section(subject(run), prose, drawn)


def _gains_differ(run: History) -> bool:
    """Whether modules were chosen or credited differently; equal shares of the same modules say nothing."""
    credited = any(r.measurements.get("gain") for r in run)
    return credited or len({r.modules for r in run}) > 1


def settings_table(runs: list[History]) -> Mapping[str, str]:
    """Map each setting to its value, or its values where runs differ; only what is known, and no spectra."""
    hidden = {"options", "versions", "chosen", "truth_spectrum", "label"}
    table = {}
    flat = [run.settings.to_dict() | dict(run.settings.options) for run in runs]
    for name in [n for n in dict.fromkeys(n for values in flat for n in values) if n not in hidden]:
        known = [values[name] for values in flat if values.get(name) not in (None, "", "nan")]
        values = list(dict.fromkeys(map(_short, known)))
        if values:
            table[name] = ", ".join(values) if len(values) <= 8 else f"{len(values)} values"
    return table


def versions(runs: list[History]) -> Mapping[str, str]:
    """Map each package to its version, as the runs recorded it, and the packages that drew the page."""
    import plotly

    from xgblora_lab import __version__

    found: dict[str, str] = {}
    for run in runs:
        for name, version in run.settings.versions.items():
            known = found.get(name)
            found[name] = str(version) if known in (None, str(version)) else f"{known}, {version}"
    return found | {"xgblora_lab (this page)": __version__, "plotly (this page)": plotly.__version__}


def _short(value: Any) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 80 else text[:77] + "…"
