"""The optimizer step and the round, beside PEFT and beside what no adapter can go below."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
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
from benchmarks.measure import DEVICE, Row, compared, interleaved, quotients, ratio, seconds, timed
from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.booster import LowRank, init_A
from xgblora_lab.lowrank.linear import find_modules
from xgblora_lab.methods import METHODS, LoRA, XGBLoRA, make_method
from xgblora_lab.methods.optimizers import adamw

PEFT = "PEFT LoRA r=8, same maps"


def steps(quick: bool) -> Iterator[Row]:
    """The optimizer step, in processor time."""
    size, times = (TINY, 3) if quick else (MINILM, 15)
    third = bench_of(XGBLoRA(selection="random", modules_per_round=1 / 3), size)
    works: dict[str, Callable[[], Any]] = {
        "peft": pefts_step(size)[0],
        "rank 1": our_step(bench_of(XGBLoRA(selection="all"), size)),
        "again": our_step(bench_of(XGBLoRA(selection="all"), size)),
        "third": our_step(third),
        "lora": our_step(bench_of(LoRA(rank=8), size)),
    }
    lowest = min(list(third.modules).index(name) for name in third.method.choose(list(third.modules), 0, 0))  # type: ignore[attr-defined]
    works["rank 1 alone"] = thin_products(size, 1)
    works["rank 8 alone"] = thin_products(size, 8)
    works["floor"] = activations_only(size)
    works["floor of the third"] = activations_only(size, lowest)
    found = interleaved(works, times)
    against = {name: quotients(found[name], found["peft"]) for name in works}
    floor, lower = (statistics.median(against[name]) for name in ("floor", "floor of the third"))
    per_second = {
        name: round(size.batch * size.length / statistics.median(values)) for name, values in found.items()
    }
    tokens = {"tokens per second": per_second["rank 1"], "PEFT's tokens per second": per_second["peft"]}
    alone = {rank: statistics.median(against[f"rank {rank} alone"]) for rank in (1, 8)}
    limit = f"forward and backward through activations: {floor:.2f}"
    thin = ", the six thin products of each map alone: {:.2f}"
    yield compared(
        "control: the rank-1 step",
        "itself, on a second bench",
        quotients(found["again"], found["rank 1"]),
        1.0,
        counted=False,
        limit="how quiet the machine was",
    )
    what = "optimizer step, rank 1 on all linear maps"
    yield compared(
        what, PEFT, against["rank 1"], 1.04 * floor, limit=limit + thin.format(alone[1]), detail=tokens
    )
    yield compared(
        "the same step",
        "the limit: forward and backward through activations",
        quotients(found["rank 1"], found["floor"]),
        1.04,
        limit=f"the two together: {1 + ratio(found['rank 1 alone'], found['floor']):.2f}",
    )
    yield compared(
        "optimizer step, a random third of the maps",
        PEFT,
        against["third"],
        0.65,
        limit=f"the same down to the lowest chosen map, number {lowest}: {lower:.2f}",
        detail={"tokens per second": per_second["third"]},
    )
    yield compared(
        "optimizer step, LoRA r=8 in our bench",
        PEFT,
        against["lora"],
        0.90,
        limit=limit + thin.format(alone[8]),
        detail={"tokens per second": per_second["lora"]},
    )


def thin_products(size: Size, rank: int) -> Callable[[], None]:
    """What pairs A, B add to a step at least: on every linear map two products forward, four backward."""
    tokens, maps = size.batch * size.length, []
    for module in find_modules(encoder(size)).values():
        k, d = module.in_features, module.out_features
        shapes = ((tokens, k), (tokens, d), (tokens, d), (tokens, k), (rank, k), (rank, d))
        maps.append([torch.randn(shape, device=DEVICE) for shape in shapes])

    def work() -> None:
        for x, y, D, at_x, A, Bt in maps:
            down = x @ A.T
            y.addmm_(down, Bt)
            at_A = D @ Bt.T
            at_x.addmm_(at_A, A)
            at_A.T @ x
            down.T @ D

    return work


def rounds(quick: bool) -> Iterator[Row]:
    """What rounds cost beyond their steps."""
    size, times = (TINY, 3) if quick else (MINILM, 6)
    kappa = 10
    bench = bench_of(XGBLoRA(selection="all", steps_per_round=kappa), size)
    measured = bench_of(XGBLoRA(selection="all", steps_per_round=kappa), size, probe_size=32)
    bare = bare_loop(size, kappa)
    works = {"bench": bench.step, "measured": measured.step, "bare": bare, "losses": two_losses(size)}
    found = interleaved(works, times, warmup=1)
    loop = f"the same {kappa} steps in a bare PyTorch loop"
    what = "a round: choose, attach, fit, merge, record"
    yield compared(what, loop, quotients(found["bench"], found["bare"]), 1.03)
    yield compared(
        "the same with the losses before and after it",
        loop,
        quotients(found["measured"], found["bare"]),
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
