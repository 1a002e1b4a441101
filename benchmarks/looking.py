"""Looking at a long run and going back in it: spectra, rewinding, and what a thousand rounds leave behind."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.encoder import MINILM, TINY, bench_of
from benchmarks.measure import Row, compared, timed
from xgblora_lab import spectra
from xgblora_lab.methods import XGBLoRA


def spectrum(quick: bool) -> Iterator[Row]:
    """Looking at the accumulated update."""
    d, T = (256, 16) if quick else (4096, 64)
    generator = torch.Generator().manual_seed(0)

    def factors(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(d, count, generator=generator), torch.randn(count, d, generator=generator)

    B, A = factors(T)
    ours = statistics.median(timed(partial(spectra.singular_values, B, A)) for _ in range(5))
    dense = timed(lambda: torch.linalg.svdvals(B @ A))
    yield Row(
        f"spectrum of a {d} × {d} update after {T} rounds",
        "dense torch.linalg.svdvals",
        dense / ours,
        100,
        faster=True,
        detail={"seconds": ours, "dense seconds": dense},
    )

    def costs(T: int) -> tuple[float, float]:
        growing = spectra.GrowingSpectrum(d, d)
        growing.append(*factors(T))
        growing.singular_values()
        ones = [factors(1) for _ in range(20)]
        append = timed(lambda: [growing.append(*one) for one in ones[:12]]) / 12
        growing.singular_values()
        reads = []
        for one in ones[12:]:
            growing.append(*one)
            reads.append(timed(growing.singular_values))
        return append, statistics.median(reads)

    (few, few_read), (many, many_read) = costs(T), costs(4 * T)
    yield Row(f"appending a round to the spectrum at T = {4 * T}", f"at T = {T}", many / few, 2)
    core = [
        timed(lambda n=n: torch.linalg.svdvals(torch.randn(n, n, dtype=torch.float64))) for n in (T, 4 * T)
    ]
    yield Row(
        f"appending one and reading the spectrum at T = {4 * T}",
        f"at T = {T}",
        (many + many_read) / (few + few_read),
        4,
        limit=f"the singular values of the T × T core alone: {core[1] / core[0]:.1f}",
        detail={"milliseconds": 1e3 * (many + many_read), f"milliseconds at {T}": 1e3 * (few + few_read)},
    )


def going_back(quick: bool) -> Iterator[Row]:
    """Rewinding, against training again."""
    size, count = (TINY, 8) if quick else (MINILM, 200)
    kappa = 20
    bench = bench_of(XGBLoRA(selection="random", modules_per_round=1 / 3, steps_per_round=1), size)
    one_step = statistics.median(timed(bench.step) for _ in range(4))
    generator = torch.Generator().manual_seed(0)
    names = list(bench.modules)
    while len(bench.history) < count:  # the factors decide the cost of going back, not how they were trained
        index = len(bench.history)
        chosen = bench.method.choose(names, 0, index)  # type: ignore[attr-defined]
        shapes = {name: bench.ensemble.shapes[name] for name in chosen}
        bench.ensemble.append(
            {
                n: (torch.randn(d, 1, generator=generator) / d, torch.randn(1, k, generator=generator))
                for n, (d, k) in shapes.items()
            }
        )
        bench.history.rounds.append(bench.history[0])
        bench._past.states[index + 1] = {}

    def scrub() -> None:
        with bench.at(count // 2):
            pass

    back = statistics.median(timed(scrub) for _ in range(3))
    again = one_step * kappa * (count // 2)
    yield Row(
        f"the model of round {count // 2} of {count} again",
        f"training it again ({kappa} steps a round, from the time of one)",
        again / back,
        1000,
        faster=True,
        detail={"seconds": back, "training seconds": again},
    )


def growth(quick: bool) -> Iterator[Row]:
    """Whether round 1000 costs what round 10 does."""
    few, many = (5, 30) if quick else (10, 10_000)
    bench = bench_of(XGBLoRA(selection="random", modules_per_round=1 / 3, steps_per_round=1), TINY)
    early, late, window = [], [], 5 if quick else 60
    for _ in range(many + window):
        spent = timed(bench.step)
        index = len(bench.history)
        (early if few <= index < few + window else late if index >= many else []).append(spent)
    bytes_ = sum(
        t.numel() * t.element_size()
        for t_ in range(len(bench.ensemble))
        for pair in bench.ensemble[t_].values()
        for t in pair
    )
    expected = sum(
        4 * sum(bench.ensemble.shapes[n]) for r in bench.history for n in r.modules
    )  # rank 1 in float32
    middle = statistics.median(early)
    found = [spent / middle for spent in late]
    yield compared(f"time of a round after {many} rounds", f"after {few}", found, 1.05)
    yield Row(f"bytes of the ensemble after {many} rounds", "its factors in float32", bytes_ / expected, 1.0)
