"""Boosting rounds inside transformers' `Trainer`: the step is the method's, all around it is Trainer's."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from xgblora_lab.bench.checkpoint import Checkpoint, read, take_over
from xgblora_lab.bench.hooks import Hook
from xgblora_lab.bench.records import Round
from xgblora_lab.files import plain, replaced_folder
from xgblora_lab.interop.arguments import check_arguments
from xgblora_lab.interop.driven import DrivenBench, LoaderTask, loss_of
from xgblora_lab.lowrank.linear import stored_weight
from xgblora_lab.methods.xgblora import XGBLoRA

if TYPE_CHECKING:
    from xgblora_lab.bench.records import History
    from xgblora_lab.lowrank.ensemble import Ensemble
    from xgblora_lab.methods.base import Method
    from xgblora_lab.tasks.task import Batch

FOLDER = "xgblora"  # inside a checkpoint of Trainer's
GUEST = "xgblora_boosters"  # the model's submodule for the length of a forward and backward pass


class XGBLoRACallback(TrainerCallback):
    """Boosting rounds inside the training loop of `Trainer`, or of what derives from it.

    Give it to `Trainer(callbacks=[callback])`. Its rounds are a `Bench`'s: choose modules, attach fresh
    boosters, fit them for κ steps, merge, record. Data, collator, loss, precision, evaluation, logging and
    checkpoints stay Trainer's. Optimizer, learning rates and clipping are the method's, which makes a new
    optimizer in every round; Trainer's log shows its rates. An argument of `TrainingArguments` that would
    have no effect (`learning_rate`, `lr_scheduler_type`, `warmup_steps`, `weight_decay`, `max_grad_norm`, …)
    is refused unless it has its default.

    Evaluations and checkpoints that fall inside a round wait for its end, so all of them are of a merged
    model that is on record. A checkpoint of Trainer's holds a folder `xgblora` more, as `bench.Checkpoint`
    writes it; `trainer.train(resume_from_checkpoint=True)` goes on to the same curve, if Trainer brings the
    same batches (with a collator that masks at random it does not). Where Trainer loads its best model at the
    end, the bench goes back to that round.

    Parameters
    ----------
    method : Method, optional
        Any that merges its rounds; default: `XGBLoRA()`. A copy of it is used.
    targets : str or sequence of str, default "all-linear"
        The linear maps to adapt, see `lowrank.linear.find_modules`.
    hooks : sequence of Hook
        Observers, as in `Bench`. One that ends a run ends the training.
    probe_size : int, default 32
        Examples of the fixed probe batch, the first rows of the training data; 0 leaves out all measuring
        beside the steps. A data set without rows to ask for has no probe.

    Attributes
    ----------
    bench : Bench
        With history and ensemble, to be looked at, rewound and exported; from the making of the Trainer on.

    Raises
    ------
    ValueError
        When the Trainer is made or begins: it would have to do what its loop or the model cannot.

    Notes
    -----
    The recorded losses are the model's own (`output.loss`); the residual loss is measured on the batches as
    the collator made them. Dropout draws from the random state that Trainer keeps. Several processes
    (torchrun) each see a part of a batch, as always under Trainer. A quantised base is for a Bench: Trainer
    accepts one only with an adapter of PEFT's on it.
    """

    def __init__(
        self,
        method: Method | None = None,
        *,
        targets: str | Sequence[str] = "all-linear",
        hooks: Sequence[Hook] = (),
        probe_size: int = 32,
    ) -> None:
        self.method: Method = XGBLoRA() if method is None else method
        if not self.method.additive:
            raise ValueError(
                f"{self.method.name} merges no rounds, so it needs no callback: use PEFT, or a Bench."
            )
        self.targets, self.hooks, self.probe_size = targets, list(hooks), probe_size
        self._bench: DrivenBench | None = None
        self._task: LoaderTask | None = None
        self._steps: Generator[list[nn.Parameter] | Round, Any, None] | None = None
        self._handles: list[Any] = []
        self._clipping: tuple[Any, float] | None = None  # Trainer's arguments, and what they said
        self._in_round = self._in_step = self._busy = False
        self._due = {"should_evaluate": False, "should_save": False}
        self._batches: list[Batch] = []
        self._losses: list[Tensor] = []

    @property
    def bench(self) -> DrivenBench:
        """The bench; RuntimeError before there is a Trainer."""
        if self._bench is None:
            raise RuntimeError(
                "There is no bench yet: give the callback to Trainer(callbacks=[callback]), which makes it; "
                "add_callback comes too late to see the base."
            )
        return self._bench

    @property
    def history(self) -> History:
        """The rounds so far."""
        return self.bench.history

    @property
    def ensemble(self) -> Ensemble:
        """Their boosters."""
        return self.bench.ensemble

    def abandon(self) -> None:
        """Give up the round under way, as after `trainer.train()` was interrupted: it leaves no trace."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._release()
        if self._clipping is not None:
            self._clipping[0].max_grad_norm = self._clipping[1]
        self._clipping, self._in_round, self._in_step = None, False, False
        if self._steps is not None:
            self._steps.close()
        self._steps = None

    # Trainer's moments, in their order

    def on_init_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """See the base before anything changes it, and freeze it before Trainer makes an optimizer."""
        model = objects["model"]
        check_arguments(args, self.method, objects["optimizer"])
        accumulation = args.gradient_accumulation_steps
        self._task = LoaderTask(model)
        self._bench = DrivenBench(
            model,
            self._task,
            self.method,
            batch_size=args.per_device_train_batch_size * accumulation,
            accumulation=accumulation,
            targets=self.targets,
            seed=args.seed,
            data_seed=args.seed if args.data_seed is None else args.data_seed,
            probe_size=self.probe_size,
            hooks=self.hooks,
        )
        self._bench.weights.snapshot()  # a checkpoint that is resumed from comes over the base
        if self._bench.accelerator.distributed_type == "MULTI_CPU" and not self._bench.head:
            # There accelerate wraps a model that trains nothing too, which torch refuses.
            min(model.parameters(), key=Tensor.numel).requires_grad_(True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Go on from a checkpoint's rounds, or begin with none."""
        bench, model = self.bench, objects["model"]
        assert self._task is not None
        if model is not bench.model:
            raise ValueError(
                "Trainer trains another model than it was made with: give it model=, and no model_init."
            )
        self.abandon()
        own = {id(parameter) for parameter in bench.head.values()}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in own)
        check_arguments(args, self.method, None)
        bench.check_open()
        self._task.bring("train", objects["train_dataloader"])
        if state.global_step:
            self._resume(_folder(args, state), state.global_step)
        elif len(bench.history):
            raise ValueError(
                f"This callback has {len(bench.history)} rounds on record: go on with "
                "train(resume_from_checkpoint=True), or make a new callback and Trainer."
            )
        bench.plan(state.max_steps)
        bench.trainer.counts_all = args.average_tokens_across_devices
        self._clipping = args, args.max_grad_norm
        args.max_grad_norm = 0.0  # the method clips; Trainer would before it, and hide the norm
        self._handles = [
            model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            model.register_forward_hook(self._after_forward, with_kwargs=True),
        ]
        self._steps = bench.driven()

    def on_step_begin(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """From here to the optimizer's step, the model's forward passes are training."""
        self._batches, self._losses, self._in_step = [], [], True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """The gradients are there: the method's step, and the round's end where it is the last one."""
        bench, self._in_step = self.bench, False
        self._release()
        if not self._losses or self._steps is None:
            raise RuntimeError("The model made no forward pass in this step, so there is none to record.")
        if all(p.grad is None for p in bench.method.trainable().values()):
            raise RuntimeError(
                "No booster got a gradient in this step: see that the loss depends on the adapted modules, "
                "and give activation checkpointing use_reentrant=False."
            )
        bench.average_gradients()
        loss = bench.trainer.step_loss(self._losses, self._batches)
        _show_rate(objects["lr_scheduler"], bench.next_rate)
        self._in_round = not isinstance(self._ask((self._batches, loss)), Round)

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Let evaluations and checkpoints wait for the round's end."""
        self._postpone(control)
        control.should_training_stop |= self.bench.stopped

    def on_epoch_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """The same for those of an epoch."""
        self._postpone(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Remember the rows of the evaluation, for the bench's own."""
        if self._task is not None and objects.get("eval_dataloader") is not None:
            self._task.bring("dev", objects["eval_dataloader"])

    def on_save(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """Put the rounds beside what Trainer saved."""
        if self._in_round or not len(self.history) or not state.is_world_process_zero:
            return
        with replaced_folder(_folder(args, state)) as partial:
            checkpoint = Checkpoint(partial)
            try:
                checkpoint.on_run_start(self.bench)
            finally:
                checkpoint.on_run_end(self.bench)

    def on_train_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        """End the run, without a round that it ended inside; go back where Trainer has gone back."""
        if self._in_round:
            warnings.warn(
                f"The training ended inside round {len(self.history)}, whose steps are not in the model.",
                stacklevel=2,
            )
        self.abandon()
        if args.load_best_model_at_end and state.best_model_checkpoint is not None:
            self.bench.rewind(sum(r.step <= state.best_global_step for r in self.history))

    # The two sides of a step

    def _ask(self, given: Any) -> list[nn.Parameter] | Round | None:
        """What the bench wants next; Trainer's random state stays as it is."""
        assert self._steps is not None
        self._busy = True
        try:
            with self.bench.forked():
                return self._steps.send(given)
        except StopIteration:
            return None
        finally:
            self._busy = False

    def _before_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        if not self._is_training(model):
            return
        self._batches.append({k: v for k, v in kwargs.items() if isinstance(v, Tensor)})
        if not self._in_round:
            self.bench.trainer.begin(self._batches)
            self._in_round = self._ask(None) is not None
            if not self._in_round:
                raise ValueError(
                    f"All {self.bench.steps} planned steps are done: give more of them (max_steps) to go on."
                )
        if len(self._batches) == 1:  # Trainer measures the gradients' norm over the model's parameters
            model.register_module(GUEST, nn.ParameterList(self.bench.method.trainable().values()))

    def _after_forward(self, model: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if self._is_training(model):
            self._losses.append(loss_of(output).detach())

    def _is_training(self, model: nn.Module) -> bool:
        return self._in_step and not self._busy and model.training and torch.is_grad_enabled()

    def _release(self) -> None:
        """The model has its own parameters alone again."""
        if self._bench is not None:
            self._bench.model._modules.pop(GUEST, None)

    def _postpone(self, control: Any) -> None:
        for name in self._due:
            wanted = getattr(control, name) or self._due[name]
            setattr(control, name, wanted and not self._in_round)
            self._due[name] = wanted and self._in_round

    def _resume(self, folder: Path, step: int) -> None:
        """Take over the rounds of a checkpoint; Trainer has loaded its weights already."""
        bench = self.bench
        if not folder.is_dir():
            raise ValueError(
                f"{folder.parent} holds no rounds (it was written without this callback or lies elsewhere): "
                "resume from a checkpoint in output_dir that does."
            )
        saved = read(folder)
        if plain(saved[2].settings.options) != plain(self.method.options()):
            raise ValueError(f"The rounds in {folder} were fitted with other options; give the same method.")
        name = next(iter(saved[2][-1].modules))
        loaded = stored_weight(bench.modules[name]).detach().clone()
        if len(bench.history):
            bench.rewind(0)
        take_over(bench, *saved)
        if bench.trained_steps != step or not torch.allclose(stored_weight(bench.modules[name]), loaded):
            raise ValueError(f"Trainer loaded other weights than {folder} has: resume from that checkpoint.")


def _folder(args: Any, state: Any) -> Path:
    """Where the rounds of the present step's checkpoint lie."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / FOLDER


def _show_rate(scheduler: Any, rate: float) -> None:
    """Let Trainer's log show the method's rate: its own scheduler leads an optimizer that has no work."""
    if hasattr(scheduler, "_last_lr"):
        scheduler._last_lr = [rate] * len(scheduler._last_lr)
