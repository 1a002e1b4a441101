"""What the stepper says about a round."""

from __future__ import annotations

from collections.abc import Sequence

from xgblora_lab.bench.records import History, Round
from xgblora_lab.figures._read import brief, plural, residual, short
from xgblora_lab.widgets.knobs import in_words


def summary(record: Round, planned: int, steps: int) -> list[str]:
    """The losses of a round, and its place in a plan of so many rounds and steps."""
    place = f"{record.index + 1} of {planned} planned" if record.step <= steps else "past the plan"
    text = f"Round {record.index} ({place}): "
    text += f"residual loss {brief(record.probe_before)} → {brief(record.probe_after)}, "
    text += f"gain {brief(record.gain)}."
    own = f"Own batch {brief(record.loss_before)} → {brief(record.loss_after)};"
    return [f"{text} {own} {plural(len(record.losses), 'step')} in {brief(record.seconds)} s."]


def trained(record: Round, modules: Sequence[str]) -> str:
    """Which of the adapted modules a round trained, and with what options."""
    chosen, names = record.modules, short(modules)
    which = ", ".join(names.get(n, n) for n in chosen[:12]) + (", …" if len(chosen) > 12 else "")
    count = f"all {len(modules)}" if len(chosen) == len(modules) > 1 else f"{len(chosen)} of {len(modules)}"
    return f"Modules chosen: {count} ({which}). {in_words(record)}".strip()


def compared(other: History | None, record: Round) -> str:
    """What another run had reached after as many steps as this one after a round."""
    if other is None:
        return ""
    reached = [
        (r, value) for r, value in zip(other, residual(other)[0], strict=True) if r.step <= record.step
    ]
    if not reached:
        return ""
    r, value = reached[-1]
    return f"Beside it {other.label} after {r.step:,} steps: {brief(value)}."
