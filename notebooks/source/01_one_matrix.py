# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # One matrix
#
# *Why does a sum of rank-1 rounds reach what one low-rank adapter cannot?*
#
# Before any transformer, take one matrix. On it everything about XGBLoRA can be checked against a right
# answer. And everything can be written by hand: you will see LoRA in ten lines, and boosting in fifteen.
#
# XGBLoRA is gradient boosting with low-rank adapters. In each **round** it trains one small pair of
# factors, the **booster** BA, then adds it to the weights and starts afresh. LoRA trains one larger pair
# from the first step to the last.
#
# **You will be able to**
#
# 1. say how good an update of rank *r* can be at all;
# 2. write LoRA and a round of boosting in plain PyTorch;
# 3. explain where LoRA of rank *r* stops;
# 4. follow one rank-1 booster after another, and say when LoRA is the better choice;
# 5. predict what the number of steps in a round does.
#
# **Time.** {time}.
#
# **You need.** Matrix products, singular values, gradient descent, and a little PyTorch; no transformers.
#
# Each section asks a question first. **Write down your guess before you run the cell below it.** A wrong
# guess is where the learning is. Five exercises check themselves: replace `None` by your answer, run the
# cell, run the next one.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (short), "laptop" (about a minute) or "classroom" (minutes, three seeds)
seed: int = 0  # decides which matrix is to be found
progress: bool = False  # show a progress bar for every race

# %% tags=["folded"]
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from torch import nn

from xgblora_lab import Bench, LoRA, XGBLoRA, check, matrix, race, seeds, spectra
from xgblora_lab.course.board import chart, line, pick, say
from xgblora_lab.course.pictures import rank_one_sum
from xgblora_lab.figures import style

#            size  rounds  steps_per_round  seeds  ranks of LoRA, values of steps_per_round to compare
profiles = {
    "ci": (12, 4, 100, 1, (1, 4, 12), (10, 100)),
    "laptop": (32, 8, 125, 1, (1, 4, 8, 32), (5, 10, 25, 125)),
    "classroom": (32, 8, 200, 3, (1, 4, 8, 32), (5, 10, 20, 50, 100, 200)),
}
size, rounds, steps_per_round, repeats, ranks, kappas = pick(profile, profiles)
steps = rounds * steps_per_round  # the budget of every run below, in optimizer steps
lrs = (0.03, 0.1, 0.3) if profile == "ci" else (0.003, 0.01, 0.03, 0.1, 0.3)  # tried by every method
pd.set_option("display.float_format", "{:.4g}".format)
print(
    f"A {size} × {size} matrix; {steps} optimizer steps for every run; learning rates {lrs} for every method."
)

# %% [markdown]
# (Folded cells hold imports, sizes and the look of figures. Open one if you are curious; nothing in them is
# needed to follow.)
#
# ## 1 · The problem
#
# A linear map y = W x starts at W = 0. Somewhere there is a target W\*. The loss is half the squared
# distance,
#
# $$\ell(W) = \tfrac12 \lVert W - W^* \rVert^2 \qquad \text{(half the sum of all squared entries).}$$
#
# Fine-tuning has to find the update ΔW = W\*. We know it, because we planted it: its singular vectors are
# random, its singular values are 1, ½, ⅓ … That is the whole point of a planted problem. The right answer is
# known, so nothing has to be believed.

# %%
model, task = matrix("1/i", d=size, k=size, seed=seed)
target = task.truth["matrix"][0] @ task.truth["matrix"][1]  # W*, kept as two factors
U, sigma, Vh = torch.linalg.svd(target)
print(model)
print("first singular values of the target:", [round(float(s), 3) for s in sigma[:5]])
print(f"loss before any training: {task.floor(0):.4f}")

# %% [markdown]
# This notebook divides every loss by that number: **1 is untrained, 0 is the target.** (The lines that the
# bench prints are not divided. Where they come, we say so.)
#
# What does the matrix look like? The singular value decomposition writes it as a sum of **rank-1 pictures**,
# the strongest first:
#
# $$W^* = \sigma_1 u_1 v_1^\top + \sigma_2 u_2 v_2^\top + \dots$$
#
# In a picture of rank 1 every row is a multiple of one row, so it looks woven.
#
# **Question.** How many pictures must you add before the sum looks like the target? Guess, then drag the
# slider.

# %%
rank_one_sum(U, sigma, Vh, rounds)

# %% [markdown]
# **Question.** You may use a matrix of rank 1 for ΔW, and you may choose the best one. How much of the loss
# is left? And with rank 4? With full rank?
#
# Eckart and Young answered this in 1936. The best matrix of rank *r* is the sum of the first *r* pictures.
# What remains is the **tail**: ½ Σ σᵢ² over all *i* > *r*.

# %%
relative_floor = [task.floor(rank) / task.floor(0) for rank in range(size + 1)]

figure = chart("What each rank can reach at best", "rank r", "least loss (1 = untrained)", log="y")
line(figure, "Eckart–Young tail", range(size), relative_floor[:size], mode="lines+markers").show()
print("left over at best:", {f"rank {r}": round(relative_floor[r], 4) for r in (1, 2, 4, rounds, size)})

# %% [markdown]
# These numbers are the yardstick for the rest of the notebook. No method whose update has rank *r* can get
# below the tail of rank *r*, however long it trains.

# %% [markdown]
# ### Exercise 1.1 · Your own tail (5 minutes, easy)
#
# Write the function yourself: from the singular values of a target, the least loss that an update of rank
# `rank` leaves, relative to the loss before training.


# %% tags=["exercise"]
def tail(values: torch.Tensor, rank: int) -> float:
    """Least loss at this rank, over the loss of no update; `values` descend."""
    # solution: return None  # your answer
    return float(values[rank:].square().sum() / values.square().sum())
    # end


# %% tags=["check"]
check.function(
    "1.1", tail, [((sigma, rank), relative_floor[rank]) for rank in (1, 4, size)],
    hints=[
        (lambda v, r: v[r:].sum() / v.sum(), "The loss is made of squares. Of what must the sum be taken?"),
        (lambda v, r: v[r:].square().sum() / 2, "That is the loss itself. Divide by the loss of no update."),
        (lambda v, r: v[:r].square().sum() / v.square().sum(), "That is the part taken. What is left?"),
        (lambda v, r: v[r - 1 :].square().sum() / v.square().sum(), "Rank r keeps r values. You keep r − 1."),
    ],
    because="Half the sum of squares beyond the rank, over half the sum of all squares: the halves cancel. "
    "(Rotations change no distance, so only the singular values count.)",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# Distances do not change under rotation, so the loss depends on the singular values alone: it is half the
# sum of their squares. The best update of rank *r* removes the *r* largest of them. A common mistake is to
# sum the values and not their squares, which makes the tail look much thicker than it is.

# %% [markdown]
# ## 2 · Boosting by hand
#
# Boosting is greedy. It never looks ahead, and it never changes a booster that it has added. It fits the
# best booster to what is left, subtracts it, and repeats.
#
# **Question.** Greedy rank-1 rounds or one update of rank *T* chosen as a whole: which one is closer to the
# target?

# %%
residual = target.clone()  # what is left, since W = 0
by_hand = [1.0]
for _ in range(rounds):
    left, s, right = torch.linalg.svd(residual)
    residual = residual - s[0] * torch.outer(left[:, 0], right[0])  # the best booster: the strongest picture
    by_hand.append(0.5 * float(residual.square().sum()) / task.floor(0))

tails = relative_floor[: rounds + 1]
pd.DataFrame({"greedy, round by round": by_hand, "best of that rank": tails}).rename_axis("rounds done")

# %% [markdown]
# Neither. The two columns agree. Here greed costs nothing: the best booster for the residual is exactly the
# next singular pair of the target. This is special. It holds for this loss on this matrix, when each
# booster is perfect. A trained booster is not perfect, and the sections below are about what that costs.

# %% [markdown]
# ## 3 · From scratch
#
# Nobody computes a singular value decomposition of an unknown target. So train. First LoRA: the weight W
# stays as it is, and beside it stands a product of two thin matrices, A and B. Here it is, in plain PyTorch.


# %%
class LoRALinear(nn.Module):
    """y = W x + B A x: W (d, k) is frozen, A (r, k) and B (d, r) train."""

    def __init__(self, W: torch.Tensor, A: torch.Tensor) -> None:
        super().__init__()
        self.W = W  # no Parameter: the optimizer does not see it
        self.A = nn.Parameter(A.clone())  # random
        self.B = nn.Parameter(torch.zeros(len(W), len(A)))  # zero

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # x: (n, k)
        return x @ self.W.T + x @ self.A.T @ self.B.T  # (n, d)


# %% [markdown]
# **Question.** B starts at zero. What does a fresh pair change? And if both A and B started at zero, what
# would their gradients be?


# %%
def start_of_A(rank: int, t: int = 0) -> torch.Tensor:
    """A random A (rank, size), uniform on ±1/√size; the same numbers that the library draws in round t."""
    drawn = torch.rand(rank, size, generator=seeds.generator("A", seed, t))
    return (2 * drawn - 1) / size**0.5


inputs = torch.eye(size)  # every unit vector once: the output is then the weight itself
pair = LoRALinear(torch.zeros(size, size), start_of_A(1))
print("a fresh pair changes:", float((pair(inputs) - inputs @ pair.W.T).detach().abs().max()))
reached = {}
for name, A in (("A random", start_of_A(1)), ("A zero too", torch.zeros(1, size))):
    pair = LoRALinear(torch.zeros(size, size), A)
    (0.5 * (pair(inputs) - target.T).square().sum()).backward()
    reached[name] = [float(part.grad.norm()) for part in (pair.A, pair.B)]
    print(f"{name}: |gradient of A| = {reached[name][0]:.3f}, |gradient of B| = {reached[name][1]:.3f}")

# %% [markdown]
# A fresh pair changes nothing, since BA = 0. With G the gradient of the weight, the gradient of B is G Aᵀ,
# and that of A is Bᵀ G: each holds the other factor. So in the first step only B has a gradient. With both
# at zero there would be no gradient at all, and training would never begin.
#
# Now the training loop. It knows nothing of LoRA: it trains whatever parameters a layer has.


# %%
def train(layer: nn.Module, count: int, lr: float) -> list[float]:
    """`count` steps of Adam on ½‖W − W*‖²; returns the relative loss before each step."""
    adam = torch.optim.AdamW(layer.parameters(), lr=lr, weight_decay=0)
    losses = []
    for _ in range(count):
        loss = 0.5 * (layer(inputs) - target.T).square().sum()
        losses.append(loss.item() / task.floor(0))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return losses


# %% [markdown]
# And boosting: **attach, train, merge, repeat.** That is the whole method.


# %%
def boost(rounds: int, kappa: int, lr: float) -> tuple[torch.Tensor, list[float]]:
    """The weight after so many rounds of κ steps, and the relative loss before each step."""
    W, losses = torch.zeros(size, size), []
    for t in range(rounds):
        layer = LoRALinear(W, start_of_A(1, t))  # attach: BA = 0, so nothing changes yet
        losses += train(layer, kappa, lr)  # train: a fresh optimizer for a fresh pair
        W = W + (layer.B @ layer.A).detach()  # merge: the pair becomes part of the weight
    return W, losses  # repeat


W_scratch, scratch = boost(rounds, steps_per_round, lr=0.03)
say(f"After {rounds} rounds your fifteen lines have left {scratch[-1]:.3g} of the loss.")

# %% [markdown]
# **Question.** The library has some thousand lines for its `Bench`: records, going back, saving. With the
# same random numbers and the same steps, how far apart will the two end?

# %%
options = {"steps_per_round": steps_per_round, "lr": 0.03, "schedule": "constant"}
with Bench(model, task, XGBLoRA(**options), steps=steps, batch_size=1, seed=seed) as bench:
    library = bench.run(progress=False)
    W_library = bench.update("matrix")
in_bench = np.array([loss for record in library for loss in record.losses]) / task.floor(0)
loss_gap = float(np.abs(np.array(scratch) / in_bench - 1).max())
weight_gap = float((W_scratch - W_library).norm() / W_library.norm())
assert loss_gap < 1e-3  # at every step, relative to the loss there; float32 rounds each in its own order
assert weight_gap < 1e-3
say(f"The losses differ by {loss_gap:.1e} of themselves at most, the weights by {weight_gap:.1e}.")

# %% [markdown]
# The same numbers, up to rounding. So when a later cell says `Bench` and `XGBLoRA`, you know what is in it.

# %% [markdown]
# ### Exercise 3.1 · Write the round (10 minutes, medium)
#
# Boosted trees multiply each tree by a factor below one before they add it: the **shrinkage**. Write one
# round of boosting with it. You get the weight and the start of A; use `LoRALinear` and `train(layer,
# steps_per_round, 0.03)`; return the new weight. (Look at `boost` only when you are stuck.)


# %% tags=["exercise"]
def one_round(W: torch.Tensor, A: torch.Tensor, shrinkage: float) -> torch.Tensor:
    """The weight (d, k) after a round that starts from W (d, k) and A (1, k)."""
    # solution: return None  # your answer
    layer = LoRALinear(W, A)
    train(layer, steps_per_round, 0.03)
    return W + shrinkage * (layer.B @ layer.A).detach()
    # end


# %% tags=["check"]
check.function(
    "3.1", one_round,
    [
        ((torch.zeros(size, size), start_of_A(1), 1.0), boost(1, steps_per_round, 0.03)[0]),
        ((torch.zeros(size, size), start_of_A(1), 0.5), 0.5 * boost(1, steps_per_round, 0.03)[0]),
        ((boost(1, steps_per_round, 0.03)[0], start_of_A(1, 1), 1.0), boost(2, steps_per_round, 0.03)[0]),
    ],
    hints=[
        (lambda W, A, s: W, "The weight is as before: nothing was merged."),
        (lambda W, A, s: boost(1, steps_per_round, 0.03)[0] if not W.any() else
         boost(2, steps_per_round, 0.03)[0], "Where does the shrinkage come in?"),
        (lambda W, A, s: s * (boost(1, steps_per_round, 0.03)[0] if not W.any() else
         boost(2, steps_per_round, 0.03)[0] - W), "That is the booster alone. To what is it added?"),
    ],
    because="Attach, train, merge: W + shrinkage · BA. The pair is fitted at full strength, and only the "
    "merge shrinks it, so the loss jumps up at that moment (notebook 07 draws it).",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# Three lines: attach, train, merge. Two traps lie in it. Without `.detach()` the new weight drags the history
# of its training along, and the next round would train through it. And the shrinkage belongs to BA alone:
# `shrinkage * (W + B @ A)` would shrink all earlier rounds once more.

# %% [markdown]
# ## 4 · LoRA of rank *r*
#
# Every method in this notebook gets the same number of optimizer steps. Every method gets its learning rate
# from the same grid, the best one by final loss. A learning rate that suits one method may ruin another, so
# that a comparison at one common rate would compare the rates.


# %% tags=["folded"]
def tune(method):
    """A race of one: try the grid, then run the best learning rate with `repeats` seeds."""
    return race(model, task, [method], lrs=lrs, seeds=repeats, steps=steps, batch_size=1, progress=progress)


def best(found):
    """The first run at the learning rate that won."""
    return found.chosen(found.labels[0])[0]


def final(found) -> float:
    """Relative loss at the end, median over seeds."""
    return float(np.median([history.scores["dev_relative"] for history in found.chosen(found.labels[0])]))


def curve(history) -> np.ndarray:
    """Relative loss before every step, and after the last."""
    losses = [loss for record in history for loss in record.losses] + [history[-1].probe_after]
    return np.array(losses) / task.floor(0)


def floor_line(figure: go.Figure, rank: int, side: str = "right") -> None:
    """A grey horizontal line: the least loss at this rank."""
    figure.add_hline(y=relative_floor[rank], line={"color": "#666666", "width": 1})
    figure.add_annotation(
        x=int(side == "right"), xref="paper", y=np.log10(relative_floor[rank]), text=f"best of rank {rank}",
        showarrow=False, font_color="#666666", xanchor=side, yanchor="top",  # below it
    )  # fmt: skip


# %% [markdown]
# **Question.** Where do the curves of the low ranks end up, if they train long enough? Does a better
# learning rate help them further down?

# %%
lora = {rank: tune(LoRA(rank=rank, schedule="constant")) for rank in ranks}

figure = chart(
    f"LoRA at its best learning rate, {steps} steps", "optimizer step", "loss (1 = untrained)", log="y"
)
for look, rank in enumerate(ranks):
    line(figure, f"LoRA, rank {rank}", range(steps + 1), curve(best(lora[rank])), style("lora", look))
    if rank < size:
        floor_line(figure, rank)
figure.update_yaxes(range=[np.log10(relative_floor[rounds]) - 2, 0.2]).show()

pd.DataFrame(
    {
        "best learning rate": {rank: best(lora[rank]).settings.lr for rank in ranks},
        "loss at the end": {rank: final(lora[rank]) for rank in ranks},
        "least possible": {rank: relative_floor[rank] for rank in ranks},
    }
).rename_axis("rank")

# %% [markdown]
# LoRA of rank *r* goes down to the tail of rank *r* and stays there. That is both good and bad news. Good:
# Adam finds the best update of its rank, although the problem in B and A is not convex. Bad: once on the
# tail, more steps do nothing. The only way down is a higher rank, and the rank was fixed before training
# began. At full rank there is no tail to stop at, and the curve leaves the figure at the bottom.

# %% [markdown]
# ### Exercise 4.1 · Why it stops (2 minutes, easy)
#
# LoRA of rank 1 goes on training to the end of the budget, and its loss does not fall any more. Why?
#
# - (a) The learning rate is too small by then.
# - (b) Adam sits in a local minimum, and a better one of the same rank exists.
# - (c) No matrix of rank 1 is closer to the target.

# %% tags=["exercise"]
# solution: why_it_stops = None  # your answer: "a", "b" or "c"
why_it_stops = "c"
# end

# %% tags=["check"]
check.choice(
    "4.1", why_it_stops, "c",
    {"a": "the learning rate", "b": "a local minimum", "c": "the rank"},
    hints={
        "a": "The schedule is constant, and the best rate of the whole grid was taken. Compare two columns.",
        "b": "Compare the last two columns of the table. What would have to lie between them?",
    },
    because="The loss at the end and the least possible loss of that rank are the same number.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# The table shows it: the loss at the end is the least possible one. Students who answer *a local minimum*
# are right to suspect one, since the problem in B and A is not convex. On this loss every local minimum
# happens to be a global one; the other places where the gradient vanishes are saddles.

# %% [markdown]
# ## 5 · XGBLoRA, round by round
#
# Now boosting with its own best learning rate, in the library's `Bench`. Each round is what you wrote: attach
# a fresh booster, train it for `steps_per_round` steps (written κ), merge it into W, forget it.
#
# The learning rate first, on the same grid as LoRA's.

# %%
boosting = tune(XGBLoRA(steps_per_round=steps_per_round, schedule="constant"))
lr = best(boosting).settings.lr
print("learning rate of boosting:", lr)

# %% [markdown]
# The bench trains rounds one at a time, and prints a **record** of each. The first round is **round 0**, as
# Python counts. So after round *t*, *t* + 1 rounds are done; a table here that begins with the untrained
# model says *rounds done*.
#
# A record holds each loss twice. *loss*: on the batch that the round trained on. *probe*: on a fixed batch
# that no round trains on. A matrix is one single batch, so here, and only here, the probe is that batch as
# well, and the two agree. (The bench does not divide by the untrained loss. We do, in the table below.)

# %%
method = XGBLoRA(steps_per_round=steps_per_round, lr=lr, schedule="constant")
bench = Bench(model, task, method, steps=steps, batch_size=1)  # the batch is the whole problem: one row
print(f"untrained: loss {task.floor(0):.4f}, rank {len(bench.spectrum('matrix'))}")
print(bench.step())

# %% [markdown]
# **Question.** One round is done. Which LoRA should the loss be equal to? And when two are done? What is the
# rank of the accumulated update when *t* rounds are done?

# %%
for record in bench.rounds():
    print(record)

# %%
staged = bench.ensemble.spectra("matrix")  # (rounds + 1, rounds): singular values after every round
staircase = [1.0] + [record.probe_after / task.floor(0) for record in bench.history]

pd.DataFrame(
    {
        "loss": staircase,
        "least possible at this rank": tails,
        "ratio": np.array(staircase) / tails,
        "rank": [spectra.numerical_rank(s, shape=(size, size)) for s in staged],
        "effective rank": [spectra.effective_rank(s) for s in staged],
    }
).rename_axis("rounds done")

# %%
title = f"Boosting goes down the stairs of Eckart and Young, {steps_per_round} steps per round"
figure = chart(title, "optimizer step", "loss (1 = untrained)", log="y")
line(figure, "XGBLoRA, rank 1", range(steps + 1), curve(bench.history), style("xgblora"))
edges = [steps_per_round * t for t in range(rounds + 1)]
rings = {"color": "#0072B2", "symbol": "circle-open", "size": 13, "line": {"width": 3}}
line(figure, "best of rank t, when t rounds are done", edges, tails, mode="markers", marker=rings)
figure.update_xaxes(tickvals=edges, showgrid=True).show()

# %% [markdown]
# One step of the stairs per round. Within a round the loss falls quickly, then flattens on the tail: the
# booster has found its singular pair. A new booster makes the next step possible. The rank of the
# accumulated update grows by one each round, although no more than one booster is ever trained at a time.
#
# The last column of the table grows more slowly than the rank. **Effective rank** asks over how many
# directions the update is spread, not how many there are: it is exp(−Σ pᵢ ln pᵢ) with pᵢ = σᵢ / Σσ. Late
# boosters are small, so they count for little.
#
# **Question.** If each booster finds a singular pair of the target, what should the singular values of the
# accumulated update look like after each round?

# %%
figure = chart("Singular values of the accumulated update", "rounds done", "singular value", log="y")
for i in range(rounds):
    options = {"legendgroup": "target", "showlegend": i == 0}
    line(figure, "target", [1, rounds], [sigma[i]] * 2, line={"color": "#666666", "width": 1}, **options)
for i in range(rounds):
    options = {"legendgroup": "update", "showlegend": i == 0, "mode": "lines+markers", "marker_size": 8}
    line(figure, "accumulated update", np.arange(i + 1, rounds + 1), staged[i + 1 :, i], **options)
figure.update_xaxes(dtick=1).show()

error = (staged[rounds] / sigma[:rounds] - 1).abs()
print(f"first singular value off by {float(error[0]):.2%}, the worst of {rounds} by {float(error.max()):.2%}")
agreement = spectra.alignment(bench.ensemble.factors("matrix"), task.truth["matrix"], rounds)
print(
    f"the two leading subspaces of {rounds} directions agree to {agreement:.4f} (1: the same, 0: orthogonal)"
)
bench.close()

# %% [markdown]
# The singular values of the target appear from the top down, one per round, and then stay. They are not
# exact: each booster stops a little short of its pair, and what it leaves is mixed into the next residual.

# %% [markdown]
# ### Exercise 5.1 · What was trained (3 minutes, easy)
#
# How many numbers has boosting trained in this run, all rounds together? Work it out from `size` and
# `rounds`.

# %% tags=["exercise"]
# solution: trained = None  # your answer: a number
trained = rounds * 2 * size
# end

# %% tags=["check"]
check.number(
    "5.1", trained, bench.history[-1].total_parameters, unit="trained numbers",
    hints={
        2 * size: "That is one booster. How many were trained, one after the other?",
        rounds * size: "A booster has two factors, a column B and a row A.",
        size**2: "That is the whole matrix. A booster is a column and a row.",
    },
    because="Twice the size for each booster, and one booster in each round.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# A booster on a matrix of *d* rows and *k* columns has *d* + *k* numbers. The sum over the rounds is the
# **total** of trainable parameters; the one booster that is trained at a time is the **peak**. Section 6
# needs both words.

# %% [markdown]
# ## 6 · So who wins?
#
# Boosting ends on the tail of rank *T*. LoRA of rank *T* ends on the same tail.
#
# **Question.** Which of the two gets there in fewer steps? What does the other one save?


# %% tags=["folded"]
def steps_to(history, target: float) -> float:
    """Optimizer steps until the loss is at most `target`; nan if it never is."""
    reached = np.flatnonzero(curve(history) <= target)
    return float(reached[0]) if len(reached) else float("nan")


# %%
near = 1.05 * relative_floor[rounds]
contest = {"XGBLoRA": boosting, f"LoRA, rank {rounds}": lora[rounds], "LoRA, rank 1": lora[1]}

title = "The same budget of steps, joint or one by one"
figure = chart(title, "optimizer step", "loss (1 = untrained)", log="y")
for name, found in contest.items():
    look = style("xgblora") if name == "XGBLoRA" else style("lora", name != "LoRA, rank 1")
    line(figure, name, range(steps + 1), curve(best(found)), look)
floor_line(figure, rounds)
figure.show()

# %%
pd.DataFrame(
    {
        name: {
            "loss at the end": final(found),
            f"steps to within 5 % of the tail of rank {rounds}": steps_to(best(found), near),
            "peak trainable parameters": best(found)[-1].peak_parameters,
            "total trainable parameters": best(found)[-1].total_parameters,
            "optimizer bytes": best(found)[-1].optimizer_bytes,
        }
        for name, found in contest.items()
    }
)

# %% [markdown]
# **LoRA wins the race for steps.** It trains all directions at the same time, and boosting waits in line.
# When you know the rank you need and have the memory for it, joint training is the better choice on this
# problem.
#
# What boosting saves is what has to be held at one moment: it trains as few parameters as LoRA of rank 1,
# with gradients and optimizer state to match, and still ends at the loss of the higher rank. Look at the
# row below, too. Summed over the rounds, boosting trains just as many parameters as LoRA of that rank.
# "Fewer parameters" is a statement about the peak.
#
# And boosting did not have to know *T* in advance. You can look after each round and go on.

# %% [markdown]
# ## 7 · How many steps in a round?
#
# The budget of steps is fixed. Long rounds give few good boosters. Short rounds give many sloppy ones: more
# of them than the matrix has rows, if the rounds are short enough.
#
# **Question.** A booster that was added stays as it is. Is a sloppy one a mistake for good, or can later
# boosters make up for it? Where on the scale from few good boosters to many sloppy ones is the loss lowest?

# %%
by_kappa = {k: tune(XGBLoRA(steps_per_round=k, schedule="constant")) for k in kappas if k != steps_per_round}
by_kappa[steps_per_round] = boosting

ends = [final(by_kappa[k]) for k in kappas]
figure = chart(f"{steps} steps, cut into rounds of κ", "κ, steps per round", "loss at the end", log="xy")
line(figure, "XGBLoRA, rank 1", kappas, ends, mode="lines+markers", marker_size=10)
floor_line(figure, rounds, "left")
figure.update_xaxes(tickvals=kappas).show()

pd.DataFrame(
    {
        k: {
            "rounds": len(best(by_kappa[k])),
            "best learning rate": best(by_kappa[k]).settings.lr,
            "loss at the end": final(by_kappa[k]),
        }
        for k in kappas
    }
).T.rename_axis("κ")

# %% [markdown]
# Later boosters do make up for earlier ones: what a booster gets wrong is part of the next residual. With
# shorter rounds, boosting goes below the tail on which LoRA was
# stuck, still at the peak parameters of rank 1. It may, because its update is no longer of that rank.
#
# The longest rounds give too few boosters. Towards the short end the gain runs out. A round starts at B = 0,
# where A has no gradient yet, and a fresh Adam's first steps are as long as the learning rate, however small
# the gradient (notebook 07 shows it). So a very short round is over before its booster points the right way,
# and at a large rate its steps overshoot.
#
# Now be fair. LoRA at *full* rank has no tail to stop at either.

# %%
lowest = min(ends)
print(f"boosting, the best κ:      {lowest:.2g}")
print(f"LoRA of rank {rounds}:            {final(lora[rounds]):.2g}")
print(f"LoRA at full rank, {size}:     {final(lora[size]):.2g}")

# %% [markdown]
# With the same steps LoRA at full rank ends far below every boosting run here. What boosting beats is a
# rank that was chosen too low.

# %% [markdown]
# ### Exercise 7.1 · The rank of many (4 minutes, medium)
#
# Take the shortest rounds of the table, of `kappas[0]` steps. What is the highest rank that the accumulated
# update can have at the end?

# %% tags=["exercise"]
# solution: highest_rank = None  # your answer: a number
highest_rank = min(steps // kappas[0], size)
# end

# %% tags=["check"]
check.number(
    "7.1", highest_rank, min(len(best(by_kappa[kappas[0]])), *model.matrix.weight.shape), unit="the rank",
    hints={
        steps // kappas[0]: "So many boosters are in the sum. Can a matrix of this size have that rank?",
        rounds: "That is the number of the long rounds. How many short ones fit into the same steps?",
        1: "That is the rank of one booster, and they add up.",
    },
    because="One for each booster, until the matrix has no more rows.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# Ranks add up at most, so the sum of *T* boosters has a rank of at most *T*. It also has a rank of at most
# the number of rows. This is why short rounds are not stopped by the tail of a low rank.

# %% [markdown]
# ## What to take away
#
# - LoRA is a second, thin way through a layer: y = W x + B A x. A round is: attach, train, merge.
# - The tail of rank *r* is the floor for every update of rank *r*. LoRA reaches it and stops.
# - Converged rank-1 rounds walk down the tails, one rank per round, and fill in the spectrum from the top.
# - At equal steps, joint LoRA of sufficient rank is faster and ends lower. Boosting holds one booster at a
#   time and need not know the rank in advance.
# - Total parameters are not saved; peak parameters are.
# - Rounds need not converge: later boosters make up for earlier ones. How short they should be is one more
#   thing to tune.
# - A fresh booster changes nothing, and neither does a merge: each round begins where the last one ended.
#
# **Try it.** In section 1 replace `"1/i"` by `"exponential"`: the singular values then fall off much
# faster. Guess first: how close does the last round come to its tail? Give boosters a rank of 2, with half
# the rounds. Replace `schedule="constant"` by `"linear"` in section 7: which end of the curve moves?
#
# ## References
#
# - C. Eckart, G. Young. *The approximation of one matrix by another of lower rank.* Psychometrika 1, 1936.
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - Y. Zhang and others. *Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of
#   LLMs.* [arXiv 2410.19694](https://arxiv.org/abs/2410.19694)
# - J. H. Friedman. *Greedy function approximation: a gradient boosting machine.* Annals of Statistics 29,
#   2001.
# - D. P. Kingma, J. Ba. *Adam: A Method for Stochastic Optimization.*
#   [arXiv 1412.6980](https://arxiv.org/abs/1412.6980)
#
# The last cell checks what the text says. If a change of yours makes it fail, you have found where the
# story ends.

# %% tags=["folded"]
# Section 2: greedy and joint agree when boosters are exact.
assert np.allclose(by_hand, tails, rtol=1e-4)
# Section 3: of a fresh pair only B has a gradient, with A at zero neither; your lines and the library agree.
assert reached["A random"][0] == 0 < reached["A random"][1]
assert reached["A zero too"] == [0, 0]
assert loss_gap < 1e-3
assert weight_gap < 1e-3
# Section 4: LoRA stops on the tail of its rank; at full rank there is none.
assert all(0.999 < final(lora[r]) / relative_floor[r] < 1.01 for r in ranks if r < size)
assert final(lora[size]) < 0.01 * relative_floor[rounds]
# Section 5: boosting walks down the tails, one rank a round, and finds the singular values.
assert all(0.999 < a / b < 1.05 for a, b in zip(staircase, tails, strict=True))
assert [spectra.numerical_rank(s, shape=(size, size)) for s in staged] == list(range(rounds + 1))
assert error[0] < 0.01
assert all((staged[t + 1 :, t] / staged[t + 1, t] - 1).abs().max() < 0.05 for t in range(rounds))  # they stay
effective = [spectra.effective_rank(s) for s in staged[1:]]
assert max(np.diff(effective)) < 1  # more slowly than the rank
path = curve(bench.history)
middles = path[steps_per_round // 2 :: steps_per_round]  # a round's first half brings most of its fall
assert all(a - b > 2 * (b - c) for a, b, c in zip(staircase, middles, staircase[1:], strict=False))
# A fresh booster and a merge change nothing: each round begins at the loss where the last one ended.
pairs = zip(bench.history.rounds[:-1], bench.history.rounds[1:], strict=True)
assert all(np.isclose(after.losses[0], before.probe_after, rtol=1e-4) for before, after in pairs)
# Section 6: LoRA of the same rank needs fewer steps; boosting holds less at one moment and the same in total.
assert steps_to(best(lora[rounds]), near) < steps_to(best(boosting), near)
assert best(boosting)[-1].peak_parameters * rounds == best(lora[rounds])[-1].peak_parameters
assert best(boosting)[-1].total_parameters == best(lora[rounds])[-1].total_parameters
assert best(boosting)[-1].peak_parameters == best(lora[1])[-1].peak_parameters
assert best(boosting)[-1].optimizer_bytes == best(lora[1])[-1].optimizer_bytes
# Section 7: many sloppy boosters pass below the tail that stops LoRA of rank T, not below LoRA at full rank.
assert final(lora[size]) < 0.01 * lowest
assert lowest < 0.5 * relative_floor[rounds]
assert {best(found)[-1].peak_parameters for found in by_kappa.values()} == {2 * size}
assert final(by_kappa[10]) / ends[0] < ends[-1] / final(by_kappa[10])
assert not model.matrix.weight.any()  # and the bench has put the matrix back to where it began
print("All facts hold.")
