"""Several processes: the same ensemble as one process with all their examples in its batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from toy import ToyTask

from xgblora_lab.bench.bench import Bench
from xgblora_lab.lowrank.ensemble import Ensemble
from xgblora_lab.methods import XGBLoRA

CASES = {"causal-lm": "kaiming", "classification": "residual"}
SCRIPT = """
import sys, torch, tiny
from test_processes import CASES, method_of, model_of
from toy import ToyTask
from xgblora_lab import Bench, Checkpoint
torch.set_num_threads(1)
for kind in CASES:
    folder = f"{sys.argv[1]}/{kind}"
    task = ToyTask(kind)
    bench = Bench(model_of(kind), task, method_of(kind), steps=9, batch_size=4, hooks=[Checkpoint(folder)])
    assert bench.accelerator.num_processes == 2
    bench.run(progress=False)
"""


def method_of(kind: str) -> XGBLoRA:
    options = {"selection": "random", "modules_per_round": 0.5}
    return XGBLoRA(lr=0.05, steps_per_round=3, init=CASES[kind], **options)


def model_of(kind: str) -> torch.nn.Module:
    # GPT-2 computes in float64 throughout (Llama's norms and rotations are float32 whatever the model is).
    return tiny.tiny_gpt2(num_labels=2 if kind == "classification" else None).double()


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="module")
def saved_by_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes saved of every case, in one launch."""
    folder = tmp_path_factory.mktemp("two")
    script = folder / "run.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [f"--master-port={free_port()}", str(script), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.mark.parametrize("kind", CASES)
def test_two_processes_equal_one_with_twice_the_batch(saved_by_two, kind):
    def one(batch_size: int) -> Bench:
        bench = Bench(model_of(kind), ToyTask(kind), method_of(kind), steps=9, batch_size=batch_size)
        bench.run(progress=False)
        return bench

    together, half = Ensemble.load(saved_by_two / kind), one(4)
    alone = one(8)
    for t in range(3):
        assert together[t].keys() == alone.ensemble[t].keys() == set(alone.history[t].modules)
    for name in alone.modules:
        torch.testing.assert_close(together.update(name), alone.ensemble.update(name), atol=1e-9, rtol=0)
    assert {B.dtype for t in range(3) for B, _ in together[t].values()} == {torch.float64}
    changed = max(float((half.update(n) - alone.update(n)).abs().max()) for n in alone.modules)
    assert changed > 1e-6  # half the batch is another run
