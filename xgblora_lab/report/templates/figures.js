/* A figure: drawn in the reader's theme, scrubbed by its slider, on the chosen axis. */
const redraws = [];
function draw(source) {
  const n = source.dataset.number, content = JSON.parse(source.textContent);
  const plot = document.getElementById("d" + n), layout = content.plot.layout;
  const axis = document.getElementById("a" + n), range = document.getElementById("r" + n);
  layout.title.text = "";  // the heading above the plot says it
  layout.margin.t = layout.title.subtitle && layout.title.subtitle.text ? 70 : 46;
  if (plot.closest(".slide")) delete layout.height;  // the screen says it
  function redraw(print) {
    const look = dark.matches && !print ? themed : structuredClone;
    const figure = fitted({data: look(content.plot.data), layout: look(layout)}, plot);
    Plotly.react(plot, figure.data, figure.layout, toolbar());
    if (axis && axis.selectedIndex > 0) Plotly.update(plot, ...content.axes[axis.selectedIndex]);
    if (range) show(+range.value);
  }
  function show(i, kept = true) {
    const frame = content.frames[i];
    if (kept) range.value = i;
    words.textContent = content.texts[i];
    range.setAttribute("aria-valuetext", content.texts[i]);
    for (const key of ["x", "y"]) {
      const traces = frame.traces.filter((_, k) => key in frame.data[k]);
      const values = frame.data.filter(d => key in d).map(d => d[key]);
      if (traces.length) Plotly.restyle(plot, {[key]: values}, traces);
    }
  }
  const words = document.getElementById("o" + n), play = document.getElementById("p" + n);
  redraws.push(redraw);
  redraw(false);
  if (axis) axis.addEventListener("change", () => Plotly.update(plot, ...content.axes[axis.selectedIndex]));
  if (!range) return;
  const names = content.frames.map(frame => frame.name);
  follow(plot, name => {
    if (name === null || names.includes(name)) show(name === null ? +range.value : names.indexOf(name), false);
  });
  let timer = null;
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
(async () => {
  await unpack(document.getElementById("plotlyjs"));
  for (const medium of [dark, narrow])
    medium.addEventListener("change", () => redraws.forEach(redraw => redraw(false)));
  for (const source of document.querySelectorAll("script.figure")) {
    draw(source);
    await new Promise(resolve => setTimeout(resolve));  // the first picture shows before the last is drawn
  }
  addEventListener("beforeprint", () => redraws.forEach(redraw => redraw(true)));
  addEventListener("afterprint", () => redraws.forEach(redraw => redraw(false)));
})();
