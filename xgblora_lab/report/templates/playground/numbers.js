"use strict";
/* The controls' values in words, and the run as a table, as CSV, and as the lines of Python that give the same. */

/* The chart of the spectrum has its name already. */
function inputOf(name) { return name === "spectrum" ? "spectrum-of" : name; }

function show(settings) {
  for (const [name, value] of Object.entries(settings)) {
    const input = $(inputOf(name)), index = CHOICES[name].values.indexOf(value);
    if (input.type !== "range") {
      input.selectedIndex = index;
      continue;
    }
    input.max = CHOICES[name].values.length - 1;
    input.value = index;
    input.setAttribute("aria-valuetext", String(value));
    $(`${name}-text`).textContent = String(value);
  }
}

/* The rounds so far, where the table is open. */
function table(tab) {
  if (!$("table").open) return;
  const {boosting, lora, problem} = tab;
  const rows = Array.from({length: tab.round + 1}, (_, t) => {
    const step = boosting.stepAfter(t), rank = boosting.rankAfter(t);
    return [t, step, rank, boosting.losses[step], problem.floor(rank), lora.losses[step]];
  });
  $("rows").replaceChildren(...rows.map(row => {
    const line = html("tr");
    row.forEach((value, i) => html("td", {textContent: i < 3 ? value : brief(value)}, line));
    return line;
  }));
}

function csv({boosting, lora, settings}) {
  const lines = boosting.losses.map((loss, s) => [s, Math.ceil(s / settings.kappa), loss, lora.losses[s]].join());
  return ["step,round,boosting,lora", ...lines].join("\n") + "\n";
}

function saveCsv(tab) {
  const url = URL.createObjectURL(new Blob([csv(tab)], {type: "text/csv"}));
  html("a", {href: url, download: "playground.csv"}).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/* The same runs in the library. */
function python({spectrum, seed, rank, kappa, lr, shrinkage, lorarank, loralr}) {
  const target = spectrum === "four" ? "[1, 0.8, 0.6, 0.4] + 28 * [0.02]" : `"${spectrum}"`;
  const shrunk = shrinkage === 1 ? "" : `, shrinkage=${shrinkage}`;
  return `from xgblora_lab import Bench, LoRA, XGBLoRA, matrix

model, task = matrix(${target}, seed=${seed})
common = {"steps_per_round": ${kappa}, "schedule": "constant"}
boosting = XGBLoRA(rank=${rank}, lr=${lr}${shrunk}, **common)
lora = LoRA(rank=${lorarank}, lr=${loralr}, **common)
for method in (boosting, lora):
    bench = Bench(model.double(), task, method, steps=${DATA.steps}, batch_size=1, seed=${seed})
    history = bench.run()
    print(method.name, history[-1].probe_after / task.floor(0))
`;
}
