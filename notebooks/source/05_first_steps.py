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
# # First steps
#
# *What does each of LoRA's descendants change, and can it be seen in its first step?*
#
# LoRA has many descendants. Each one changes something: where the pair BA starts, how it steps, which map
# gets how much rank, what is shaken, or how often it starts over. Each paper reports a gain. Here all of
# them stand on one bench, and take one step. Notebook 06 lets them race.
#
# **You will be able to**
#
# 1. say in one sentence, and with one formula, what each method changes;
# 2. see that change in the first step, before any training has hidden it;
# 3. explain why one learning rate for all is no fair race;
# 4. tell methods apart whose names are alike, and find a lost sign.
#
# **Time.** {time}.
#
# **You need.** Notebooks 01 and 02: LoRA, **booster**, **round**, **rank**, and what Adam does.
#
# **Write down your guess before you run a cell.** Sentences behind a grey bar are written by code, from the
# numbers of *your* run.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (short runs), "laptop" (a minute) or "classroom" (two layers, longer)
seed: int = 0  # of the planted update, the boosters and the data
rank: int = 4  # of LoRA and its descendants; boosting adds rank 1 in each round

# %% tags=["folded"]
import math
import statistics
import sys

import pandas as pd
import plotly.graph_objects as go
import torch

from xgblora_lab import Bench, Hook, LoRA, check, figures, load, make_method, spectra
from xgblora_lab.course.board import line, pick, say
from xgblora_lab.course.family import GROUP_OF, GROUPS
from xgblora_lab.figures._style import COLOURS, layout
from xgblora_lab.methods import METHODS, GoRA, LoRAGA, RoRA
from xgblora_lab.methods.family.gradient import mean_gradients

torch.set_num_threads(1)  # the lab model is so small that a second thread costs more than it brings

parts = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip
layers = (2, 3) if profile == "classroom" else (3,)  # to be quick: the last layer alone
targets = [f"model.layers.{layer}.{part}" for layer in layers for part in parts]
hidden = [f"model.layers.3.{part}" for part in ("self_attn.o_proj", "mlp.down_proj")]

#            sequences to train on | steps of a round | the ranks of section 4
profiles = {
    "ci": (64, 1, (1, 16)),
    "laptop": (1024, 10, (1, 2, 4, 8, 16, 32)),
    "classroom": (1024, 20, (1, 2, 4, 8, 16, 32)),
}
sequences, steps_per_round, ranks = pick(profile, profiles)
pd.set_option("display.float_format", "{:.3g}".format, "display.max_colwidth", None)


# %% [markdown]
# ## 1 · Who is who
#
# One table first. The lines are the first lines of the files in which the methods live. Each file says only
# what is different about its method.

# %%
pd.DataFrame(
    {
        name: {
            "group": group,
            "in one line": (sys.modules[METHODS[name].__module__].__doc__ or "").strip().splitlines()[0],
            "default lr": METHODS[name]().lr,
        }
        for name, group in GROUP_OF.items()
    }
).T

# %% [markdown]
# The names alone hold three traps.
#
# - PEFT's **aLoRA** is *Activated* LoRA. It has nothing to do with ALoRA, which *allocates* ranks.
# - **SoRA** is sparse LoRA. SORSA, and other papers that use the letters SORA, are something else.
# - **RoRA** and **rsLoRA** are one formula under two names. PEFT has it as `use_rslora=True`.
#
# And one arXiv number holds two algorithms: version 1 of 2502.14538 is **GGPO**, random noise. Later
# versions replaced it by **MGPO**, a push along the momentum. Two files here, because they are two methods.

# %% [markdown]
# ## 2 · The stage, and one step each
#
# The task is planted, as in notebook 03: a teacher is the lab model plus an update in *two* maps of its
# last layer. All maps of that layer may be trained. So two things can be found: the update, and the place.

# %%
common = {"modules": hidden, "rank": 2 * rank, "strength": 1.0, "length": 8, "sequences": sequences}
model, task = load("lab", "planted", seed=seed, **common)


# %% tags=["folded"]
def bench_of(method, steps=20, **options) -> Bench:
    """A bench on the planted task that measures nothing but the steps; the next one closes it."""
    settings = {"batch_size": 8, "targets": targets, "seed": seed, "data_seed": seed, "probe_size": 0}
    return Bench(model, task, method, steps=steps, **settings, **options)


def of(name: str, **options):
    """The method with the rank of this notebook; a round has one step, so that we can look after it."""
    options = {"steps_per_round": 1, "schedule": "constant"} | options
    if name == "adalora":
        options = {"rank": rank + math.ceil(rank / 2)} | options  # it keeps two thirds of what it starts with
    elif name not in ("full", "xgblora"):
        options = {"rank": rank} | options
    return make_method(name, **({"selection": "all"} if name == "xgblora" else {}), **options)


def update(method, count: int = 1) -> dict[str, torch.Tensor]:
    """ΔW of every map after `count` steps, always on the same batches."""
    with bench_of(method) as bench:
        bench.run(count, progress=False)
        return {name: bench.update(name) for name in bench.modules}


def size(update) -> float:
    """Frobenius norm over all maps together."""
    return math.sqrt(sum(float(delta.double().square().sum()) for delta in update.values()))


def cosine(one, two) -> float:
    """Cosine of two updates, all maps together."""
    return sum(float((one[n].double() * two[n].double()).sum()) for n in one) / (size(one) * size(two))


# %%
class Slope(Hook):
    """Keeps the gradient G of every map, on the batch of the first step."""

    def on_round_start(self, bench, index):
        self.G = mean_gradients(bench, bench.modules, 1)


slope = Slope()
with bench_of(of("lora"), hooks=[slope]) as bench:
    bench.run(1, progress=False)
    base_loss = bench.history[0].losses[0]  # of the untrained model on the first batch
down = {name: -G for name, G in slope.G.items()}  # steepest descent
weights = {name: model.get_submodule(name).weight.detach() for name in down}
entries = sum(G.numel() for G in down.values())
print(
    f"{len(down)} maps, {entries:,} weights; loss of the untrained model on the first batch {base_loss:.3f}"
)

# %% [markdown]
# The first step is the update after one step: most methods start with B = 0, or subtract their start from the
# weight. GoRA does not, so for GoRA we subtract the update after a step with learning rate 0.
#
# **Question.** Same batch, same learning rate, Adam. Full fine-tuning moves every weight by one learning
# rate. By how much does LoRA move them? Which of its descendants moves them furthest, and by what factor?

# %%
lr, still = 1e-3, 1e-30  # a rate for all, and one that moves nothing


def first_step(name: str) -> dict[str, torch.Tensor]:
    after = update(of(name, lr=lr))
    if name != "gora":
        return after
    start = update(of(name, lr=still))
    return {n: after[n] - start[n] for n in after}


first = {name: first_step(name) for name in METHODS}
length = {name: size(delta) / math.sqrt(entries) / lr for name, delta in first.items()}  # rms over weights

# %% tags=["folded"]
figure = go.Figure()
for place, (group, names) in enumerate(GROUPS.items()):
    figure.add_bar(
        y=list(names), x=[length[name] for name in names], orientation="h", name=group,
        marker={"color": COLOURS[place], "pattern_shape": ["", "/", "x", "-", "|", "."][place]},
        text=[f"{length[name]:.2g}" for name in names], textposition="outside", cliponaxis=False,
    )  # fmt: skip
layout(figure, "The first step at one learning rate", "root mean square over all weights", 640)
figure.update_xaxes(type="log", title="length of the first step / learning rate, log scale", dtick=1)
figure.update_yaxes(autorange="reversed", dtick=1).show()

# %%
ends = [max(length, key=length.get), min(length, key=length.get)]
say(
    f"At one learning rate the first step of `{ends[0]}` is {length[ends[0]] / length[ends[1]]:,.0f} times "
    f"as long as that of `{ends[1]}`. LoRA's is {length['lora']:.2g} learning rates long. A race at one "
    "learning rate would be a race of step lengths."
)

# %% [markdown]
# This is the first lesson about the whole family. **A learning rate is a number in a method's own unit.**
# Whoever changes the method and keeps the rate has changed two things.
#
# Next, the direction. −G is where the loss falls fastest, and an update of rank *r* cannot point there
# exactly.

# %%
directions = {
    name: {
        "cosine with −G": cosine(delta, down),
        "numerical rank": max(spectra.numerical_rank(torch.linalg.svdvals(d)) for d in delta.values()),
    }
    for name, delta in first.items()
}
pd.DataFrame(directions).T

# %% [markdown]
# A low cosine is not a fault in itself. Adam does not go along −G either: look at `full`. Keep the table for
# the sections below. Each takes one group.

# %% [markdown]
# ## 3 · Where they start: LoRA-GA, GoRA, PiSSA
#
# LoRA starts at A random and B = 0. So its first steps go into directions that were drawn at random.
#
# **LoRA-GA** looks at the gradient first, G = U S Vᵀ, and gives A the first *r* right directions, B the next
# *r* left ones. The start is taken out of the weight, so that at first nothing changes:
#
# **A₀ = c (v₁ … v_r)ᵀ, B₀ = c (u_{r+1} … u_{2r}), W ← W − s B₀A₀**
#
# The claim: the first step of *gradient descent* is the best copy of G that has rank 2*r*.
#
# **Question.** Does the claim hold exactly? And with Adam instead of gradient descent?


# %%
def by_sgd(method):
    """The same method, stepped by plain gradient descent."""

    class Plain(type(method)):
        def new_optimizer(self, parameters):
            return torch.optim.SGD(parameters, lr=self.lr)

    return Plain(**method.options())


# %%
class AsInPEFT(LoRAGA):
    """LoRA-GA as PEFT 0.19 to 0.21 start it: singular values on B, and A of length one."""

    def split(self, G, seed):
        U, s, Vh = torch.linalg.svd(G, full_matrices=False)
        pair = slice(self.rank, 2 * self.rank)
        return G.shape[0] ** 0.25 / math.sqrt(self.gamma) * U[:, pair] * s[pair], Vh[: self.rank]


# %% tags=["folded"]
def best_cosine(count: int) -> float:
    """Of −G with its best copy of this rank, the mean over maps."""
    energy = (spectra.captured_energy(torch.linalg.svdvals(G))[count - 1] for G in down.values())
    return statistics.fmean(math.sqrt(part) for part in energy)


def by_map(delta) -> float:
    """Cosine with −G, the mean over maps (LoRA-GA scales large maps up, which is no matter of direction)."""
    return statistics.fmean(cosine({n: delta[n]}, {n: down[n]}) for n in delta)


# %%
options = {"rank": rank, "steps_per_round": 1, "schedule": "constant", "lr": 0.01}
starts = {"LoRA": LoRA(**options), "LoRA-GA": LoRAGA(passes=1, **options)}
starts["LoRA-GA as in PEFT"] = AsInPEFT(passes=1, **options)
aligned = {
    name: {"gradient descent": by_map(update(by_sgd(m))), "Adam": by_map(update(m))}
    for name, m in starts.items()
}
for count in (rank, 2 * rank):
    aligned[f"best copy of rank {count}"] = {"gradient descent": best_cosine(count)}
pd.DataFrame(aligned).T.rename_axis("cosine with −G").map("{:.3f}".format).replace("nan", "")

# %% [markdown]
# Under gradient descent the claim holds. Adam takes each entry's gradient to about the same length, and
# the proof says nothing about that.
#
# The third row is a warning about names. PEFT's option `init_lora_weights="lora_ga"` multiplies B by the
# singular values and leaves A at length one. Gradients are small, so B is then nearly zero, and the first
# step copies rank *r*, not 2*r*. It may train as well. It is not what the paper says.

# %% [markdown]
# **GoRA** looks at the gradient too, and does two things. A map gets more rank if its weights and gradients
# are large together, and B starts as a first descent step seen through A:
#
# **r_m ∝ mean |W ∘ G| / √(d + k), B₀ = −ξ G A₀ᵀ (A₀A₀ᵀ)⁻¹**
#
# Here m is a map with d outputs and k inputs, and ∘ multiplies entry by entry. ξ is chosen so that the
# first product is about `gamma` times as long as G. Nothing is taken out of the weight, so the model has
# moved before it is trained.
#
# **Question.** Two of the maps hold the planted update. Does GoRA give them more rank?

# %%
gora = GoRA(**(options | {"lr": still}), passes=1)
with bench_of(gora) as bench:
    bench.run(1, progress=False)
    gora_loss = bench.history[0].losses[0]
    gora_ranks = {name: booster.rank for name, booster in bench.method.boosters.items()}
    start = {name: bench.update(name) for name in bench.modules}
short = {
    name: name.removeprefix("model.layers.").replace("self_attn.", "").replace("mlp.", "") for name in down
}
planted_share = sum(gora_ranks[n] for n in hidden) / sum(gora_ranks.values())
say(
    f"Ranks: {', '.join(f'`{short[n]}` {r}' for n, r in gora_ranks.items())}. The two planted maps hold "
    f"{planted_share:.0%} of all ranks; an even share would be {len(hidden) / len(down):.0%}. The start has "
    f"cosine {cosine(start, down):.2f} with −G and is {size(start) / size(down):.3f} gradients long."
)

# %% [markdown]
# ### Exercise 3.1 · A lost minus (3 minutes, medium)
#
# In the paper there is a minus before ξ. In a later version of the authors' code it is a plus. What does
# the plus do to the loss *before the first step*?
#
# - (a) It is lower than that of the untrained model.
# - (b) It is the same: the start changes nothing.
# - (c) It is higher.

# %% tags=["exercise"]
# solution: lost_minus = None  # your answer: "a", "b" or "c"
lost_minus = "c"
# end


# %%
class Plus(GoRA):
    """GoRA with the sign lost."""

    def first_step(self, G, A):
        return -super().first_step(G, A)


plus = Plus(**gora.options())
with bench_of(plus) as bench:
    bench.run(1, progress=False)
    plus_loss = bench.history[0].losses[0]
print(
    "loss on the first batch, before training. Run the check, then look at base_loss, gora_loss, plus_loss."
)

# %% tags=["check"]
check.choice(
    "3.1", lost_minus, "c" if plus_loss > base_loss else "a",
    {"a": "lower", "b": "the same", "c": "higher"},
    hints={
        "a": "B₀A₀ should point along −G. Where does it point without the minus?",
        "b": "That is LoRA-GA, which takes its start out of the weight. Does GoRA?",
    },
    because="Without the minus the model starts with a step uphill.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# With the minus, s B₀A₀ is the part of −G that A₀ can see, a short step downhill. With the plus it is a
# step uphill. The step is so short that training hides it: curves look fine, and a sign error can stay
# unnoticed for long. One inner product, ⟨B₀A₀, G⟩ < 0, finds it. Test signs, not curves.

# %% [markdown]
# **PiSSA** does not look at data. It takes the largest *r* singular directions out of the weight and trains
# them, and freezes the rest:
#
# **W = U S Vᵀ, B₀ = U_r √S_r, A₀ = √S_r V_rᵀ, and W − B₀A₀ is frozen**
#
# **Question.** What part of the weights' energy is in what PiSSA trains? Does its first step stay within
# these directions?

# %%
tops = {n: torch.linalg.svd(W, full_matrices=False) for n, W in weights.items()}
energy = sum(float(s[:rank].square().sum()) for _, s, _ in tops.values()) / size(weights) ** 2


def within(delta) -> float:
    """Part of an update's energy whose columns or rows lie in the weights' first directions."""
    outside = {}
    for n, (U, _, Vh) in tops.items():
        U, V = U[:, :rank], Vh[:rank].T
        rest = delta[n] - U @ (U.T @ delta[n])
        outside[n] = rest - (rest @ V) @ V.T
    return 1 - (size(outside) / size(delta)) ** 2


say(
    f"PiSSA trains {energy:.0%} of the weights' energy. Of its first step {within(first['pissa']):.1%} lies "
    f"in these directions, of LoRA's {within(first['lora']):.1%}."
)

# %% [markdown]
# PiSSA bets that the directions that matter for the base also matter for the task. Here the planted update
# has random directions, so the bet is a bad one by construction. On real text it may be a good one.

# %% [markdown]
# ## 4 · How they step: RoRA, LoRA+, LoRA-Pro, LoRA-RITE
#
# **RoRA** changes one number, the scale:
#
# **ΔW = (α / √r) BA in place of (α / r) BA**
#
# The argument: with α/r, higher ranks are turned down too far.
#
# **Question.** Let the rank grow at a fixed α. How does the effect of the first step grow, by gradient
# descent and by Adam? (The effect is the fall of the loss that the slope promises: −⟨ΔW, G⟩.)

# %%
growth = {}
for name, kind in (("LoRA", LoRA), ("RoRA", RoRA)):
    for stepper in ("gradient descent", "Adam"):
        made = [kind(**(options | {"rank": r}), alpha=8) for r in ranks]
        deltas = [update(by_sgd(m) if stepper != "Adam" else m) for m in made]
        falls = [cosine(delta, down) * size(delta) for delta in deltas]  # −⟨ΔW, G⟩ / ‖G‖
        growth[f"{name}, {stepper}"] = [fall / falls[0] for fall in falls]

figure = go.Figure()
for name, values in growth.items():
    look = figures.style(name.split(",")[0].lower(), variant=name.endswith("descent"))
    line(figure, name, ranks, values, look, mode="lines+markers")
layout(figure, "Effect of the first step by rank, α = 8", "promised fall of the loss, relative to rank 1")
figure.update_xaxes(type="log", tickvals=ranks, title="rank r, log scale")
figure.update_yaxes(type="log", title="−⟨ΔW, G⟩, relative, log scale", tickvals=[0.03, 0.1, 0.3, 1, 3, 10])
figure.show()

# %% [markdown]
# Under gradient descent α/√r keeps the effect, and α/r lets it fade: that is the argument. Under Adam α/r
# keeps it, and α/√r lets it grow with √r. Most people use Adam. So when RoRA seems to help at a higher
# rank, ask first whether plain LoRA with a larger learning rate helps as much.

# %% [markdown]
# ### Exercise 4.1 · One formula, two names (4 minutes, easy)
#
# Write the α with which plain LoRA of rank `rank` is the same as RoRA with `alpha`.


# %% tags=["exercise"]
def lora_alpha(alpha: float, rank: int) -> float:
    """The alpha of plain LoRA that gives RoRA's scale."""
    # solution: return None  # your answer
    return alpha * math.sqrt(rank)
    # end


# %% tags=["check"]
check.function(
    "4.1", lora_alpha,
    [((a, r), r * RoRA(rank=r, alpha=a).scale_of(r)) for a, r in ((8, 4), (16, 64), (1, 1))],
    hints=[
        (lambda a, r: a / math.sqrt(r), "That is the scale. Which alpha gives it when it is divided by r?"),
        (lambda a, r: a * r, "Then the scale would be alpha. It should be alpha/√r."),
        (lambda a, r: a, "Then the scale would be alpha/r."),
    ],
    because="α√r / r = α / √r.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# α√r divided by r is α/√r. So at one fixed rank RoRA is LoRA with another α, and, but for Adam's ε, with
# another learning rate for what the pair adds. Only a comparison over several ranks can tell them apart.

# %% [markdown]
# **LoRA+** gives B a larger learning rate than A, because B starts at zero and has further to go:
#
# **A ← A − η · step, B ← B − λη · step, with λ = 16**
#
# ### Exercise 4.2 · The first step of LoRA+ (4 minutes, medium)
#
# LoRA+ runs with its defaults, `lr=1e-4` and `ratio=16`. Which learning rate must plain LoRA have to make the
# *same first step*? (Which of A and B has a gradient at the first step?)

# %% tags=["exercise"]
# solution: same_first_step = None  # your answer: a learning rate
same_first_step = 1e-4 * 16
# end

# %% tags=["check"]
check.number(
    "4.2", same_first_step, METHODS["lora+"]().lr * size(first["lora+"]) / size(first["lora"]),
    unit="a learning rate",
    hints={
        1e-4: "That is A's learning rate. Does A move at the first step?",
        17e-4: "Does A move at the first step? Its gradient is s BᵀG.",
        8.5e-4: "No mean is needed. Only one of the two factors moves at the first step.",
    },
    because="B = 0, so A has no gradient, and only B moves: 16 times as far as A's rate says.",
)  # fmt: skip

# %% [markdown] tags=["solution"]
# A's gradient is s BᵀG, and B = 0. So only B moves at first, by 16 · 10⁻⁴. A race of LoRA+ against LoRA at
# one `lr` is a race of 16 against 1 at the start. After that the ratio matters, and only a tuned race shows
# how.

# %% [markdown]
# **LoRA-Pro** asks what steps of A and B do to W *together*, and corrects them so that this comes as close to
# full fine-tuning's step as two thin matrices can:
#
# **min ‖ s(B h_A + h_B A) − G ‖ over the steps h_A, h_B**
#
# **LoRA-RITE** is an Adam whose steps do not depend on how an update is written. For any invertible R,
#
# **(A, B) and (R⁻¹A, BR) are one update BA, so they must make the same step**
#
# **Question.** Multiply A by 10 at the start. B is zero, so the model is the same. Which methods notice?


# %%
def rewritten(method, factor: float):
    """The same method, whose A starts `factor` times as large."""

    class Rewritten(type(method)):
        def make_boosters(self, bench):
            boosters = super().make_boosters(bench)
            for booster in boosters.values():
                booster.A.data *= factor
            return boosters

    return Rewritten(**method.options())


# %%
noticed = {}
for name in ("lora", "lora+", "lora-pro", "lora-rite"):
    plain, tenfold = (update(rewritten(of(name, lr=1e-4), factor), count=3) for factor in (1, 10))
    louder = update(of(name, lr=1e-4, alpha=4.0 * rank), count=3)
    noticed[name] = {
        "A tenfold: length of ΔW × ": size(tenfold) / size(plain),
        "A tenfold: cosine with before": cosine(tenfold, plain),
        "α fourfold: length of ΔW × ": size(louder) / size(plain),
    }
noticed = pd.DataFrame(noticed).T.rename_axis("after 3 steps")
noticed

# %% [markdown]
# For LoRA, the size of the random start is a second learning rate in disguise. LoRA-RITE does not see it.
# LoRA-Pro aims its step at G, whatever the lengths of A and B; what it still sees of them is that a real
# step has a size, and moves B and A at once. What LoRA-Pro alone does not see is α, since it aims at G
# itself: its learning rate is a length in W, like that of full fine-tuning.
#
# The price of LoRA-Pro's published mode is memory: two numbers of Adam for every weight of W. Look for it
# among the optimizer bytes of notebook 06's race.

# %% [markdown]
# ## 5 · How they share rank: BeamLoRA, ALoRA, SoRA, AdaLoRA
#
# LoRA gives every map the same rank. These four methods do not.
#
# - **BeamLoRA**: ranks compete inside a map. Every so often the weakest restart as older copies of the
#   strongest. **ΔW = s B diag(r · softmax(z/τ)) A**: z, a trained number for each of the r pairs of column
#   and row; τ, how fierce the competition is; s, the scale α / r.
# - **ALoRA**: switch one rank off at a time, remove those that are not needed, give new ones to maps that
#   lost none. **score = loss without it − loss with it alone**. (Such a pair is what all four call a *rank*.)
# - **SoRA**: a gate g on every rank, closed a little at each step, by learning rate η times ξ.
#   **g ← sign(g) max(|g| − ηξ, 0)**
# - **AdaLoRA**: start with more than the budget, mask the least important until it is met.
#   **ΔW = B diag(E) A, importance = smoothed |weight · gradient|**, with a trained number E for each pair
#
# GoRA, above, decides once. These four decide while they train.
#
# **Question.** The planted update sits in two maps of seven. Who finds that out, in one short run?

# %%
share_steps = 3 * steps_per_round
adaptive = {
    "gora": {},
    "alora": {"every": 1, "reallocations": 1, "score_rows": 8},
    "sora": {"rank": 2 * rank, "xi": 0.8},  # twice the ranks, and taps that close fast: the run is short
    "adalora": {},
}
if profile == "ci":
    del adaptive["alora"]  # it asks for the loss without each rank, and with each rank alone
shares, kept = {}, {}
for name, extra in adaptive.items():
    method = of(name, steps_per_round=steps_per_round, lr=20 * METHODS[name]().lr, **extra)
    with bench_of(method, steps=share_steps) as bench:
        bench.run(progress=False)
        boosters = bench.ensemble[len(bench.ensemble) - 1]
        kept[name] = {short[n]: B.shape[1] for n, (B, A) in boosters.items()}
        shares[name] = sum(kept[name][short[n]] for n in hidden) / max(1, sum(kept[name].values()))

# %% tags=["folded"]
figure = go.Figure()
patterns = dict(zip(adaptive, ("", "/", "x", "."), strict=False))  # one more where ALoRA is left out
for name, by_map in kept.items():
    figure.add_bar(
        x=list(by_map), y=list(by_map.values()), name=name,
        marker={"color": figures.style(name).colour, "pattern_shape": patterns[name]},
    )  # fmt: skip
figure.add_hline(y=rank, line={"color": "#666666", "dash": "dot", "width": 2})
for n in hidden:
    figure.add_annotation(x=short[n], y=1.0, yref="paper", text="planted", showarrow=False, yanchor="bottom")
layout(figure, f"Ranks after {share_steps} steps", f"dotted: LoRA's rank {rank}, in every map")
figure.update_xaxes(title="map").update_yaxes(title="rank").show()
say(
    f"Share of all ranks in the {len(hidden)} planted maps, where an even share is "
    f"{len(hidden) / len(down):.0%}: "
    + "; ".join(f"`{name}` {share:.0%} of {sum(kept[name].values())}" for name, share in shares.items())
    + "."
)

# %% [markdown]
# BeamLoRA moves no rank between maps, so look at its gates instead. They start at 1, and sum to *r* in each
# map.

# %%
with bench_of(of("beamlora", lr=0.02, steps_per_round=steps_per_round), steps=share_steps) as bench:
    bench.run(progress=False)
    gates = torch.stack([booster.gates().detach() for booster in bench.method.boosters.values()])
say(
    f"After {share_steps} steps BeamLoRA's gates lie between {float(gates.min()):.2g} and "
    f"{float(gates.max()):.2g}. The strongest rank of a map holds "
    f"{float((gates.max(1).values / rank).median()):.0%} of the map's sum (median), against {1 / rank:.0%} "
    "at the start."
)

# %% [markdown]
# Right ranks are a means. Whether they lower the loss is a question for races (notebook 06).

# %% [markdown]
# ## 6 · What they shake or split: GGPO, MGPO, DoRA
#
# Two methods take their gradients not at W but at W + ε, beside it. The hope is a flat valley: whoever
# trains while being shaken must settle where shaking does little.
#
# - **GGPO**: noise, larger where weights and gradients are. **ε_ij ~ N(0, σ²(|W_i|² + β|G_i|²) / k)**
#   (W_i, G_i: row i of the weight and of its gradient; σ and β are options.)
# - **MGPO**: a push along the momentum m of Adam. **ε = −ρ c v/‖v‖, v = s(m_B A + B m_A)**
#   Its length is ρ, times c, which is larger where gradients are small (10 at most).
#
# GGPO's formula is our reconstruction: neither the paper's exact one nor its authors' code was available.
#
# **Question.** The minus of MGPO: does ε push uphill, as sharpness-aware minimization (SAM) does, or
# downhill? How large are the two ε beside the weights?

# %%
shaken = {}
for name in ("lora-ggpo", "lora-mgpo"):
    with bench_of(of(name, lr=lr)) as bench:
        bench.run(1, progress=False)
        push = {n: bench.method.perturbation(bench, n, b) for n, b in bench.method.boosters.items()}
        eps = {
            n: shake(torch.eye(weights[n].shape[1])).T for n, shake in push.items()
        }  # ε x, for every unit x
        shaken[name] = {"‖ε‖ / ‖W‖": size(eps) / size(weights), "cosine with −G": cosine(eps, down)}
        apart = {n: first[name][n] - first["lora"][n] for n in eps}
        shaken[name]["first step as LoRA's"] = size(apart) < 1e-3 * size(first["lora"])  # to rounding
pd.DataFrame(shaken).T

# %% [markdown]
# At the first step nothing is remembered yet, so both are LoRA, bit for bit. At the second step MGPO looks
# *ahead*, downhill. That is the sign of the authors' code, and the opposite of SAM's. GGPO's noise has
# no preferred direction.
#
# **DoRA** does not shake, it splits. The pair trains each output's direction, and one more number, m, its
# length:
#
# **W' = m ∘ (W + sBA) / ‖W + sBA‖, row by row**
#
# **Question.** What is the rank of DoRA's update?

# %%
dora_s = torch.linalg.svdvals(first["dora"][hidden[0]].double())
energy_first = float(spectra.captured_energy(dora_s)[rank - 1])
say(
    f"After one step DoRA's update of `{short[hidden[0]]}` has numerical rank "
    f"{spectra.numerical_rank(dora_s)} of {min(weights[hidden[0]].shape)} possible, LoRA's has "
    f"{spectra.numerical_rank(torch.linalg.svdvals(first['lora'][hidden[0]]))}. The first {rank} directions "
    f"hold {energy_first:.0%} of DoRA's energy."
)

# %% [markdown]
# Rescaling rows multiplies the whole of W, and W has full rank. So one number for each output is enough for
# an update of full rank, and no LoRA file can hold it. Full rank is not the same as much freedom.

# %% [markdown]
# ## 7 · How they go round: XGBLoRA, ReLoRA, COLA, and two ideas of BoostLoRA
#
# These merge a pair and start another one: **ΔW = Σ_t B_t A_t**. They differ in what a round is.
#
# - **COLA**: each round is a LoRA run of rank *r*, with a new optimizer.
# - **ReLoRA**: the same, but Adam's memory is pruned and not deleted, and the step counter runs on.
# - **XGBLoRA**: boosters of rank 1, on few maps (here on all), with a new optimizer.
# - `examples="hardest"`: a round trains on the rows that the model gets most wrong.
# - `subspace="orthogonal"`: a booster stays orthogonal to the earlier ones of its map. These two are our
#   reading of the abstract of BoostLoRA (arXiv 2604.27308), not its algorithm.
#
# **Question.** Three rounds each. What is the rank at the end? How much do boosters of different rounds
# overlap? What survives in Adam's memory? Are the hardest rows much harder?


# %%
class Rows(Hook):
    """The mean loss of the first round's rows, before it trains."""

    def on_round_start(self, bench, index):
        if index == 0:
            picked = [row for rows in bench.trainer.picked.values() for row in rows]
            rows = picked or bench.trainer.planned_rows(bench.trained_steps)
            self.loss = statistics.fmean(bench.row_losses(rows))


# %%
round_steps = min(3, steps_per_round)
rounders = {
    "xgblora": of("xgblora", steps_per_round=round_steps),
    "xgblora, orthogonal": of("xgblora", steps_per_round=round_steps, subspace="orthogonal"),
    "xgblora, hardest": of("xgblora", steps_per_round=round_steps, examples="hardest"),
    "relora": of("relora", steps_per_round=round_steps, lr=0.01),
    "cola": of("cola", steps_per_round=round_steps, lr=0.01),
}

# %%
rounded = {}
for name, method in rounders.items():
    with bench_of(method, hooks=[watch := Rows()]) as bench:
        bench.run(3, progress=False)
        As = [torch.linalg.qr(bench.ensemble[t][hidden[0]][1].T).Q for t in range(3)]
        memory = [value for key, value in bench.method.carried.items() if key.endswith("exp_avg")]
        rounded[name] = {
            "numerical rank": spectra.numerical_rank(bench.spectrum(hidden[0])),
            "largest cosine of two rounds' A": max(
                float(torch.linalg.matrix_norm(As[i].T @ As[j], 2)) for i in range(3) for j in range(i)
            ),
            "Adam's memory kept": sum(int(m.count_nonzero()) for m in memory) / sum(m.numel() for m in memory)
            if memory else 0,
            "loss of the first round's rows": watch.loss,
        }  # fmt: skip
rounded = pd.DataFrame(rounded).T
rounded

# %% [markdown]
# Two random directions in *k* dimensions have a cosine of about 1/√k. What lies above comes from training:
# boosters look for the same directions again. `orthogonal` forbids it. Training on the hardest rows changes
# the question: the model is then trained on other rows than those it is scored on.

# %% [markdown]
# ## What to take away
#
# - The family changes five things: the start, the step, the shares of rank, what is shaken or split, and the
#   rounds. Each is one formula, and most show in the first step.
# - A learning rate is in a method's own unit. First steps at one rate differ by orders of magnitude.
# - RoRA is rsLoRA. Under Adam its scale is a learning rate that grows with the rank.
# - LoRA-GA's guarantee is about gradient descent. LoRA-RITE's, about how an update is written, holds with
#   its own Adam.
# - Check names and signs: aLoRA and ALoRA, GGPO and MGPO, GoRA's minus, PEFT's LoRA-GA.
# - A first step shows what a method *does*. Whether that helps is a question for races: notebook 06.
#
# **Try it.** Set `rank` to 1: which tables change? Plant in all maps instead of two (`hidden`): do those that
# share rank still find them? Give LoRA a tenfold A in section 4, and a rate ten times lower.
#
# ## References
#
# - LoRA: E. J. Hu and others, [2106.09685](https://arxiv.org/abs/2106.09685). XGBLoRA: Y. Zhang and others,
#   [2410.19694](https://arxiv.org/abs/2410.19694)
# - The start: LoRA-GA [2407.05000](https://arxiv.org/abs/2407.05000), GoRA
#   [2502.12171](https://arxiv.org/abs/2502.12171), PiSSA [2404.02948](https://arxiv.org/abs/2404.02948)
# - The step: RoRA [2501.04315](https://arxiv.org/abs/2501.04315), rsLoRA
#   [2312.03732](https://arxiv.org/abs/2312.03732), LoRA+ [2402.12354](https://arxiv.org/abs/2402.12354),
#   LoRA-Pro [2407.18242](https://arxiv.org/abs/2407.18242), LoRA-RITE
#   [2410.20625](https://arxiv.org/abs/2410.20625)
# - The rank: BeamLoRA [2502.13604](https://arxiv.org/abs/2502.13604), ALoRA
#   [2403.16187](https://arxiv.org/abs/2403.16187), SoRA [2311.11696](https://arxiv.org/abs/2311.11696),
#   AdaLoRA [2303.10512](https://arxiv.org/abs/2303.10512)
# - Shaking and splitting: LoRA-GGPO and LoRA-MGPO [2502.14538](https://arxiv.org/abs/2502.14538), DoRA
#   [2402.09353](https://arxiv.org/abs/2402.09353)
# - The rounds: ReLoRA [2307.05695](https://arxiv.org/abs/2307.05695), COLA
#   [2401.04151](https://arxiv.org/abs/2401.04151), BoostLoRA [2604.27308](https://arxiv.org/abs/2604.27308)
#
# The last cell checks what the text says.

# %% tags=["folded"]
# Section 1: every method is in one group, and has its step.
assert set(GROUP_OF) == set(METHODS) == set(first)
# Section 2: Adam moves every weight of full fine-tuning by one learning rate; first steps differ widely.
assert 0.9 < length["full"] < 1.1
assert directions["full"]["cosine with −G"] < 0.9
assert max(length.values()) > 100 * min(length.values())
# Section 3: LoRA-GA's first SGD step is the best copy of rank 2r, PEFT's that of rank r; GoRA goes downhill.
ga = {name: aligned[name]["gradient descent"] for name in starts}
assert abs(ga["LoRA-GA"] - best_cosine(2 * rank)) < 0.01
assert abs(ga["LoRA-GA as in PEFT"] - best_cosine(rank)) < 0.01
assert aligned["LoRA-GA"]["Adam"] < ga["LoRA-GA"]
assert cosine(start, down) > 0
assert gora_loss < base_loss < plus_loss
assert within(first["pissa"]) > 0.99 > 2 * within(first["lora"])
# Section 4: who keeps the step as the rank grows; who notices that A is written larger.
assert growth["RoRA, Adam"][-1] > 2 * growth["LoRA, Adam"][-1]
assert growth["LoRA, gradient descent"][-1] < 0.5 * growth["RoRA, gradient descent"][-1]
assert all(0.5 < growth[name][-1] < 2 for name in ("LoRA, Adam", "RoRA, gradient descent"))
assert math.isclose(size(first["lora+"]), 16 * size(first["lora"]), rel_tol=0.01)
tenfold = noticed["A tenfold: length of ΔW × "]
assert abs(tenfold["lora-rite"] - 1) < 0.01 < abs(tenfold["lora"] - 1)
assert abs(noticed["α fourfold: length of ΔW × "]["lora-pro"] - 1) < 0.05
# Section 6: both shakers begin as LoRA; MGPO looks downhill; DoRA's update has more than rank r.
assert all(row["first step as LoRA's"] for row in shaken.values())
assert shaken["lora-mgpo"]["cosine with −G"] > 0.05 > abs(shaken["lora-ggpo"]["cosine with −G"])
assert spectra.numerical_rank(dora_s) > 2 * rank
# Section 7: ranks add up; orthogonal is; ReLoRA keeps a little of Adam's memory; the hardest rows are harder.
assert rounded.loc["xgblora", "numerical rank"] == 3
assert rounded.loc["cola", "numerical rank"] == 3 * rank
assert rounded.loc["xgblora, orthogonal", "largest cosine of two rounds' A"] < 1e-3
assert 0 < rounded.loc["relora", "Adam's memory kept"] < 0.1
assert rounded["loss of the first round's rows"].idxmax() == "xgblora, hardest"
print("All facts hold.")
