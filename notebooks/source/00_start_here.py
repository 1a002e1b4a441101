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
# # Start here
#
# *What does one round of boosting do, does everything work here, and what will I learn?*
#
# Click into the next cell and press Shift and Enter together. Then press **Next round**, a few times.
#
# **Time.** {time}. **You need.** A little Python.

# %%
from xgblora_lab import first_look

first_look()

# %% [markdown]
# What you see: a matrix of 16 × 16 numbers is to be found. In each **round** a very thin matrix of rank 1, a
# **booster**, is trained and added. The residual loss falls, and the spectrum of the sum grows by one
# singular value, towards the dotted target. The dashed lines are LoRA of rank 4 after as many steps. Which of
# the two is ahead after one round, and which after twelve?
#
# Try: change the learning rate or the rank of the next round; go back with the slider and *Rewind to here*;
# drop a booster and look at what is missing; *Undo* it. *Keep to compare* and *Reset*, and try another way.
#
# This course is about fine-tuning a neural network in small steps that can be looked at. **LoRA** adds to a
# weight matrix a product of two thin matrices, BA, and trains that product alone. **XGBLoRA** does it in
# rounds, as gradient boosting does with trees. The course shows what one round does, when boosting wins, and
# when LoRA does.
#
# **You will be able to**
#
# 1. say what boosting is, what is *gradient* about it, and where boosters are not trees;
# 2. tell whether the lab works here, and which size of run fits your machine;
# 3. find the notebook that answers your question, and look up a word;
# 4. use parameters, exercises and checks, start over, and find help.
#
# Run the cells from top to bottom. A cell that works has a number in front of it; the next one can
# begin then.

# %% tags=["parameters"]
profile: str = "laptop"  # "ci" (seconds), "laptop" (half a minute) or "classroom" (more rounds)
seed: int = 0  # decides what is drawn at random

# %% tags=["folded"]
import re
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

import ipywidgets
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown, display
from sklearn.ensemble import GradientBoostingRegressor

from xgblora_lab import Bench, Ensemble, Spectrum, XGBLoRA, check, figures, load, matrix
from xgblora_lab.course import sources
from xgblora_lab.course.board import pick, say
from xgblora_lab.course.gallery import lesson
from xgblora_lab.course.machine import here, suited
from xgblora_lab.course.parameters import parameters_of
from xgblora_lab.course.pictures import boosted_stumps

#            size, rounds, κ of the matrix | rounds, κ of the transformer
profiles = {
    "ci": ((12, 4, 30), (2, 2)),
    "laptop": ((24, 6, 80), (3, 5)),
    "classroom": ((32, 12, 100), (6, 10)),
}
(size, rounds, kappa), (deep_rounds, deep_kappa) = pick(profile, profiles)

# %% [markdown]
# ## 1 · What is boosting?
#
# Here are sixty points on a line, with noise. A **weak learner** is a model that is too simple for them: a
# tree with a single split, which knows two values only.
#
# Boosting adds many of them. Each **round** looks at what is left, the **residual** *y* − prediction. It fits
# one small tree to the residual, and adds a part of that tree. Then it looks again.
#
# **Question.** Where will the second tree put its split? Guess, then drag the slider.

# %%
random = np.random.default_rng(seed)
x = np.linspace(0, 1, 60)
y = np.sin(7 * x) + random.normal(0, 0.2, 60)
trees = GradientBoostingRegressor(max_depth=1, n_estimators=40, learning_rate=0.5).fit(x[:, None], y)
stages = [np.full(60, y.mean()), *trees.staged_predict(x[:, None])]  # after 0, 1, 2, … trees
boosted_stumps(x, y, stages[:14])

# %% [markdown]
# No tree is ever changed. Each one is small, and stands on all before it. In scikit-learn the curve after
# every round is called *staged*, and this course uses the same word.
#
# **Question.** What is *gradient* about it? Take the squared loss, and ask: in which direction must each
# *prediction* move to lower the loss?

# %%
predicted = torch.tensor(stages[3], requires_grad=True)
(0.5 * (torch.tensor(y) - predicted).square().sum()).backward()
downhill = -predicted.grad.numpy()
assert np.allclose(downhill, y - stages[3])  # the residual is the negative gradient
squares = [float(np.mean((y - stage) ** 2)) for stage in stages]
assert (np.diff(squares) <= 0).all()  # every tree lowers what is left
say(
    f"Minus the gradient is the residual, at all {len(y)} points. {len(stages) - 1} trees have lowered the "
    f"mean squared residual from {squares[0]:.3f} to {squares[-1]:.3f}."
)

# %% [markdown]
# So a round is **one step of gradient descent, taken with a weak learner**: the tree is the best step that a
# tree can make. For another loss, the residual is replaced by minus its gradient. Nothing else changes.
#
# XGBLoRA does the same with the weights of a network:
#
# | boosted trees | XGBLoRA |
# | --- | --- |
# | the model is a sum of trees | the weight is W + a sum of **boosters** BA |
# | weak learner: a tree with few splits | weak learner: a matrix of rank 1 |
# | residual: what the trees so far leave over | residual loss: the loss of the weight so far |
# | a round fits one tree, then it stays | a round trains one booster, then it is merged |
# | the tree is fitted to minus the gradient of the predictions | the booster is fitted to the loss itself |
# | shrinkage, early stopping | the same two, by the same names |
# | a round sees some columns only | a round trains some modules only |
# | gain of a feature | gain of a module |
#
# Where does the analogy break?
#
# - Trees add up to the *prediction*. Boosters add up to a *weight*, and what a weight does to the prediction
#   goes through all layers above it.
# - A tree is fitted in one go, as well as a tree can be, to minus the gradient. A booster goes down the loss
#   itself, by κ steps of Adam, and may be merged half-trained. So a round is no longer *one* step of gradient
#   descent; what is left of it is the rule: add the best *small* thing you can find, keep it, go on.
# - Trees stay a list. Boosters melt into one matrix: a model with a thousand of them is as fast as before.
# - A network can be trained as a whole, so boosting has a rival that trees do not have: **LoRA**, which
#   trains all its directions together. Who wins is a question of the next eleven notebooks.

# %% [markdown]
# ## 2 · Where am I?
#
# The next cell asks the machine. Nothing is sent anywhere.

# %%
facts = here()
display(pd.Series(facts, name="here").to_frame())
best, why = suited()
say(f'This is **{facts["place"]}**. The profile that suits it: `"{best}"`. {why}')

# %% [markdown]
# ## 3 · Does everything work?
#
# A self-test, in the order in which the course needs things. Every part either says what it found or stops
# with a sentence.
#
# First, training: find a small matrix, round by round. The update starts at zero. Each booster has
# rank 1, so that after *t* rounds the update has rank *t*. (The first round is round 0, as Python counts.)

# %%
started = time.perf_counter()
model, task = matrix("1/i", d=size, k=size, seed=seed)
bench = Bench(
    model,
    task,
    XGBLoRA(lr=0.05, steps_per_round=kappa),
    steps=rounds * kappa,
    batch_size=1,
    hooks=[Spectrum()],
)
for record in bench.rounds():
    print(record)

losses = [record.probe_before for record in bench.history] + [bench.history[-1].probe_after]
assert losses[-1] < 0.5 * losses[0], "Training got nowhere. Restart the kernel and run all cells again."
say(f"The loss fell from {losses[0]:.3f} to {losses[-1]:.3f} in {rounds} rounds of {kappa} steps.")

# %% [markdown]
# Going back, and keeping things. The weights after two rounds are remembered exactly, and a saved ensemble
# is the same when it is loaded.

# %% tags=["folded"]
update = bench.update("matrix")
assert torch.linalg.matrix_rank(update) == rounds, "Each round should have added one direction."
bench.rewind(2)
assert torch.equal(bench.update("matrix"), bench.ensemble.update("matrix", 2))
for _ in bench.rounds():  # the same rounds again
    pass
assert torch.equal(bench.update("matrix"), update), "Training is not repeatable here."

with tempfile.TemporaryDirectory() as scratch:  # gone at the end of this cell
    bench.ensemble.save(Path(scratch) / "ensemble")
    loaded = Ensemble.load(Path(scratch) / "ensemble")
assert torch.equal(loaded.update("matrix"), update), "What was saved is not what was loaded."
say("Gone back, trained again to the same bits, saved and loaded: the same update each time.")

# %% [markdown]
# A figure. Drag the slider below it to go through the rounds; this needs no kernel. The text below the
# figure says in words what it shows.

# %%
figures.spectrum(bench.history, "matrix")

# %% [markdown]
# Some notebooks also have live pieces with buttons. **Do you see a slider below, and does the number follow
# it?** If not, all notebooks still work: each live piece has a plain figure beside it.

# %% tags=["folded"]
slider = ipywidgets.IntSlider(3, 0, 10, description="move me")
shown = ipywidgets.Label("3")
ipywidgets.jslink((slider, "value"), (shown, "value"))
ipywidgets.HBox([slider, shown])

# %% [markdown]
# Last, a real model: a small language model that comes with the package, and sentences from the documentation
# of this very Python. Nothing is downloaded.

# %% tags=["folded"]
language_model, text = load("lab", "pydocs", limit=200, max_length=32)
method = XGBLoRA(lr=0.01, steps_per_round=deep_kappa)
with Bench(
    language_model, text, method, steps=deep_rounds * deep_kappa, batch_size=8, seed=seed, probe_size=8
) as deep:
    deep.run(progress=False)
    parameters = sum(p.numel() for p in language_model.parameters())
    trained = deep.history[-1].peak_parameters
    step_seconds = sum(r.seconds for r in deep.history) / deep.trained_steps
    device = deep.accelerator.device.type
say(
    f"{deep_rounds} rounds on a model of {parameters:,} parameters, {trained:,} of them trained at one "
    f"moment ({trained / parameters:.1%}, the classifier's own included), on the {device.upper()}; "
    f"{step_seconds:.2f} s a step, measuring included."
)
say(f"**Everything works here.** The self-test took {time.perf_counter() - started:.0f} seconds.")

# %% [markdown]
# ## 4 · What will I learn?
#
# The table is read from the notebooks themselves. In JupyterLab its titles are links.

# %% tags=["folded"]
rows = ["| notebook | the question | time | you need |", "| --- | --- | --- | --- |"]
for path in sources.shipped():
    notebook = sources.read(path)
    about = lesson(notebook)
    head = next(c.source for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("# "))
    need = re.search(r"\*\*You need\.\*\* (.+?)(?:\n\s*\n|$)", head, flags=re.DOTALL)
    title = f"{path.stem[:2]} · {about.title}"
    link = title if "google.colab" in sys.modules else f"[{title}]({path.name})"
    cells = [link, about.question, about.time, " ".join(need[1].split()) if need else ""]
    rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
display(Markdown("\n".join(rows)))

# %% [markdown]
# Where to begin?
#
# - **The idea, with nothing in the way:** 01. All later notebooks need its words.
# - **A transformer:** 02, then 03.
# - **Your own question:** read the second column.

# %% [markdown] tags=["lookup"]
# ## 5 · Words, to look up
#
# | word | what it means here |
# | --- | --- |
# | **booster** | a pair B (one column) and A (one row) on one module; it adds the product BA to a weight |
# | **round** | attach fresh boosters, train them, merge them; the first one is round 0 |
# | **κ** | kappa, the optimizer steps in a round |
# | **rank** | how many pictures of rank 1 an update is a sum of |
# | **tail** | the part of a target that no update of rank r can reach: its singular values beyond the r-th |
# | **accumulated update** | all that was added to a weight since the base, ΔW |
# | **ensemble** | the merged boosters, kept round by round |
# | **gain** | by how much a booster lowered the probe's loss |
# | **bench**, **hook** | the loop that runs the rounds; what looks on while it does |
# | **planted** | a task with a known answer: a *teacher* holds an update, the *student* looks for it |
# | **K**, **L_s** | the steps of a whole run; the modules that get a booster in a round |
# | **effective rank** | over how many directions an update is spread, small ones counting for little |
# | **α**, **scale** | the factor on BA is α / rank |
# | **shrinkage** | the part of a booster that is merged |
# | **probe** | a fixed batch on which no round trains; its loss is comparable between rounds |
# | **residual loss** | the loss that the next booster faces |
# | **nat** | the unit of a loss made with the natural logarithm; 0.69 nats are one bit |
# | **module** | one linear map of a network, with a weight matrix |
# | `q_proj` `k_proj` `v_proj` `o_proj` | a layer's attention: the maps to queries, keys, values, and back |
# | `gate_proj` `up_proj` `down_proj` | the layer's other half, its small network of two widths |
# | **peak**, **total** | numbers trained at one moment; summed over all rounds |
# | **dev**, **test** | the split that may choose; the split that is looked at once, at the end |

# %% [markdown]
# ## 6 · How a notebook is used
#
# **A guess first.** Sections ask a question before they answer it. Write down a guess, on paper or in a
# cell of your own. A wrong guess is where the learning is.
#
# **Parameters.** Near the top of each notebook is a cell of parameters, each with a comment that says
# what it does. All notebooks have `profile`, the size of the runs. Change a value, then run all cells
# again: everything else follows from it. On the command line, `xgblora-lab run 1 -p seed=3` does the
# same without opening the notebook.

# %%
for path in sources.shipped():
    print(f"{path.stem:24}", ", ".join(parameters_of(path)))

# %% [markdown]
# **Exercises.** An exercise is a cell with `None` where your answer belongs, and below it a cell that
# checks the answer, shown folded. Replace `None`, run the cell, run the next one. A check does not give
# the answer away, and never stops the notebook.
#
# Here is what it has to say. The exercise would be: *what is the rank of the update after all rounds?*

# %% tags=["folded"]
for answer in (None, "many", 1, rounds):
    hints = {1: "That is one booster. How many were added?"}
    verdict = check.number("0.1", answer, rounds, hints=hints, because="Each of them added a direction.")
    print(f"{answer!s:>4}:  {verdict}")

# %% [markdown]
# **Starting over.** A notebook makes everything anew from its parameters, so that you can run all cells
# as often as you like. In Jupyter: *Kernel*, then *Restart Kernel and Run All Cells*. What it writes goes
# to temporary folders, unless it says otherwise. To get an exercise's blank back, take a fresh copy of the
# notebook.
#
# A model is never spoilt either. Closing a bench puts it back to where it began, bit for bit. Closing
# twice does no harm.

# %%
bench.close()
bench.close()
assert not model.matrix.weight.any()  # it began at zero
say("The matrix is all zeros again, as it was at the start.")

# %% [markdown]
# **Help.** Put a question mark behind a name, such as `XGBLoRA?`, and run the cell: it says what every option
# means. On the command line `xgblora-lab --help` does the same for the commands. The next cell says where the
# project lives; its README has the library in twenty lines, and errors can be reported there.

# %%
print("\n".join(metadata.metadata("xgblora_lab").get_all("Project-URL") or ["no address known"]))
print("the notebooks lie in:", sources.folder().name)

# %% [markdown]
# ## What to take away
#
# - Boosting adds weak learners, each fitted to what the others leave. A round is a step of gradient descent.
# - Section 2 says which `profile` suits this machine. Put it into the parameters of the other notebooks.
# - If every cell above ran, the lab works here.
# - Guess, run, compare. Then do the exercises.
#
# **Try it.** In the parameters above, choose another `seed` and run all cells. Does the loss end at the
# same value? Then go on with notebook 01.
#
# ## References
#
# - E. J. Hu and others. *LoRA: Low-Rank Adaptation of Large Language Models.*
#   [arXiv 2106.09685](https://arxiv.org/abs/2106.09685)
# - Y. Zhang and others. *Less is More: Extreme Gradient Boost Rank-1 Adaption for Efficient Finetuning of
#   LLMs.* [arXiv 2410.19694](https://arxiv.org/abs/2410.19694)
# - J. H. Friedman. *Greedy function approximation: a gradient boosting machine.* Annals of Statistics 29,
#   2001.
# - T. Chen, C. Guestrin. *XGBoost: A Scalable Tree Boosting System.*
#   [arXiv 1603.02754](https://arxiv.org/abs/1603.02754)
