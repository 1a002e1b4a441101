"""What most notebooks import, for the process that `forked.py` forks others from."""

import gc
from importlib import import_module

gc.disable()  # nothing of this is garbage
for name in (
    "accelerate.state",
    "datasets",
    "ipykernel.kernelapp",
    "ipywidgets",
    "pandas",
    "peft",
    "plotly.graph_objects",
    "plotly.io",
    "sklearn.metrics",
    "transformers.models.auto.modeling_auto",
    "transformers.models.llama.modeling_llama",
    "xgblora_lab.course.check",
    "xgblora_lab.figures",
    "xgblora_lab.racing.race",
    "xgblora_lab.tasks.models",
    "xgblora_lab.widgets",
):
    import_module(name)
gc.enable()
gc.freeze()  # the forks share these objects, and no collection of theirs touches them
