"""Self-checks for exercises: they explain a wrong answer, give no right one away, and never raise on one.

A check returns a `Verdict`. A notebook shows it as one bordered line, in words as well as in colour, and
keeps a machine-readable twin of it in the cell's output, so that a run can count what passed.
"""

from __future__ import annotations

import copy
import html
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from xgblora_lab.course import answers

MIME = "application/vnd.xgblora-lab.check+json"

# wrong answer → one sentence that leads on; pairs where the wrong answer cannot be a dictionary's key
Hints = Mapping[Any, str] | Iterable[tuple[Any, str]]
Status = Literal["right", "wrong", "unanswered", "wrong kind"]

_LOOKS = {
    "right": ("✔", "right", "#009E73"),
    "wrong": ("✘", "not yet", "#D55E00"),
    "unanswered": ("○", "not answered yet", "#0072B2"),
    "wrong kind": ("△", "another kind of answer is wanted", "#CC79A7"),
}


@dataclass(frozen=True)
class Verdict:
    """What a check found; as the last value of a cell, a notebook shows it."""

    exercise: str
    status: Status
    message: str  # sentences for the reader; words between backticks are code

    @property
    def passed(self) -> bool:
        """Whether the answer is right."""
        return self.status == "right"

    def __str__(self) -> str:
        sign, words, _ = _LOOKS[self.status]
        return f"{sign} Exercise {self.exercise}: {words}. {self.message}".rstrip()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        sign, words, colour = _LOOKS[self.status]
        message = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(self.message))
        style = f"border: 1px solid {colour}; border-left-width: 6px; padding: 0.4em 0.8em"
        line = (
            f'<div role="status" style="{style}">'
            f'<span aria-hidden="true">{sign}</span> '
            f"<b>Exercise {html.escape(self.exercise)}: {words}.</b> {message}</div>"
        )
        record = {"exercise": self.exercise, "passed": self.passed, "status": self.status}
        return {"text/plain": str(self), "text/html": line, MIME: record}


def number(
    exercise: str,
    answer: Any,
    expected: float,
    *,
    tolerance: float | None = None,
    unit: str = "",
    hints: Hints = (),
    because: str = "",
) -> Verdict:
    """Check that `answer` is the number `expected`.

    Parameters
    ----------
    exercise : str
        The exercise's number in the notebook, such as "4.1".
    answer : Any
        The reader's: a Python, numpy or torch number, or an array that holds one number.
    expected : float
        Computed from the run, never written down.
    tolerance : float, optional
        Relative, or absolute where 0 is expected; default 0 for an expected `int`, else 0.01.
    unit : str, optional
        What is counted or measured, such as "nats"; named where a number is missing.
    hints : mapping, optional
        Typical wrong number -> one sentence; the first that fits is shown.
    because : str, optional
        Sentence that is shown with a right answer.
    """
    wanted = f"Give a number ({unit})." if unit else "Give a number."
    if answers.blank(answer):
        return Verdict(exercise, "unanswered", wanted)
    value = answers.as_number(answer)
    if value is None:
        return Verdict(exercise, "wrong kind", f"{answers.kind(answer)} {wanted}")
    right = answers.as_number(expected)
    if right is None or not math.isfinite(right):
        return _unknown(exercise)
    if tolerance is None:
        tolerance = 0.0 if isinstance(expected, int | np.integer) else 0.01
    if answers.near(value, right, tolerance):
        return Verdict(exercise, "right", because)
    hint = _hint(
        hints, lambda wrong: (w := answers.as_number(wrong)) is not None and answers.near(value, w, tolerance)
    )
    return Verdict(
        exercise, "wrong", f"{value:.6g} is not it. {hint or answers.numeric_hint(value, right, tolerance)}"
    )


def choice(
    exercise: str,
    answer: Any,
    expected: str,
    options: Mapping[str, str],
    *,
    hints: Hints = (),
    because: str = "",
) -> Verdict:
    """Check that `answer` is the letter of the right option.

    Parameters
    ----------
    exercise : str
        The exercise's number in the notebook, such as "4.1".
    answer : Any
        The reader's: one of the letters, upper or lower case.
    expected : str
        The right letter; compute it where the run decides.
    options : mapping
        Letter -> what it stands for, as the exercise says it.
    hints : mapping, optional
        Wrong letter -> one sentence.
    because : str, optional
        Sentence that is shown with a right answer.

    Raises
    ------
    ValueError
        `expected` is none of the options.
    """
    if expected not in options:
        raise ValueError(f"The expected answer {expected!r} is none of the options {', '.join(options)}.")
    wanted = "Give one letter: " + "; ".join(f'"{key}" ({text})' for key, text in options.items()) + "."
    if answers.blank(answer):
        return Verdict(exercise, "unanswered", wanted)
    if not isinstance(answer, str):
        return Verdict(exercise, "wrong kind", f"{answers.kind(answer)} {wanted}")
    given = answer.strip().strip("().").lower()
    letters = {key.lower(): key for key in options}
    if given not in letters:
        return Verdict(exercise, "wrong kind", f"{answers.short(answer)} is none of the options. {wanted}")
    if letters[given] == expected:
        return Verdict(exercise, "right", because)
    hint = _hint(hints, lambda wrong: str(wrong).lower() == given)
    said = f'"{letters[given]}" ({options[letters[given]]}) is not it.'
    return Verdict(exercise, "wrong", f"{said} {hint or 'Look at the result above once more.'}")


def array(
    exercise: str,
    answer: Any,
    expected: Any,
    *,
    tolerance: float = 1e-3,
    hints: Hints = (),
    because: str = "",
) -> Verdict:
    """Check that `answer` holds the numbers of `expected`, in the same shape.

    Parameters
    ----------
    exercise : str
        The exercise's number in the notebook, such as "4.1".
    answer : Any
        The reader's: a list, array, tensor, column or table of numbers.
    expected : Any
        The same, computed from the run.
    tolerance : float, default 1e-3
        Largest deviation, relative to the largest number that is expected.
    hints : iterable of pairs, optional
        A typical wrong array and one sentence.
    because : str, optional
        Sentence that is shown with a right answer.
    """
    right = answers.as_array(expected)
    if right is None or not np.isfinite(right).all():
        return _unknown(exercise)
    wanted = f"Give an array of numbers, {answers.shape(right)}."
    if answers.blank(answer):
        return Verdict(exercise, "unanswered", wanted)
    value = answers.as_array(answer)
    if value is None:
        return Verdict(exercise, "wrong kind", f"{answers.kind(answer)} {wanted}")
    if answers.close(value, right, tolerance):
        return Verdict(exercise, "right", because)
    hint = _hint(
        hints, lambda wrong: (w := answers.as_array(wrong)) is not None and answers.close(value, w, tolerance)
    )
    return Verdict(exercise, "wrong", hint or answers.array_hint(value, right, tolerance))


def function(
    exercise: str,
    answer: Any,
    cases: Iterable[tuple[Sequence[Any], Any]],
    *,
    tolerance: float = 1e-3,
    hints: Hints = (),
    because: str = "",
) -> Verdict:
    """Check that the reader's function returns what it should, and leaves its arguments as they were.

    It gets copies of them, so that a mistake spoils nothing of the run.

    Parameters
    ----------
    exercise : str
        The exercise's number in the notebook, such as "4.1".
    answer : Any
        The reader's function.
    cases : iterable of pairs
        The arguments, as a tuple, and the result: a number or anything that `array` takes.
    tolerance : float, default 1e-3
        As for `array`.
    hints : iterable of pairs, optional
        A function that makes a typical mistake and one sentence; it must always agree with the reader's.
    because : str, optional
        Sentence that is shown with a right answer.
    """
    if answers.blank(answer):
        return Verdict(exercise, "unanswered", "Write the function.")
    if not callable(answer):
        return Verdict(exercise, "wrong kind", f"{answers.kind(answer)} Write a function.")
    name = getattr(answer, "__name__", "the function")
    results: list[tuple[Sequence[Any], np.ndarray]] = []
    wrong: str | None = None
    for arguments, expected in cases:
        call = f"`{name}({', '.join(answers.short(a, 30) for a in arguments)})`"
        right = answers.as_array(expected)
        if right is None or not np.isfinite(right).all():
            return _unknown(exercise)
        given = _copied(arguments)
        try:
            result = answer(*given)
        except Exception as error:  # whatever the reader's code raises is the reader's to see, in a sentence
            return Verdict(exercise, "wrong", f"{call} raised {type(error).__name__}: {error}")
        if not answers.alike(given, arguments):
            text = f"{call} changes what it was given. Work on a copy, or make something new."
            return Verdict(exercise, "wrong", text)
        if answers.blank(result):
            if results:
                return Verdict(
                    exercise, "wrong", f"{call} returns nothing. Does every way through it `return`?"
                )
            return Verdict(exercise, "unanswered", f"{call} returns nothing yet. Let it `return` its result.")
        value = answers.as_array(result)
        if value is None:
            wanted = f"Return {answers.what(right)}."
            return Verdict(exercise, "wrong kind", f"{call}: {answers.kind(result)} {wanted}")
        results.append((arguments, value))
        if wrong is None and not answers.close(value, right, tolerance):
            wrong = f"{call} returns {answers.short(result)}, which is not it. "
            wrong += answers.array_hint(value, right, tolerance) if right.ndim else ""
    if wrong is None:
        return Verdict(exercise, "right", because)

    return Verdict(exercise, "wrong", _hint(hints, lambda f: _same(f, results, tolerance)) or wrong.rstrip())


def _copied(arguments: Sequence[Any]) -> Sequence[Any]:
    try:
        return copy.deepcopy(arguments)
    except Exception:  # an object of any library may stand here, and not every one can be copied
        return arguments


def _same(mistake: Any, results: list[tuple[Sequence[Any], np.ndarray]], tolerance: float) -> bool:
    """Tell whether a typical mistake returns in every case what the reader's function returns."""
    try:
        made = [answers.as_array(mistake(*_copied(arguments))) for arguments, _ in results]
    except Exception:  # this mistake cannot be made on these arguments
        return False
    pairs = zip(made, results, strict=True)
    return all(m is not None and answers.close(value, m, tolerance) for m, (_, value) in pairs)


def _hint(hints: Hints, fits: Callable[[Any], bool]) -> str | None:
    pairs = hints.items() if isinstance(hints, Mapping) else hints
    return next((sentence for wrong, sentence in pairs if fits(wrong)), None)


def _unknown(exercise: str) -> Verdict:
    message = (
        "This run has no finite number to compare with. Run the cells above with their first parameters."
    )
    return Verdict(exercise, "wrong", message)
