"""The rows of the table."""

from __future__ import annotations

import json
import resource
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from benchmarks.encoder import (
    MINILM,
    TINY,
    RandomSentences,
    Size,
    activations_only,
    bench_of,
    encoder,
    our_step,
    pefts_step,
)
from benchmarks.measure import DEVICE, Row, in_a_process, interleaved, ratio, seconds, timed
from xgblora_lab import spectra
from xgblora_lab.bench.bench import Bench
from xgblora_lab.bench.checkpoint import Checkpoint
from xgblora_lab.lowrank.booster import LowRank, init_A
from xgblora_lab.lowrank.linear import find_modules
from xgblora_lab.methods import METHODS, LoRA, XGBLoRA, make_method
from xgblora_lab.methods.optimizers import adamw
from xgblora_lab.store import LOG


def steps(quick: bool) -> Iterator[Row]:
    """The optimizer step, in processor time."""
    size, times = (TINY, 3) if quick else (MINILM, 15)
    third = bench_of(XGBLoRA(selection="random", modules_per_round=1 / 3), size)
    works: dict[str, Callable[[], Any]] = {
        "peft": pefts_step(size)[0],
        "rank 1": our_step(bench_of(XGBLoRA(selection="all"), size)),
        "third": our_step(third),
        "lora": our_step(bench_of(LoRA(rank=8), size)),
    }
    lowest = min(list(third.modules).index(name) for name in third.method.choose(list(third.modules), 0, 0))  # type: ignore[attr-defined]
    works["floor"] = activations_only(size)
    works["floor of the third"] = activations_only(size, lowest)
    found = interleaved(works, times)
    against = {name: ratio(found[name], found["peft"]) for name in works}
    per_second = {
        name: round(size.batch * size.length / statistics.median(values)) for name, values in found.items()
    }
    tokens = {"tokens per second": per_second["rank 1"], "PEFT's tokens per second": per_second["peft"]}
    peft = "PEFT LoRA r=8, same maps"
    floor = f"forward and backward through activations: {against['floor']:.2f}"
    yield Row(
        "optimizer step, rank 1 on all linear maps", peft, against["rank 1"], 0.75, limit=floor, detail=tokens
    )
    yield Row(
        "the same step",
        "the limit: forward and backward through activations",
        ratio(found["rank 1"], found["floor"]),
        1.10,
    )
    yield Row(
        "optimizer step, a random third of the maps",
        peft,
        against["third"],
        0.65,
        limit=f"the same down to the lowest chosen map, number {lowest}: {against['floor of the third']:.2f}",
        detail={"tokens per second": per_second["third"]},
    )
    yield Row(
        "optimizer step, LoRA r=8 in our bench",
        peft,
        against["lora"],
        0.85,
        limit=floor,
        detail={"tokens per second": per_second["lora"]},
    )


def rounds(quick: bool) -> Iterator[Row]:
    """What rounds cost beyond their steps."""
    size, times = (TINY, 3) if quick else (MINILM, 6)
    kappa = 10
    bench = bench_of(XGBLoRA(selection="all", steps_per_round=kappa), size)
    measured = bench_of(XGBLoRA(selection="all", steps_per_round=kappa), size, probe_size=32)
    bare = bare_loop(size, kappa)
    losses = two_losses(size)
    works = {"bench": bench.step, "measured": measured.step, "bare": bare, "losses": losses}
    found = interleaved(works, times, warmup=1)
    loop = f"the same {kappa} steps in a bare PyTorch loop"
    yield Row("a round: choose, attach, fit, merge, record", loop, ratio(found["bench"], found["bare"]), 1.03)
    yield Row(
        "the same with the losses before and after it",
        loop,
        ratio(found["measured"], found["bare"]),
        1.03,
        limit=f"the loop and two forward passes without gradient, on {size.batch} and 32 rows: "
        f"{1 + ratio(found['losses'], found['bare']):.2f}",
    )


def two_losses(size: Size) -> Callable[[], None]:
    """What the loop cannot have seen in a round: the loss after it on its first batch, and on the probe."""
    model, task = encoder(size), RandomSentences(size)
    batches = [task.batch("train", range(size.batch)), task.batch("dev", range(32))]

    @torch.no_grad()
    def look() -> None:
        for batch in batches:
            float(task.loss(model, {k: v.to(DEVICE) for k, v in batch.items()}))

    return look


def bare_loop(size: Size, kappa: int) -> Callable[[], None]:
    """κ steps on rank-1 boosters that are there already: no choosing, merging or recording."""
    model, task = encoder(size).train(), RandomSentences(size)
    generator = torch.Generator().manual_seed(0)
    parameters: list[nn.Parameter] = []
    for module in find_modules(model).values():
        booster = LowRank.fresh(module, init_A("kaiming", 1, module.in_features, generator))  # type: ignore[arg-type]
        booster.attach(module)
        parameters += booster.parameters()
    optimizer = adamw(parameters, 1e-3, (0.9, 0.999))

    def loop() -> None:
        for step in range(kappa):
            rows = range(size.batch * step % 128, size.batch * step % 128 + size.batch)
            batch = {k: v.to(DEVICE) for k, v in task.batch("train", rows).items()}
            task.loss(model, batch).backward()
            optimizer.step()
            optimizer.zero_grad()

    return loop


def memory(quick: bool) -> Iterator[Row]:
    """Bytes: optimizer and gradients exactly, the peak of a whole process in its own process."""
    size = TINY if quick else MINILM
    _, model, _ = step_and_model = pefts_step(size)
    step_and_model[0]()
    trained = [p for p in model.parameters() if p.requires_grad]
    theirs = sum(3 * p.numel() * p.element_size() for p in trained)  # gradient and two moments
    peft = "PEFT LoRA r=8, same maps"
    for what, options, reach in (
        ("gradients and moments, rank 1", {"selection": "all"}, 1 / 8),
        (
            "gradients and moments, a third of the maps",
            {"selection": "random", "modules_per_round": 1 / 3},
            1 / 24,
        ),
    ):
        bench = bench_of(XGBLoRA(steps_per_round=1, **options), size)  # type: ignore[arg-type]
        heaviest = max((bench.step() for _ in range(2 if quick else 6)), key=lambda r: r.optimizer_bytes)
        ours = 3 * heaviest.gradient_bytes
        exact = "maps are wide or narrow, so a random third of them is a third of the numbers on average only"
        yield Row(
            what,
            peft,
            ours / theirs,
            reach,
            limit=exact if reach < 1 / 8 else "",
            detail={"bytes": ours, "PEFT's bytes": theirs},
        )
    code = "import sys; from benchmarks.rows import peak; print(*peak(sys.argv[1], sys.argv[2] == 'quick'))"
    mode = "quick" if quick else "full"
    runs = [[in_a_process(code, who, mode)[0] for who in ("ours", "peft")] for _ in range(1 if quick else 3)]
    yield Row(
        "peak memory of a run, base snapshot and ensemble included",
        "PEFT LoRA r=8 in a plain loop",
        statistics.median(ours / theirs for ours, theirs in runs),
        1.05,
        detail={"MiB": round(runs[0][0]), "PEFT's MiB": round(runs[0][1])},
    )


def peak(who: str, quick: bool) -> list[float]:
    """Peak MiB of this process after a short run (of the GPU's memory where there is one)."""
    torch.set_num_threads(1)
    size = TINY if quick else MINILM
    if who == "ours":
        bench = bench_of(XGBLoRA(selection="all", steps_per_round=3), size)
        for _ in range(3):
            bench.step()
    else:
        step = pefts_step(size)[0]
        for _ in range(9):
            step()
    if DEVICE.type == "cuda":
        return [torch.cuda.max_memory_allocated() / 2**20]
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count the parent's memory at the fork
        return [int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes
    return [resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20]


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


def imports(quick: bool) -> Iterator[Row]:
    """The wait before anything happens."""
    code = "import sys, time; t = time.perf_counter(); exec(sys.argv[1]); print(time.perf_counter() - t)"
    statements = ("import xgblora_lab", "from xgblora_lab import Bench", "import torch")
    runs = [[in_a_process(code, text)[0] for text in statements] for _ in range(1 if quick else 7)]
    for i, text in enumerate(statements[:2]):
        yield Row(text, "import torch", statistics.median(r[i] / r[2] for r in runs), 1.1)


def growth(quick: bool) -> Iterator[Row]:
    """Whether round 10,000 costs what round 10 does: time, bytes written and bytes kept."""
    few, many, window = (5, 30, 5) if quick else (10, 10_000, 60)
    with TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        bench = bench_of(XGBLoRA(selection="all", steps_per_round=1), TINY, hooks=[Checkpoint(run)])
        rounds = bench.rounds(many + window)
        spent = [timed(partial(next, rounds)) for _ in range(many + window)]
        rounds.close()
        lines = (run / LOG).read_text().splitlines()[1:]
        files = [[run / name for name in json.loads(line)["files"].values()] for line in lines]
        written = [
            len(line) + sum(path.stat().st_size for path in paths)
            for line, paths in zip(lines, files, strict=True)
        ]
    for what, costs in (("time of a round, saved at its end,", spent), ("bytes that it writes", written)):
        late, early = statistics.median(costs[many:]), statistics.median(costs[few : few + window])
        yield Row(f"{what} after {many:,} rounds", f"after {few}", late / early, 1.05)
    kept = sum(t.nbytes for i in range(many) for t in bench.ensemble.tensors(i).values())
    one = 4 * sum(sum(shape) for shape in bench.ensemble.shapes.values())  # rank 1 in float32
    yield Row(
        f"bytes of the ensemble after {many:,} rounds", "its factors in float32", kept / (many * one), 1.0
    )


def family(quick: bool) -> list[dict[str, Any]]:
    """Every method's step beside our LoRA r=8's: time, and bytes of optimizer state."""
    size, times = (TINY, 2) if quick else (MINILM, 5)
    found = []
    reference = our_step(bench_of(LoRA(rank=8), size))
    for name in METHODS:
        bench = bench_of(make_method(name), size)
        began = seconds()
        step = our_step(bench)
        setup = seconds() - began
        taken = interleaved({"method": step, "lora": reference}, times, warmup=2)
        optimizer = getattr(bench.method, "optimizer", None)
        state = [t for e in optimizer.state.values() for t in e.values()] if optimizer is not None else []
        found.append(
            {
                "method": name,
                "step / LoRA r=8": round(ratio(taken["method"], taken["lora"]), 2),
                "tokens per second": round(size.batch * size.length / statistics.median(taken["method"])),
                "optimizer MiB": round(sum(t.numel() * t.element_size() for t in state) / 2**20, 2),
                "trained parameters": sum(p.numel() for p in bench.method.trainable().values()),
                "set-up in steps": round(setup / statistics.median(taken["lora"]), 1),
            }
        )
        bench.close()
    return found


SECTIONS: tuple[Callable[[bool], Iterator[Row]], ...] = (
    steps,
    rounds,
    memory,
    spectrum,
    going_back,
    imports,
    growth,
)


def compiled(quick: bool) -> dict[str, Any]:
    """What `torch.compile` does to a step with rank-1 boosters on it, where there is a compiler."""
    size, times = (TINY, 2) if quick else (MINILM, 5)

    def step_of(compile_it: bool) -> Callable[[], None]:
        bench: Bench = bench_of(XGBLoRA(selection="all"), size)
        step = our_step(bench)
        if compile_it:
            bench.model.compile()
        return step

    try:
        plain, fast = step_of(False), step_of(True)
        first = timed(fast)
        found = interleaved({"compiled": fast, "plain": plain}, times)
    except Exception as error:  # whatever a missing compiler raises
        return {"torch.compile": f"not measured: {type(error).__name__}"}
    return {
        "step, compiled / plain": round(ratio(found["compiled"], found["plain"]), 2),
        "first step, in plain steps": round(first / statistics.median(found["plain"])),
    }
