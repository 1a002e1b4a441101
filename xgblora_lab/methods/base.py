"""What every method shares: its options, the moments at which the loop calls it, what it may ask of the loop.

A method is a dataclass of options. `Bench` works on a copy of it, so one object can serve many runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from xgblora_lab.lowrank.booster import LowRank
from xgblora_lab.methods.optimizers import adamw, load_optimizer_tensors, optimizer_tensors
from xgblora_lab.methods.options import check_options, option
from xgblora_lab.methods.schedules import SCHEDULES, round_lengths, scheduled

if TYPE_CHECKING:
    from accelerate import Accelerator

    from xgblora_lab.lowrank.ensemble import Ensemble
    from xgblora_lab.lowrank.live_weights import Boosters, LiveWeights
    from xgblora_lab.tasks.task import Batch, Task


class Loop(Protocol):
    """What a method may ask of the loop that runs it."""

    model: nn.Module  # frozen but for what the method trains
    modules: dict[str, nn.Module]  # the linear maps to adapt, by name, in the model's order
    task: Task
    accelerator: Accelerator
    ensemble: Ensemble  # every merged booster
    weights: LiveWeights
    steps: int  # K, the planned optimizer steps
    batch_size: int  # examples per optimizer step and process
    seed: int  # of all that is drawn
    head: dict[str, nn.Parameter]  # a classifier's own, which the loop trains for every method; else empty

    @property
    def trained_steps(self) -> int:
        """Optimizer steps done since the run's start."""

    def planned_rows(self, step: int) -> list[int]:
        """Rows of the training split that the data seed gives this process at a step."""

    def summed(self, tensor: Tensor) -> Tensor:
        """The tensor summed over processes."""

    def probe_gradients(self, passes: int = 1) -> None:
        """Forward-backward passes on the next steps' batches without a step; counted in the record."""

    def probe_forward(self, batches: Sequence[Batch]) -> float:
        """Mean loss on the method's own batches, without gradient or dropout; counted in the record."""

    def row_losses(self, rows: Sequence[int]) -> list[float]:
        """Loss of every one of these training rows alone; counted in the record."""


@dataclass
class Method:
    """Options common to all methods.

    Parameters
    ----------
    lr : float
        Peak learning rate of AdamW. Tune it for each method: it does not transfer.
    steps_per_round : int
        κ, optimizer steps in a round. For methods that do not merge, the length of a record.
    schedule : str
        Over the run's planned steps: `"constant"`; `"linear"` or `"cosine"` decay towards zero; `"sqrt"`, the
        slower √(1 − t/K); `"trapezoid"`, constant and then linear decay over the last 30 %.
    warmup : int
        Steps of linear warm-up at the start of the run.
    weight_decay, betas : float, tuple of float
        AdamW's.
    max_grad_norm : float or None
        Clip the global gradient norm there; None: do not.
    head_lr : float
        Peak learning rate of a classifier's head, the same for all methods unless you change it.
    """

    lr: float = option(1e-3, above=0)
    steps_per_round: int = option(20, low=1)
    schedule: str = option("linear", choices=SCHEDULES)
    warmup: int = option(0, low=0)
    weight_decay: float = option(0.0, low=0)
    betas: tuple[float, float] = option((0.9, 0.999), low=0, below=1)
    max_grad_norm: float | None = option(None, above=0)
    head_lr: float = option(1e-3, above=0)

    name: ClassVar[str] = "method"
    additive: ClassVar[bool] = False  # whether the bench merges every round's boosters, so that they add up
    # Floating-point operations per token and weight, at most: 2 forward, 2 backward through the activations.
    flops_per_weight: ClassVar[int] = 4
    rewindable: ClassVar[bool] = True  # whether the state at every round's end is small enough to keep
    low_rank: ClassVar[bool] = True  # whether the accumulated update is a product of factors

    def __post_init__(self) -> None:
        check_options(self)
        self.boosters: dict[str, LowRank] = {}  # on the model now, by module

    def options(self) -> dict[str, Any]:
        """The options as a dict; `type(method)(**options)` makes an equal one."""
        return dataclasses.asdict(self)

    def rank_bound(self, modules: int) -> int | None:
        """The most that one choice of a module can add to its update's rank; None: only the shape is a bound.

        For a method that is not additive, the largest rank of a module's update at any time. The number of
        adapted modules counts where ranks move between them.
        """
        return None

    def label(self, common: Mapping[str, Any] | None = None) -> str:
        """A name that tells variants of one method apart: it shows every option that is not the default.

        It leaves out the learning rate and what stands in `common`, the options that a race's methods share.
        """
        usual = {f.name: f.default for f in dataclasses.fields(self)} | dict(common or {})
        options = {name: value for name, value in self.options().items() if name != "lr"}
        return ":".join([self.name, *(f"{n}={v}" for n, v in options.items() if v != usual[n])])

    def rate(self, step: int, round_step: int, total: int) -> float:
        """The schedule's factor on the peak learning rate, above 0, at a step of the run and of its round.

        A step past the plan (`total` steps) keeps the plan's last rate: no round trains at a rate of 0.
        """
        factor = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return factor * scheduled(self.schedule, step, total)

    @classmethod
    def knobs(cls, steps: int) -> list[dict[str, Any]]:
        """Sets of options, at least one, that a race of `steps` steps tries beside learning rates.

        A method that merges tries rounds of several lengths; any other has nothing to try unless it says so.
        """
        return round_lengths(steps) if cls.additive else [{}]

    # Moments of the loop, in order. Each is told the loop, which knows the model, the modules and the data.

    def start(self, loop: Loop) -> None:
        """Once, before the first round: attach what stays for the whole run."""

    def begin_round(self, loop: Loop, index: int) -> Iterable[str]:
        """Set up a round; returns the names of the modules that it trains."""
        return loop.modules

    def pick_rows(self, loop: Loop) -> Mapping[int, list[int]]:
        """Rows of the training split by step, for steps of this round that shall see others than planned."""
        return {}

    def trainable(self) -> dict[str, nn.Parameter]:
        """The parameters that this round trains, by name (without the head)."""
        raise NotImplementedError

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """The optimizer of a round: a new one, unless the method keeps one."""
        return self.new_optimizer(parameters)

    def new_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        """AdamW; a group's `"lr_ratio"` multiplies the learning rate that the loop sets at every step."""
        return adamw(parameters, self.lr, self.betas, self.weight_decay)

    def before_backward(self, loop: Loop) -> None:
        """A training step begins: its forward and backward pass come next."""

    def after_backward(self, loop: Loop) -> None:
        """Gradients are there (summed over processes): change them here."""

    def after_step(self, loop: Loop) -> None:
        """The optimizer has stepped; the gradients it used are still there."""

    def is_fitted(self, loop: Loop, losses: Sequence[Tensor]) -> bool:
        """Whether the round ends here; `losses`: of its steps so far, the same in all processes."""
        return len(losses) >= self.steps_per_round

    def end_round(self, loop: Loop, index: int) -> Boosters:
        """The round's boosters (B, A) by module; additive ones are merged by the loop afterwards."""
        raise NotImplementedError

    def update(self, loop: Loop, module: str) -> Tensor:
        """The accumulated update ΔW (d, k) now, on the CPU; for methods whose update is no product."""
        raise NotImplementedError

    def new_parameters(self, index: int) -> int:
        """How many of the numbers that round `index` trains no earlier round trained."""
        count = sum(p.numel() for p in self.trainable().values())
        return count if self.additive or index == 0 else 0

    def close(self, loop: Loop) -> None:
        """Take everything off the model again."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that, with the ensemble, are needed to go on after a round's end."""
        return {}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""


@dataclass
class Continued(Method):
    """A method that trains the same parameters from the first step to the last, with one optimizer."""

    def start(self, loop: Loop) -> None:
        self.optimizer: Optimizer | None = None

    def make_optimizer(self, parameters: list[nn.Parameter]) -> Optimizer:
        if self.optimizer is None:
            self.optimizer = self.new_optimizer(parameters)
        return self.optimizer

    def state(self) -> dict[str, Tensor]:
        parameters = self.trainable()
        tensors = {n: p.detach().to("cpu", copy=True) for n, p in parameters.items()}
        if self.optimizer is not None:
            tensors |= optimizer_tensors(self.optimizer, parameters, "optimizer/")
        return tensors

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        parameters = self.trainable()
        for name, parameter in parameters.items():
            parameter.data.copy_(state[name])
        self.optimizer = None
        if any(key.startswith("optimizer/") for key in state):
            optimizer = self.make_optimizer(list(parameters.values()))
            load_optimizer_tensors(optimizer, parameters, state, "optimizer/")


def booster_parameters(boosters: Mapping[str, LowRank]) -> dict[str, nn.Parameter]:
    """All trainable factors by name, `module.A` and `module.B`."""
    return {f"{name}.{part}": p for name, b in boosters.items() for part, p in b.named_parameters()}
