"""What a run holds in memory, beside PEFT."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import measure
from benchmarks.encoder import MINILM, TINY, bench_of, pefts_step
from benchmarks.measure import DEVICE, Row, compared
from xgblora_lab.methods import XGBLoRA


def memory(quick: bool) -> Iterator[Row]:
    """Bytes: optimizer and gradients exactly, the peak of a whole process in its own process."""
    size = TINY if quick else MINILM
    step, model = pefts_step(size)
    step()
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
    code = "import sys; from benchmarks.memory import peak; print(*peak(sys.argv[1], sys.argv[2] == 'quick'))"
    mode = "quick" if quick else "full"
    runs = [
        [measure.in_a_process(code, who, mode)[0] for who in ("ours", "peft")]
        for _ in range(1 if quick else 3)
    ]
    yield compared(
        "peak memory of a run, base snapshot and ensemble included",
        "PEFT LoRA r=8 in a plain loop",
        [ours / theirs for ours, theirs in runs],
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
