"""Self-checks: right, wrong, blank and odd answers get a sentence each, and none gives the answer away."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from xgblora_lab import check

EXPECTED = 57.25
OPTIONS = {"a": "it falls", "b": "it stays", "c": "it rises"}
MATRIX = [[1.0, 2.0, 3.0], [4.0, 5.0, 60.5]]


class Hostile:
    """An object that raises wherever it is touched."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("touched")

    def __repr__(self) -> str:
        raise RuntimeError("shown")


def status(verdict: check.Verdict) -> tuple[str, str]:
    return verdict.status, verdict.message


@pytest.mark.parametrize(
    "answer",
    [
        57.25,
        57.3,
        np.float32(57.25),
        torch.tensor(57.25),
        np.array([57.25]),
        Fraction(229, 4),
        pd.Series([57.25]),
    ],
)
def test_a_right_number_in_any_guise(answer: Any) -> None:
    verdict = check.number("1.1", answer, torch.tensor(EXPECTED), because="Since it is so.")
    assert status(verdict) == ("right", "Since it is so.")
    assert verdict.passed


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (None, "unanswered", r"Give a number \(nats\)"),
        (..., "unanswered", "Give a number"),
        ("", "unanswered", "Give a number"),
        ("57.25", "wrong kind", "is text: leave out the quotes"),
        ("many", "wrong kind", "is text. Give a number"),
        (True, "wrong kind", "`True` is a truth value"),
        ([57.25], "wrong kind", "take the number out"),
        ([1, 2], "wrong kind", "of length 2"),
        ({}, "wrong kind", "`dict`"),
        (len, "wrong kind", "a function: call it"),
        (1j, "wrong kind", "`complex`"),
        (torch.zeros(2, 3), "wrong kind", "of shape 2 × 3"),
        (12, "wrong", "12 is not it. You took one side."),
        (50, "wrong", "too small"),
        (60, "wrong", "too large"),
        (-57.25, "wrong", "look at the sign"),
        (0.5725, "wrong", "percentage"),
        (1 / 57.25, "wrong", "upside down"),
        (math.nan, "wrong", "divided by zero"),
        (10**400, "wrong kind", "`int`"),
    ],
)
def test_any_other_number_is_explained(answer: Any, kind: str, why: str) -> None:
    verdict = check.number("1.1", answer, EXPECTED, unit="nats", hints={12.0: "You took one side."})
    assert verdict.status == kind
    assert re.search(why, verdict.message)
    assert answer == "57.25" or "57.25" not in verdict.message.replace("-57.25 is", "")
    assert not verdict.passed


def test_an_object_that_raises_at_every_touch_is_another_kind_of_answer() -> None:
    odd = Hostile()
    verdicts = [
        check.number("1", odd, 1),
        check.choice("1", odd, "a", OPTIONS),
        check.array("1", [odd], [1]),
        check.function("1", lambda: odd, [((), 1)]),
    ]
    assert [v.status for v in verdicts] == ["wrong kind"] * 4
    assert "`Hostile`" in verdicts[0].message


def test_an_expected_integer_is_exact_and_zero_is_absolute() -> None:
    assert not check.number("1", 1001, 1000).passed
    assert "off by one" in check.number("1", 1001, 1000).message
    assert check.number("1", 1001, 1000.0).passed
    assert check.number("1", 0.005, 0.0).passed
    assert not check.number("1", 0.02, 0.0).passed


def test_a_right_answer_is_right_even_where_a_hint_fits_it_too() -> None:
    assert check.number(
        "1", 4, 4, hints={4: "That is the rank."}
    ).passed  # rank == rounds, in a small profile


def test_a_run_without_a_number_to_compare_with_says_so() -> None:
    for verdict in (
        check.number("1", 3, math.nan),
        check.array("1", [3], [math.inf]),
        check.function("1", abs, [((1,), math.nan)]),
    ):
        assert verdict.status == "wrong"
        assert "no finite number" in verdict.message


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        ("b", "right", "So it is."),
        (" B) ", "right", "So it is."),
        (None, "unanswered", 'Give one letter: "a" (it falls); "b" (it stays); "c" (it rises).'),
        ("a", "wrong", '"a" (it falls) is not it. Look at the merge.'),
        ("c", "wrong", '"c" (it rises) is not it. Look at the result above once more.'),
        ("d", "wrong kind", "'d' is none of the options. Give one letter"),
        (2, "wrong kind", "`int`. Give one letter"),
    ],
)
def test_a_choice(answer: Any, kind: str, why: str) -> None:
    verdict = check.choice("2", answer, "b", OPTIONS, hints={"a": "Look at the merge."}, because="So it is.")
    assert verdict.status == kind
    assert why in verdict.message


def test_a_choice_that_no_reader_could_make_is_the_authors_mistake() -> None:
    with pytest.raises(ValueError, match="'x' is none of the options a, b, c"):
        check.choice("2", None, "x", OPTIONS)


@pytest.mark.parametrize("kind", [list, np.array, torch.tensor, pd.DataFrame])
def test_a_right_array_in_any_guise(kind: Callable[[Any], Any]) -> None:
    assert check.array("3", kind(MATRIX), torch.tensor(MATRIX, dtype=torch.bfloat16)).passed
    assert check.array("3", kind(MATRIX), MATRIX).passed


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (None, "unanswered", "Give an array of numbers, of shape 2 × 3."),
        ([None, None], "unanswered", "Give an array"),
        ("1 2", "wrong kind", "is text"),
        (["1", "2"], "wrong kind", "`list`"),
        ([[1], [2, 3]], "wrong kind", "`list`"),
        ([[2.0, 4.0, 6.0], [8.0, 10.0, 121.0]], "wrong", "You forgot one half."),
        (np.array(MATRIX).T, "wrong", "transposed"),
        (MATRIX[::-1], "wrong", "order is reversed"),
        (-np.array(MATRIX), "wrong", "look at the sign"),
        ([[4, 5, 60.5], [3, 2, 1]], "wrong", "look at their order"),
        ([[1, 2, 3], [4, 6, 60.5]], "wrong", "1 of 6 numbers are off; the first of them has the index 1, 1."),
        ([[1, 2, 3], [4, 5, math.nan]], "wrong", "not finite"),
        ([1, 2, 3], "wrong", "of length 3; it should be of shape 2 × 3"),
    ],
)
def test_any_other_array_is_explained(answer: Any, kind: str, why: str) -> None:
    hints = [(2 * np.array(MATRIX), "You forgot one half.")]
    verdict = check.array("3", answer, MATRIX, hints=hints)
    assert verdict.status == kind
    assert why in verdict.message
    assert "60.5" not in verdict.message


def fails(x: float) -> float:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("answer", "kind", "why"),
    [
        (lambda x: x * x, "right", "Squares."),
        (lambda x: torch.tensor(x) ** 2, "right", "Squares."),
        (None, "unanswered", "Write the function."),
        (lambda x: ..., "unanswered", "returns nothing yet"),
        (lambda x: x * x if x < 3 else None, "wrong", "returns nothing. Does every way"),
        (7, "wrong kind", "Write a function."),
        (lambda x: str(x), "wrong kind", "is text: leave out the quotes. Return a number."),
        (lambda x: 2 * x, "wrong", "That is the double."),
        (lambda x: x**3, "wrong", "`<lambda>(-2.0)` returns -8.0, which is not it."),
        (lambda: 1, "wrong", "raised TypeError"),
        (fails, "wrong", "`fails(-2.0)` raised KeyError: 'gone'"),
    ],
)
def test_a_function(answer: Any, kind: str, why: str) -> None:
    cases = [((x,), x * x) for x in (-2.0, 2.0, 12.5)]
    hints = [(lambda x: 1 / 0, "never"), (lambda x: 2 * x, "That is the double.")]
    verdict = check.function("4", answer, cases, hints=hints, because="Squares.")
    assert verdict.status == kind
    assert why in verdict.message
    assert "156.25" not in verdict.message


def test_a_function_that_is_right_in_one_case_alone_fails() -> None:
    assert not check.function("4", lambda x: 2 * x, [((2,), 4), ((3,), 9)]).passed
    assert "1 of 2 numbers" in check.function("4", lambda x: [x, x], [((3,), [3, 9])]).message


def test_a_function_gets_copies_and_is_told_when_it_changes_them() -> None:
    base = torch.ones(2, 2)

    def careless(weight: torch.Tensor, pairs: list[torch.Tensor]) -> torch.Tensor:
        for pair in pairs:
            weight += pair
        return weight

    cases = [((base, [torch.ones(2, 2)]), 2 * torch.ones(2, 2))]
    found = check.function("8.1", careless, cases)
    assert (found.status, base.sum()) == ("wrong", 4)
    assert "changes what it was given" in found.message
    assert check.function("8.1", lambda w, pairs: careless(w.clone(), pairs), cases).passed


def test_a_verdict_is_shown_in_words_and_kept_for_machines() -> None:
    shown = check.number("1.<1>", "<b>`x`", 3)._repr_mimebundle_()
    assert shown["text/plain"].startswith("△ Exercise 1.<1>: another kind of answer is wanted. ")
    assert "<b>Exercise 1.&lt;1&gt;: another kind of answer is wanted.</b>" in shown["text/html"]
    assert "&lt;b&gt;" in shown["text/html"]
    assert shown[check.MIME] == {"exercise": "1.<1>", "passed": False, "status": "wrong kind"}
    hint = check.number("1", 2, 3, hints={2: "Use `rounds`."})
    assert "<code>rounds</code>" in hint._repr_mimebundle_()["text/html"]
    assert str(check.number("1", 3, 3)) == "✔ Exercise 1: right."
