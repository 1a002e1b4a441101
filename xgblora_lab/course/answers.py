"""An answer as the reader gave it: the numbers in it, and in words what is odd about it."""

from __future__ import annotations

import math
import re
from numbers import Real
from typing import Any

import numpy as np


def blank(answer: Any) -> bool:
    """Whether nothing was filled in; a list of blanks is one too."""
    if isinstance(answer, list | tuple):
        return not answer or all(blank(part) for part in answer)
    return answer is None or answer is ... or (isinstance(answer, str) and not answer.strip())


def as_number(value: Any) -> float | None:
    """The one number in `value`; None where there is none."""
    if isinstance(value, Real) and not isinstance(value, bool):
        return _float(value)
    read = None if isinstance(value, list | tuple | dict) else as_array(value)
    return float(read.reshape(())) if read is not None and read.size == 1 else None


def _float(value: Any) -> float | None:
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def as_array(value: Any) -> np.ndarray | None:
    """The numbers in `value` in float64, on the CPU; None where it holds anything else."""
    try:
        if hasattr(value, "detach"):  # a tensor, of any dtype, on any device
            value = value.detach().cpu().double().numpy()
        elif isinstance(value, list | tuple):
            parts = [as_array(part) for part in value]
            if any(part is None for part in parts):
                return None
            value = np.stack([part for part in parts if part is not None])
        read = np.asarray(value)
        return read.astype(np.float64) if read.dtype.kind in "iuf" else None
    except Exception:  # an object of any library may stand here; no number is found in it, and that is all
        return None


def alike(one: Any, other: Any) -> bool:
    """Whether two values hold the same numbers; of what holds none, nothing is said."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    a, b = as_array(one), as_array(other)
    return a is None or b is None or np.array_equal(a, b, equal_nan=True)


def near(value: float, target: float, tolerance: float) -> bool:
    """Whether a number is the target, within a share of it (of 1, where it is 0)."""
    return abs(value - target) <= (tolerance * abs(target) if target else tolerance) + 1e-12 * abs(target)


def close(value: np.ndarray, target: np.ndarray, tolerance: float) -> bool:
    """Whether all entries are the target's, within a share of its largest one."""
    if value.shape != target.shape:
        return False
    scale = float(np.abs(target).max(initial=0.0)) or 1.0
    return bool(np.all(np.abs(value - target) <= tolerance * scale))


def numeric_hint(value: float, right: float, tolerance: float) -> str:
    """What a wrong number has in common with the right one, in one sentence."""
    if not math.isfinite(value):
        return "Something was divided by zero, or grew beyond all numbers, on the way to it."
    loose = max(tolerance, 1e-9)
    if right and near(value, -right, loose):
        return "Its size is right; look at the sign."
    if right and (near(value, 100 * right, loose) or near(value, right / 100, loose)):
        return "It differs by a factor of 100: is it a fraction or a percentage that is asked for?"
    if right and value and near(value, 1 / right, loose) and not near(right * right, 1, 0.5):
        return "It is upside down: what is divided by what?"
    if tolerance == 0 and abs(value - right) == 1:
        return "You are off by one. Where does the count begin?"
    return "It is too large." if value > right else "It is too small."


def array_hint(value: np.ndarray, right: np.ndarray, tolerance: float) -> str:
    """What wrong numbers have in common with the right ones, in one sentence."""
    if value.shape != right.shape:
        if value.ndim == 2 and close(value.T, right, tolerance):
            return "It is transposed: rows and columns have changed places."
        return f"It is {shape(value)}; it should be {shape(right)}."
    if not np.isfinite(value).all():
        return "It holds a number that is not finite: something was divided by zero on the way."
    if value.ndim == 2 and value.shape[0] == value.shape[1] and close(value.T, right, tolerance):
        return "It is transposed: rows and columns have changed places."
    if value.ndim and close(value[::-1], right, tolerance):
        return "The numbers are right and their order is reversed."
    if close(-value, right, tolerance):
        return "The sizes are right; look at the sign."
    if value.ndim and close(np.sort(value, axis=None), np.sort(right, axis=None), tolerance):
        return "The numbers are right; look at their order."
    scale = float(np.abs(right).max(initial=0.0)) or 1.0
    off = np.abs(value - right) > tolerance * scale
    if not value.ndim:
        return "It is too large." if float(value) > float(right) else "It is too small."
    first = ", ".join(str(int(i)) for i in np.argwhere(off)[0])
    return f"{int(off.sum())} of {off.size} numbers are off; the first of them has the index {first}."


def kind(answer: Any) -> str:
    """What was given instead of what is wanted, in one sentence."""
    if isinstance(answer, bool):
        return f"`{answer}` is a truth value."
    if isinstance(answer, str):
        quoted = re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", answer.strip(), flags=re.IGNORECASE)
        return f"{short(answer)} is text{': leave out the quotes' if quoted else ''}."
    if callable(answer):
        return "This is a function: call it, with parentheses."
    read = as_array(answer)
    if read is not None and read.ndim:
        return f"This is {shape(read)}." if read.size != 1 else "This is a list: take the number out of it."
    return f"This is of type `{type(answer).__name__}`."


def what(right: np.ndarray) -> str:
    """What kind of answer is wanted, in words."""
    return "a number" if not right.ndim else f"numbers, {shape(right)}"


def shape(value: np.ndarray) -> str:
    """The shape of an answer, in words."""
    if not value.ndim:
        return "one number"
    return "of shape " + " × ".join(map(str, value.shape)) if value.ndim > 1 else f"of length {len(value)}"


def short(value: Any, length: int = 60) -> str:
    """An answer as code, cut to this many characters."""
    try:
        text = " ".join(repr(value).split()).replace("`", "'")
    except Exception:  # a reader's class may have a broken repr
        text = f"a {type(value).__name__}"
    return text if len(text) <= length else text[: length - 1] + "…"
