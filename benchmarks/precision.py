"""bfloat16: our step beside PEFT's, both under autocast or on a base that is stored in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.encoder import MINILM, TINY, Size, bench_of, encoder, our_step, pefts_step
from benchmarks.measure import DEVICE, Row, compared, interleaved, quotients
from xgblora_lab.bench.alone import Alone
from xgblora_lab.methods import XGBLoRA

WORDS = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 and ARM, as Linux says it


class Half(Alone):
    """One process that computes in bfloat16 where autocast does."""

    mixed_precision: ClassVar[str] = "bf16"

    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast(self.device.type, torch.bfloat16)


def has_bfloat16() -> bool:
    """Whether the device multiplies in bfloat16 itself."""
    if DEVICE.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    told = Path("/proc/cpuinfo")
    return told.exists() and bool(WORDS & set(told.read_text().split()))


def half(quick: bool) -> Iterator[Row]:
    """The optimizer step in bfloat16."""
    half_, there = Half(), has_bfloat16()
    size, times = (TINY, 2) if quick else (MINILM, 6) if there else (Size(layers=1, batch=4), 4)
    stored = bench_of(XGBLoRA(selection="all"), size, encoder(size).bfloat16())
    found = interleaved(
        {
            "ours": our_step(bench_of(XGBLoRA(selection="all"), size, accelerator=half_)),
            "peft": pefts_step(size, context=half_.autocast)[0],
            "peft fp32": pefts_step(size)[0],
            "ours, stored": our_step(stored),
            "peft, stored": pefts_step(size, encoder(size).bfloat16())[0],
        },
        times,
        warmup=1,
    )
    absent = "" if there else "this processor has no bf16 arithmetic, so torch emulates it: one layer, 4 rows"
    what = "bf16 step, rank 1 on all linear maps"
    for row, against, ours, theirs, reach in (
        (what, "PEFT LoRA r=8 in bf16", "ours", "peft", 0.85),
        (what, "PEFT LoRA r=8 in fp32", "ours", "peft fp32", 0.55),
        (
            "the same on a base stored in bf16, factors and ensemble in fp32",
            "PEFT LoRA r=8 on a base stored in bf16",
            "ours, stored",
            "peft, stored",
            0.85,
        ),
    ):
        ratios = quotients(found[ours], found[theirs])
        yield compared(row, against, ratios, reach, counted=there, limit=absent)
