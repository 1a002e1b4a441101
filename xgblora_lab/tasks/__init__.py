"""What is tuned, on what: models, and tasks on text, on a planted update and on a single matrix."""

from xgblora_lab.tasks.checkpoint import load_tokenizer
from xgblora_lab.tasks.matrix import matrix
from xgblora_lab.tasks.models import load, load_model
from xgblora_lab.tasks.planted import planted
from xgblora_lab.tasks.text import load_task

__all__ = ["load", "load_model", "load_task", "load_tokenizer", "matrix", "planted"]
