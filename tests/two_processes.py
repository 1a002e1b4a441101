"""What each of two processes runs: `in_two_processes(folder)` of a test module (see conftest.py)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, name = sys.argv[1:]
    importlib.import_module(name).in_two_processes(Path(folder))
