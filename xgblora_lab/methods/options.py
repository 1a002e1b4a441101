"""Options of a method: declared once, with what each accepts, and checked when a method is made."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from xgblora_lab.tasks.limits import MOST, shown

RANKS = 16_384  # the highest rank: above the width of most models, and still no size that ends the process


def option(
    default: Any,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    choices: Sequence[str] = (),
    most: int = MOST,
) -> Any:
    """A dataclass field that knows what it accepts.

    Parameters
    ----------
    default : int, float, str, bool, tuple or None
        The default. An option of None accepts None beside numbers.
    low, high : float, optional
        The least and the largest number accepted.
    above, below : float, optional
        Bounds that are themselves not accepted.
    choices : sequence of str, optional
        The words accepted.
    most : int, default 10⁹
        The largest size that can be meant; a sentence names it only where it is exceeded.
    """
    bounds = {
        "low": low,
        "above": above,
        "high": high,
        "below": below,
        "choices": tuple(choices),
        "most": most,
    }
    return dataclasses.field(default=default, metadata=bounds)


def check_options(method: Any) -> None:
    """Check every option of a method dataclass against its field's type and bounds.

    Raises
    ------
    ValueError
        One sentence that names the option, what it accepts and what it was given.
    """
    for field in dataclasses.fields(method):
        value, bounds = getattr(method, field.name), _bounds(type(method), field.name)
        if not _accepted(value, str(field.type), bounds):
            wanted = _wanted(str(field.type), bounds)
            most = bounds.get("most", MOST)
            if isinstance(value, int) and abs(value) > most:
                wanted += f", of {most} at most"
            raise ValueError(f"{field.name} must be {wanted}; got {shown(value)}.")


def _bounds(kind: type, name: str) -> Mapping[str, Any]:
    """What an option accepts: a class that gives it another default need not say it again."""
    declared = (vars(c).get("__dataclass_fields__", {}).get(name) for c in kind.mro())
    return next((field.metadata for field in declared if field is not None and field.metadata), {})


def _accepted(value: Any, kind: str, bounds: Mapping[str, Any]) -> bool:
    if value is None:
        return "None" in kind
    if kind == "bool":
        return isinstance(value, bool)
    if kind == "str":
        return isinstance(value, str) and (not bounds.get("choices") or value in bounds["choices"])
    if kind.startswith("tuple"):
        wanted = kind[kind.index("[") + 1 : -1].split(", ")
        return (
            isinstance(value, list | tuple)
            and len(value) == len(wanted)
            and all(_accepted(part, part_kind, bounds) for part, part_kind in zip(value, wanted, strict=True))
        )
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= bounds.get("most", MOST)
    if not (whole or (kind.startswith("float") and isinstance(value, float) and math.isfinite(value))):
        return False
    low, above, high, below = (bounds.get(name) for name in ("low", "above", "high", "below"))
    return (
        (low is None or value >= low)
        and (above is None or value > above)
        and (high is None or value <= high)
        and (below is None or value < below)
    )


def _wanted(kind: str, bounds: Mapping[str, Any]) -> str:
    if bounds.get("choices"):
        return f"one of {', '.join(bounds['choices'])}"
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
    first = kind.split(" | ")[0]
    words = names.get(first, f"{first.count(',') + 1} numbers" if first.startswith("tuple") else first)
    said = {"low": "from {:g}", "above": "above {:g}", "high": "to {:g}", "below": "below {:g}"}
    limits = [text.format(bounds[name]) for name, text in said.items() if bounds.get(name) is not None]
    return " ".join([words, *limits]) + (" or none" if "None" in kind else "")
