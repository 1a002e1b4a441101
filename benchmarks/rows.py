"""The rows of the table, by subject: each section measures some, with small sizes where `quick`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.blocks import block_rounds, learning
from benchmarks.looking import going_back, growth, spectrum
from benchmarks.measure import Row
from benchmarks.memory import memory
from benchmarks.precision import half
from benchmarks.steps import rounds, steps
from benchmarks.text import padding, whole_race
from benchmarks.waiting import clicks, imports, pages

SECTIONS: tuple[Callable[[bool], Iterator[Row]], ...] = (
    steps,
    block_rounds,
    learning,
    half,
    rounds,
    memory,
    spectrum,
    going_back,
    padding,
    whole_race,
    imports,
    clicks,
    pages,
    growth,
)
