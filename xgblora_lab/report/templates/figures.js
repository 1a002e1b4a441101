"use strict";
for (const source of document.querySelectorAll("script.figure")) {
  const n = source.dataset.number, content = JSON.parse(source.textContent);
  const plot = document.getElementById("d" + n), layout = content.plot.layout;
  layout.title.text = "";  // the heading above the plot says it
  layout.margin.t = layout.title.subtitle && layout.title.subtitle.text ? 70 : 46;
  if (plot.closest(".slide")) delete layout.height;  // the screen says it
  Plotly.newPlot(plot, content.plot.data, layout, {responsive: true, displaylogo: false});
  const axis = document.getElementById("a" + n);
  if (axis) axis.addEventListener("change", () => Plotly.update(plot, ...content.axes[axis.selectedIndex]));
  const range = document.getElementById("r" + n);
  if (!range) continue;
  const words = document.getElementById("o" + n), play = document.getElementById("p" + n);
  let timer = null;
  function show(i) {
    const frame = content.frames[i], update = {};
    range.value = i;
    words.textContent = content.texts[i];
    range.setAttribute("aria-valuetext", content.texts[i]);
    for (const key of ["x", "y"]) {
      const traces = frame.traces.filter((_, k) => key in frame.data[k]);
      const values = frame.data.filter(d => key in d).map(d => d[key]);
      if (traces.length) Plotly.restyle(plot, {[key]: values}, traces);
    }
  }
  function stop() { clearInterval(timer); timer = null; play.textContent = "Play"; }
  range.addEventListener("input", () => { stop(); show(+range.value); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "Pause";
    if (+range.value === content.frames.length - 1) show(0);
    const last = content.frames.length - 1;
    timer = setInterval(() => +range.value < last ? show(+range.value + 1) : stop(), 200);
  });
}
