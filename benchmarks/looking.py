"""Looking at a long run and going back in it: spectra, rewinding, what ten thousand rounds leave behind."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.encoder import MINILM, TINY, bench_of
from benchmarks.measure import Row, compared, interleaved, quotients, timed
from xgblora_lab import spectra
from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.checkpoint import Checkpoint
from xgblora_lab.methods import XGBLoRA
from xgblora_lab.store import LOG


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
    square = [torch.randn(n, n, dtype=torch.float64) for n in (T, 4 * T)]
    core = [timed(partial(torch.linalg.svdvals, X)) for X in square]
    gram = [timed(lambda X=X: torch.linalg.eigvalsh(X @ X.T)) for X in square]
    yield Row(
        f"appending one and reading the spectrum at T = {4 * T}",
        f"at T = {T}",
        (many + many_read) / (few + few_read),
        4,
        limit=f"the singular values of the T × T core alone: {core[1] / core[0]:.1f}; from its Gram matrix, "
        f"with half the digits: {gram[1] / gram[0]:.1f}",
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
    """Whether round 10,000 costs what round 10 does: time, bytes written and bytes kept.

    Both are timed in turn, on two benches, so that a slower minute of the machine falls on both.
    """
    few, many, window = (5, 30, 5) if quick else (10, 10_000, 60)
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"

        def rounds_of(path: Path) -> tuple[Bench, Iterator[Any]]:
            hooks = [Checkpoint(path)]
            bench = bench_of(XGBLoRA(selection="all", steps_per_round=1), TINY, hooks=hooks)
            return bench, bench.rounds(many + window)

        bench, late = rounds_of(run)
        for _ in range(many):
            next(late)
        _, early = rounds_of(Path(folder) / "other")
        for _ in range(few):
            next(early)
        works = {"late": partial(next, late), "early": partial(next, early)}
        spent = interleaved(works, window, warmup=0)
        late.close()  # type: ignore[attr-defined]
        early.close()  # type: ignore[attr-defined]
        lines = (run / LOG).read_text().splitlines()[1:]
        files = [[run / name for name in json.loads(line)["files"].values()] for line in lines]
        written = [
            len(line) + sum(path.stat().st_size for path in paths)
            for line, paths in zip(lines, files, strict=True)
        ]
    against = f"after {few}"
    what = f"time of a round, saved at its end, after {many:,} rounds"
    yield compared(what, against, quotients(spent["late"], spent["early"]), 1.05)
    usual = statistics.median(written[few : few + window])
    found = [size / usual for size in written[many:]]
    yield compared(f"bytes that it writes after {many:,} rounds", against, found, 1.05)
    kept = sum(t.nbytes for i in range(many) for t in bench.ensemble.tensors(i).values())
    one = 4 * sum(sum(shape) for shape in bench.ensemble.shapes.values())  # rank 1 in float32
    what = f"bytes of the ensemble after {many:,} rounds"
    yield Row(what, "its factors in float32", kept / (many * one), 1.0)
