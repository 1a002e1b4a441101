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

SCRIPT = """
import sys, torch, tiny
from toy import ToyTask
from xgblora_lab import Bench, Checkpoint, XGBLoRA
torch.set_num_threads(1)
method = XGBLoRA(lr=0.05, steps_per_round=3, init=sys.argv[2], modules_per_round=0.5)
task = ToyTask(sys.argv[3])
model = tiny.tiny_gpt2(num_labels=2 if sys.argv[3] == "classification" else None).double()
bench = Bench(model, task, method, steps=9, batch_size=4, hooks=[Checkpoint(sys.argv[1])])
assert bench.accelerator.num_processes == 2
bench.run(progress=False)
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(("init", "kind"), [("kaiming", "causal-lm"), ("residual", "classification")])
def test_two_processes_equal_one_with_twice_the_batch(tmp_path, init, kind):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])]),
        "ACCELERATE_USE_CPU": "true",
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    command += [f"--master-port={free_port()}", str(script), str(tmp_path / "two"), init, kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]

    def one(batch_size: int) -> Bench:
        method = XGBLoRA(lr=0.05, steps_per_round=3, init=init, modules_per_round=0.5)
        model = tiny.tiny_gpt2(num_labels=2 if kind == "classification" else None).double()
        bench = Bench(model, ToyTask(kind), method, steps=9, batch_size=batch_size)
        bench.run(progress=False)
        return bench

    # GPT-2 computes in float64 throughout (Llama's norms and rotations are float32 whatever the model is).
    together, half = Ensemble.load(tmp_path / "two"), one(4)
    alone = one(8)
    for t in range(3):
        assert together[t].keys() == alone.ensemble[t].keys() == set(alone.history[t].modules)
    for name in alone.modules:
        torch.testing.assert_close(together.update(name), alone.ensemble.update(name), atol=1e-9, rtol=0)
    assert {B.dtype for t in range(3) for B, _ in together[t].values()} == {torch.float64}
    changed = max(float((half.update(n) - alone.update(n)).abs().max()) for n in alone.modules)
    assert changed > 1e-6  # half the batch is another run
