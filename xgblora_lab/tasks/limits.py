"""What a number may be: a whole one between two limits, refused in one sentence before any work begins."""

from __future__ import annotations

from numbers import Integral
from typing import Any

MOST = 10**9  # where nothing smaller is said


def whole(name: str, value: Any, low: int = 1, high: int = MOST) -> int:
    """Check a whole number that a user gave.

    Parameters
    ----------
    name : str
        What the user calls it.
    value : Any
        What was given; true and false are no numbers here.
    low, high : int, default 1 and 10⁹
        The least and the largest number accepted.

    Returns
    -------
    int
        The value.

    Raises
    ------
    ValueError
        Where it is no whole number, or outside the limits.
    """
    if isinstance(value, Integral) and not isinstance(value, bool) and low <= int(value) <= high:
        return int(value)
    raise ValueError(f"{name} must be a whole number from {low} to {high}; got {shown(value)}.")


def shown(value: Any, most: int = 80) -> str:
    """A value as a sentence can show it: `repr`, cut where it is long."""
    huge = isinstance(value, int) and abs(value) >= 10**most  # Python refuses to write out the longest
    text = f"a number of about {value.bit_length() * 0.30103:.0f} digits" if huge else repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
