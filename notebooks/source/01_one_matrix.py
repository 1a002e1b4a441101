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
# answer.
#
# XGBLoRA is gradient boosting with low-rank adapters. In each **round** it trains one small pair of
# factors, the **booster** BA, then adds it to the weights and starts afresh. LoRA trains one larger pair
# from the first step to the last.
#
# **You will be able to**
#
# 1. say how good an update of rank *r* can be at all;
# 2. explain where LoRA of rank *r* stops;
# 3. follow one rank-1 booster after another, and say when LoRA is the better choice;
# 4. predict what the number of steps in a round, shrinkage, and a stale optimizer do.
#
# **Time.** About 60 minutes, two of them for computing.
#
# **You need.** Matrix products, singular values, and the idea of gradient descent; no transformers.
#
# Each section asks a question first. **Write down your guess before you run the cell below it.** A wrong
# guess is where the learning is. Five exercises check themselves: replace `None` by your answer, run the
# cell, run the next one.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (short), "laptop" (a minute or two) or "classroom" (minutes, three seeds)
seed: int = 0  # decides which matrix is to be found
progress: bool = False  # show a progress bar for every race

# %%
import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch

from xgblora_lab import Bench, LoRA, XGBLoRA, check, matrix, race, spectra

#            size  rounds  steps_per_round  seeds  ranks of LoRA, values of steps_per_round to compare
profiles = {
    "ci": (16, 5, 50, 1, (1, 5, 16), (2, 10, 50)),
    "laptop": (24, 8, 80, 1, (1, 4, 8, 24), (2, 5, 10, 20, 80)),
    "classroom": (32, 10, 100, 3, (1, 4, 10, 32), (2, 5, 10, 20, 50, 100)),
}
if profile not in profiles:
    raise ValueError(f"profile is {profile!r}; choose one of {', '.join(profiles)}.")
size, rounds, steps_per_round, seeds, ranks, kappas = profiles[profile]
steps = rounds * steps_per_round  # the budget of every run below, in optimizer steps
lrs = (0.01, 0.03, 0.1, 0.3) if profile == "ci" else (0.003, 0.01, 0.03, 0.1, 0.3)  # tried by every method

pd.set_option("display.float_format", "{:.4g}".format)
print(
    f"A {size} × {size} matrix; {steps} optimizer steps for every run; learning rates {lrs} for every method."
)

# %% [markdown]
# Figures need a common look. Colours are from the Okabe–Ito palette, which colour-blind readers can tell
# apart; the dash of a line repeats what its colour says.

# %%
GREY = "#666666"
looks = [("#D55E00", "solid"), ("#0072B2", "dash"), ("#009E73", "dot"), ("#CC79A7", "dashdot")]


def chart(title: str, x: str, y: str, log: str = "y") -> go.Figure:
    """An empty figure with a title and named axes; the axes in `log` are logarithmic."""
    figure = go.Figure()
    figure.update_layout(
        title=title, xaxis_title=x, yaxis_title=y, template="simple_white", height=460, font_size=15,
        xaxis_type="log" if "x" in log else "linear", yaxis_type="log" if "y" in log else "linear",
        legend={"yanchor": "top", "y": 1, "xanchor": "left", "x": 1.02},
    )  # fmt: skip
    return figure.update_yaxes(showgrid=True, tickformat="~g", dtick="D2" if "y" in log else None)


def line(figure: go.Figure, name: str, x, y, look: int = 0, **options) -> None:
    """Add a named line; `look` chooses colour and dash."""
    colour, dash = looks[look % len(looks)]
    default = {"mode": "lines", "line": {"color": colour, "dash": dash, "width": 3}}
    figure.add_scatter(x=x, y=y, name=name, **default | options)


def floor_line(figure: go.Figure, rank: int) -> None:
    """A grey horizontal line: the least loss at this rank."""
    figure.add_hline(y=relative_floor[rank], line={"color": GREY, "width": 1})
    figure.add_annotation(
        x=0, xref="paper", y=np.log10(relative_floor[rank]), text=f"best of rank {rank}", font_color=GREY,
        showarrow=False, xanchor="left", yanchor="bottom",  # on the left, where no curve is so low yet
    )  # fmt: skip


# %% [markdown]
# ## 1 · The problem
#
# A linear map y = W x starts at W = 0. Somewhere there is a target W\*. The loss is half the squared
# distance,
#
# **ℓ(W) = ½ ‖W − W\*‖²** (the sum of all squared entries)
#
# Fine-tuning has to find the update ΔW = W\*. We know it, because we planted it: its singular vectors are
# random, its singular values fall off slowly. That is the whole point of a planted problem. The right
# answer is known, so nothing has to be believed.

# %%
model, task = matrix("1/i", d=size, k=size, seed=seed)
sigma = task.values  # singular values of the target, descending
print(model)
print("first singular values of the target:", [round(float(s), 3) for s in sigma[:5]])
print(
    f"loss before any training: {task.floor(0):.4f}; from now on this is 1, and all losses are relative to it"
)

# %% [markdown]
# **Question.** You may use a matrix of rank 1 for ΔW, and you may choose the best one. How much of the loss
# is left? And with rank 4? With full rank?
#
# Eckart and Young answered this in 1936. The best matrix of rank *r* keeps the *r* largest singular values
# of the target with their vectors. What remains is the **tail**: ½ Σ σᵢ² over all *i* > *r*.

# %%
relative_floor = [task.floor(rank) / task.floor(0) for rank in range(size + 1)]

figure = chart("What each rank can reach at best", "rank r", "least loss of rank r (1 = untrained)")
line(figure, "Eckart–Young tail", list(range(size)), relative_floor[:size], mode="lines+markers")
figure.show()
print("left over at best:", {f"rank {r}": round(relative_floor[r], 4) for r in (1, 2, 4, rounds, size)})

# %% [markdown]
# These numbers are the yardstick for the rest of the notebook. No method whose update has rank *r* can get
# below the tail of rank *r*, however long it trains.

# %% [markdown]
# ### Exercise 1.1 · Your own tail
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
    because="Half the sum of squares beyond the rank, over half the sum of all squares: the halves cancel.",
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
residual = task.truth["matrix"][0] @ task.truth["matrix"][1]  # W*, since W = 0
by_hand = [1.0]
for _ in range(rounds):
    U, s, Vh = torch.linalg.svd(residual)
    residual = residual - s[0] * torch.outer(U[:, 0], Vh[0])  # the best booster is the top singular pair
    by_hand.append(0.5 * float(residual.square().sum()) / task.floor(0))

tails = relative_floor[: rounds + 1]
pd.DataFrame({"greedy, round by round": by_hand, "best of that rank": tails}).rename_axis("round")

# %% [markdown]
# Neither. The two columns agree. Here greed costs nothing: the best booster for the residual is exactly the
# next singular pair of the target. This is special. It holds for this loss on this matrix, when each
# booster is perfect. A trained booster is not perfect, and the sections below are about what that costs.

# %% [markdown]
# ## 3 · LoRA of rank *r*
#
# Now train. LoRA writes ΔW = BA with B = 0 at the start, and lets Adam move both factors.
#
# Every method in this notebook gets the same number of optimizer steps. Every method gets its learning rate
# from the same grid, the best one by final loss. A learning rate that suits one method may ruin another, so
# that a comparison at one common rate would compare the rates.


# %%
def tune(method):
    """A race of one: try the grid, then run the best learning rate with `seeds` seeds."""
    return race(model, task, [method], lrs=lrs, seeds=seeds, steps=steps, batch_size=1, progress=progress)


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


# %% [markdown]
# **Question.** Where do the curves of the low ranks end up, if they train long enough? Does a better
# learning rate help them further down?

# %%
lora = {rank: tune(LoRA(rank=rank, schedule="constant")) for rank in ranks}

figure = chart(f"LoRA at its best learning rate, {steps} steps", "optimizer step", "loss (1 = untrained)")
for look, rank in enumerate(ranks):
    line(figure, f"LoRA, rank {rank}", np.arange(steps + 1), curve(best(lora[rank])), look)
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
# ### Exercise 3.1 · Why it stops
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
    "3.1", why_it_stops, "c",
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
# ## 4 · XGBLoRA, round by round
#
# Now boosters of rank 1, trained instead of computed. Each round is: attach a fresh booster (B = 0, so
# nothing changes yet), train it for `steps_per_round` steps (written κ), merge it into W, forget it.
#
# The learning rate first, on the same grid as LoRA's.

# %%
boosting = tune(XGBLoRA(steps_per_round=steps_per_round, schedule="constant"))
lr = best(boosting).settings.lr
print("learning rate of boosting:", lr)

# %% [markdown]
# The bench trains rounds one at a time. Run the next cell, then run its last line again in a cell of your
# own: each `bench.step()` is one more round.

# %%
method = XGBLoRA(steps_per_round=steps_per_round, lr=lr, schedule="constant")
bench = Bench(model, task, method, steps=steps, batch_size=1)  # the batch is the whole problem: one row
print(f"untrained: relative loss 1, rank {len(bench.spectrum('matrix'))}")
print(bench.step())

# %% [markdown]
# **Question.** After this first round, which LoRA should the loss be equal to? After the second? And what
# is the rank of the accumulated update after round *t*?

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
).rename_axis("round")

# %%
figure = chart(
    f"Boosting goes down the stairs of Eckart and Young, {steps_per_round} steps per round", "optimizer step",
    "loss (1 = untrained)",
)  # fmt: skip
line(figure, "XGBLoRA, rank 1", np.arange(steps + 1), curve(bench.history), 0)
edges = [steps_per_round * t for t in range(rounds + 1)]
line(
    figure, "best of rank t, at the end of round t", edges, tails, mode="markers",
    marker={"color": looks[1][0], "symbol": "circle-open", "size": 13, "line": {"width": 3}},
)  # fmt: skip
figure.update_xaxes(tickvals=edges, showgrid=True).show()

# %% [markdown]
# One step of the stairs per round. Within a round the loss falls quickly, then flattens on the tail: the
# booster has found its singular pair. A new booster makes the next step possible. The rank of the
# accumulated update grows by one each round, although no more than one booster is ever trained at a time.
#
# The last column of the table grows more slowly than the rank. **Effective rank** asks how many directions
# carry the update, not how many there are; late boosters are small, so they count for little.
#
# **Question.** If each booster finds a singular pair of the target, what should the singular values of the
# accumulated update look like after each round?

# %%
figure = chart("Singular values of the accumulated update, round by round", "rounds done", "singular value")
for i in range(rounds):
    options = {"legendgroup": "target", "showlegend": i == 0}
    line(figure, "target", [1, rounds], [sigma[i]] * 2, line={"color": GREY, "width": 1}, **options)
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
# ### Exercise 4.1 · What was trained
#
# How many numbers has boosting trained in this run, all rounds together? Work it out from `size` and
# `rounds`.

# %% tags=["exercise"]
# solution: trained = None  # your answer: a number
trained = rounds * 2 * size
# end

# %% tags=["check"]
check.number(
    "4.1", trained, bench.history[-1].total_parameters, unit="trained numbers",
    hints={
        2 * size: "That is one booster. How many were trained, one after the other?",
        rounds * size: "A booster has two factors, a column B and a row A.",
        size**2: "That is the whole matrix. A booster is a column and a row.",
    },
    because="Twice the size for each booster, and one booster in each round.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# A booster on a matrix of *d* rows and *k* columns has *d* + *k* numbers. The sum over the rounds is the
# **total** of trainable parameters; the one booster that is trained at a time is the **peak**. Section 5
# needs both words.

# %% [markdown]
# ## 5 · So who wins?
#
# Boosting ends on the tail of rank *T*. LoRA of rank *T* ends on the same tail.
#
# **Question.** Which of the two gets there in fewer steps? What does the other one save?


# %%
def steps_to(history, target: float) -> float:
    """Optimizer steps until the loss is at most `target`; nan if it never is."""
    reached = np.flatnonzero(curve(history) <= target)
    return float(reached[0]) if len(reached) else float("nan")


near = 1.05 * relative_floor[rounds]
contest = {"XGBLoRA": boosting, f"LoRA, rank {rounds}": lora[rounds], "LoRA, rank 1": lora[1]}

figure = chart("The same budget of steps, joint or one by one", "optimizer step", "loss (1 = untrained)")
for look, (name, found) in enumerate(contest.items()):
    line(figure, name, np.arange(steps + 1), curve(best(found)), look)
floor_line(figure, rounds)
figure.show()

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
# ## 6 · How many steps in a round?
#
# The budget of steps is fixed. Long rounds give few good boosters. Short rounds give many sloppy ones: more
# of them than the matrix has rows, if the rounds are short enough.
#
# **Question.** A booster that was added stays as it is. Is a sloppy one a mistake for good, or can later
# boosters make up for it? Where on the scale
# from few good boosters to many sloppy ones is the loss lowest?

# %%
by_kappa = {k: tune(XGBLoRA(steps_per_round=k, schedule="constant")) for k in kappas if k != steps_per_round}
by_kappa[steps_per_round] = boosting

ends = [final(by_kappa[k]) for k in kappas]
figure = chart(f"{steps} steps, cut into rounds of κ", "κ, steps per round", "loss at the end", log="xy")
line(figure, "XGBLoRA, rank 1", kappas, ends, mode="lines+markers", marker_size=10)
floor_line(figure, rounds)
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
# stuck, still at the peak memory of rank 1. It may, because its update is no longer of that rank.
#
# The longest rounds give too few boosters. Towards the short end the gain runs out: a fresh Adam's first
# steps are as long as the learning rate, however small the gradient (section 8 shows it), and very short
# rounds consist of such steps only. These steps overshoot, so they add noise to what they fit.
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
# ### Exercise 6.1 · The rank of many
#
# Take the shortest rounds of the table, of `kappas[0]` steps. What is the highest rank that the accumulated
# update can have at the end?

# %% tags=["exercise"]
# solution: highest_rank = None  # your answer: a number
highest_rank = min(steps // kappas[0], size)
# end

# %% tags=["check"]
check.number(
    "6.1", highest_rank, min(len(best(by_kappa[kappas[0]])), *model.matrix.weight.shape), unit="the rank",
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
# ## 7 · Shrinkage
#
# Boosted trees multiply each tree by a factor below one before they add it. That is **shrinkage**. It slows
# boosting down, and with noisy data it often helps (Friedman, 2001): the ensemble does not commit to a
# first impression.
#
# **Question.** There is no noise here. A booster was fitted at full strength, and at the merge it is
# multiplied by one half. What does the loss do at that moment?

# %%
kappa = 10  # short rounds, from here on
fresh = by_kappa[kappa]
shrunk = {1.0: fresh}
for shrinkage in (0.5, 0.1):
    shrunk[shrinkage] = tune(XGBLoRA(steps_per_round=kappa, schedule="constant", shrinkage=shrinkage))

shown = min(steps, 8 * kappa)  # a closer look at the first rounds
rate = best(fresh).settings.lr  # one rate for all, so that the curves differ by the shrinkage alone
figure = chart(
    f"Shrinkage: rounds of {kappa} steps at learning rate {rate:g}", "optimizer step", "loss (1 = untrained)"
)
for look, (shrinkage, found) in enumerate(shrunk.items()):
    history = next(h for h in found.histories if h.settings.lr == rate)
    line(figure, f"shrinkage {shrinkage:g}", np.arange(shown + 1), curve(history)[: shown + 1], look)
figure.update_xaxes(tickvals=list(range(0, shown + 1, kappa)), showgrid=True).show()


def jump(history) -> float:
    """The loss right after the first merge over the loss one step before it."""
    return history[1].losses[0] / history[0].losses[-1]


pd.DataFrame(
    {
        s: {
            "best learning rate": best(found).settings.lr,
            "loss at the end": final(found),
            "first merge: loss after / before": jump(best(found)),
        }
        for s, found in shrunk.items()
    }
).T.rename_axis("shrinkage")

# %% [markdown]
# The curve is a saw. A booster lowers the loss, the merge throws part of this away, and the loss jumps up.
# Without shrinkage a merge changes nothing: one booster's curve goes on where the last one's ended.
#
# The figure has one learning rate for all; in the table each shrinkage has its own best one, which is larger
# where more is thrown away. Even so it ends higher: on this problem, with these rounds, shrinkage costs. It
# says nothing about noisy data, which shrinkage is made for.

# %% [markdown]
# ### Exercise 7.1 · What shrinkage leaves
#
# A perfect booster has found the first singular pair of the target. It is merged with shrinkage 0.5. Which
# part of the loss *in that direction* is left? Before the round it was ½ σ₁².

# %% tags=["exercise"]
# solution: part_left = None  # your answer: a number between 0 and 1
part_left = (1 - 0.5) ** 2
# end

# %% tags=["check"]
check.number(
    "7.1", part_left, (0.5 * (0.5 * sigma[0]) ** 2) / (0.5 * sigma[0] ** 2), unit="a number between 0 and 1",
    hints={
        0.5: "That is the part of the singular value that is left. The loss is its square.",
        0.75: "That is the part that is gone.",
        0: "That would be without shrinkage: the whole booster is added.",
        0.125: "Before the round there was a factor ½ too.",
    },
    because="Half of the singular value is left, and the loss goes with its square.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# With shrinkage ν a part (1 − ν) of the singular value is left, and (1 − ν)² of its loss. The direction
# comes back in the next residual, so nothing is lost for good. The jumps measured above are not exactly this
# large: ten steps do not make a perfect booster, and the other directions carry loss too.

# %% [markdown]
# ## 8 · A stale optimizer
#
# Adam remembers. It keeps running averages of the gradient and of its square, and a counter of its steps. A
# new booster is a new pair of parameters. What should happen to Adam's memory?
#
# - **fresh**: forget all of it. This is what the bench does.
# - **keep**: carry averages and counter over to the new booster.
# - **zero_moments**: set the averages to zero and keep the counter. It looks like a reset.
#
# **Question.** Zero averages, but the counter says that a thousand steps have passed. Adam divides its
# averages by a correction that is small at the first steps and near 1 later. What happens to the size of
# the first steps?


# %%
def step_sizes(stale: bool, count: int = 60) -> list[float]:
    """Adam's step over its learning rate, for a gradient that is always 1."""
    weight = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    adam = torch.optim.Adam([weight], lr=1.0)
    sizes = []
    for i in range(1000 + count):
        if stale and i == 1000:
            adam.state[weight]["exp_avg"].zero_()
            adam.state[weight]["exp_avg_sq"].zero_()
        elif i == 1000:
            adam.state.clear()
        before = weight.item()
        weight.grad = torch.ones_like(weight)
        adam.step()
        sizes.append(before - weight.item())
    return sizes[1000:]


multiples = {"fresh": step_sizes(stale=False), "zero_moments": step_sizes(stale=True)}
figure = chart("A reset that keeps the counter", "step after the reset", "step size / learning rate", log="")
for look, (name, sizes) in enumerate(multiples.items()):
    line(figure, name, np.arange(1, len(sizes) + 1), sizes, look)
figure.update_yaxes(rangemode="tozero").show()
print({name: f"largest step {max(sizes):.2f} × learning rate" for name, sizes in multiples.items()})

# %% [markdown]
# The half reset is a learning rate that jumps up after every merge, and nobody asked for it. It will look
# like an improvement wherever the learning rate was too low, and like an explosion wherever it was not.
#
# **Question.** Three policies, each over the whole grid of learning rates. Which curve lies where?

# %%
policies = {"fresh": fresh}
for policy in ("keep", "zero_moments"):
    policies[policy] = tune(XGBLoRA(steps_per_round=kappa, schedule="constant", optimizer_state=policy))


def sweep(found) -> pd.Series:
    """Relative loss at the end by learning rate, first seed."""
    runs = [history for history in found.histories if history.settings.seed == 0]
    return pd.Series({h.settings.lr: h.scores["dev_relative"] for h in runs}).sort_index()


sweeps = pd.DataFrame({name: sweep(found) for name, found in policies.items()})
figure = chart(f"Adam's memory across rounds of {kappa} steps", "learning rate", "loss at the end", log="xy")
for look, name in enumerate(sweeps):
    line(figure, name, sweeps.index, sweeps[name], look, mode="lines+markers", marker_size=9)
figure.update_xaxes(tickvals=list(lrs)).show()
sweeps.rename_axis("learning rate")

# %% [markdown]
# Read the figure in two ways. At one learning rate, the policies may differ by a large factor, and which
# one looks best depends on the rate. Each at its own best rate, they differ much less. Whoever compares
# them at one rate can prove almost anything. This is why the races in this lab tune every method on the
# same grid. (If a curve still falls at the edge of the grid, its best is not on the grid: then widen
# `lrs`.)
#
# A fresh optimizer is the one whose step means what you set.

# %% [markdown]
# ## What to take away
#
# - The tail of rank *r* is the floor for every update of rank *r*. LoRA reaches it and stops.
# - Converged rank-1 rounds walk down the tails, one rank per round, and fill in the spectrum from the top.
# - At equal steps, joint LoRA of sufficient rank is faster and ends lower. Boosting holds one booster at a
#   time and need not know the rank in advance.
# - Total parameters are not saved; peak parameters are.
# - Rounds need not converge: later boosters make up for earlier ones. How short they should be is one more
#   thing to tune.
# - A merge at full strength leaves the loss where it was; with shrinkage it jumps. A stale optimizer
#   changes the size of the steps behind your back.
#
# **Try it.** In section 1 replace `"1/i"` by `"exponential"`: the singular values then fall off much
# faster. Guess first: how close does the last round come to its tail? Give boosters a rank of 2, with half
# the rounds. Replace `schedule="constant"` by `"linear"` in section 6: which end of the curve moves?
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

# %%
# Section 2: greedy and joint agree when boosters are exact.
assert np.allclose(by_hand, tails, rtol=1e-4)
# Section 3: LoRA stops on the tail of its rank; at full rank there is none.
assert all(0.999 < final(lora[r]) / relative_floor[r] < 1.01 for r in ranks if r < size)
assert final(lora[size]) < 0.01 * relative_floor[rounds]
# Section 4: boosting walks down the tails, one rank a round, and finds the singular values.
assert all(0.999 < a / b < 1.05 for a, b in zip(staircase, tails, strict=True))
assert [spectra.numerical_rank(s, shape=(size, size)) for s in staged] == list(range(rounds + 1))
assert error[0] < 0.01
# A fresh booster and a merge change nothing: each round begins at the loss where the last one ended.
pairs = zip(bench.history.rounds[:-1], bench.history.rounds[1:], strict=True)
assert all(np.isclose(after.losses[0], before.probe_after, rtol=1e-4) for before, after in pairs)
# Section 5: LoRA of the same rank needs fewer steps; boosting holds less at one moment and the same in total.
assert steps_to(best(lora[rounds]), near) < steps_to(best(boosting), near)
assert best(boosting)[-1].peak_parameters * rounds == best(lora[rounds])[-1].peak_parameters
assert best(boosting)[-1].total_parameters == best(lora[rounds])[-1].total_parameters
# Section 6: many sloppy boosters pass below the tail that stops LoRA of rank T, not below LoRA at full rank.
assert final(lora[size]) < 0.01 * lowest
assert lowest < 0.5 * relative_floor[rounds]
assert final(fresh) / ends[0] < ends[-1] / final(fresh)
# Section 7: shrinkage makes the loss jump up at a merge, and costs.
assert jump(best(shrunk[0.1])) > jump(best(shrunk[0.5])) > 1.02
assert jump(best(fresh)) < 1.02
assert final(shrunk[1.0]) < final(shrunk[0.5]) < final(shrunk[0.1])
# Section 8: the half reset multiplies the step, and is the first to explode.
assert max(multiples["fresh"]) < 1.01
assert max(multiples["zero_moments"]) > 5
assert sweeps.loc[0.3, "zero_moments"] > 2 * sweeps.loc[0.3, "fresh"]
apart = sweeps.max(axis=1) / sweeps.min(axis=1)
assert apart.max() > 2 * sweeps.min().max() / sweeps.min().min()
assert not model.matrix.weight.any()  # and the bench has put the matrix back to where it began
print("All facts hold.")
