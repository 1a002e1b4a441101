"""Where a notebook runs: the place, the versions, the memory, and which size of run fits."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

SIGNS = {
    "BINDER_SERVICE_HOST": "Binder",
    "BINDER_REQUEST": "Binder",
    "KAGGLE_KERNEL_RUN_TYPE": "Kaggle",
    "JUPYTERHUB_USER": "a JupyterHub",
    "VSCODE_PID": "VS Code on your own machine",
}
LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
LITTLE = 2 * 2**30  # bytes of memory below which runs are kept small


def place() -> str:
    """Return who runs this process, as far as the environment tells."""
    if "google.colab" in sys.modules:
        return "Google Colab"
    return next((name for key, name in SIGNS.items() if key in os.environ), "Jupyter on your own machine")


def memory() -> float:
    """Return the bytes that this process may use: the machine's, or the container's limit if that is less."""
    import psutil

    total = float(psutil.virtual_memory().total)
    for path in LIMITS:
        try:
            total = min(total, int(Path(path).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such limit here
            continue
    return total


def here() -> dict[str, str]:
    """Return what a reader should know of this machine, in words. Nothing is sent anywhere."""
    import psutil
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    free = psutil.virtual_memory().available
    return {
        "place": place(),
        "system": f"{platform.system()} on {platform.machine()}",
        "Python": platform.python_version(),
        "xgblora_lab": metadata.version("xgblora_lab"),
        "PyTorch": torch.__version__,
        "GPU": gpu,
        "processors": f"{os.cpu_count()}; PyTorch uses {torch.get_num_threads()}",
        "memory": f"{memory() / 2**30:.1f} GiB, {free / 2**30:.1f} GiB free",
    } | {name: metadata.version(name) for name in ("transformers", "accelerate", "peft", "plotly")}


def suited() -> tuple[str, str]:
    """Return the profile that suits this machine, and a sentence that says why."""
    import torch

    if memory() < LITTLE:
        return "ci", "There is little memory here, so keep the runs small."
    if not torch.cuda.is_available():
        return "laptop", "No GPU is needed: all notebooks run on the processor at this size."
    return "classroom", "There is a GPU, so that larger runs are quick."
