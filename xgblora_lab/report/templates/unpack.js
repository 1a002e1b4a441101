"use strict";
async function unpack(source) {
  if (window.Plotly) return; // from a file beside the page
  const bytes = Uint8Array.from(atob(source.textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
/* What a figure's toolbar offers: a PNG or an SVG of it, made in the page; nothing leaves for a cloud. */
function toolbar() {
  const click = plot => Plotly.downloadImage(plot, {format: "svg", filename: "figure"});
  const svg = {name: "svg", title: "Download plot as SVG", icon: Plotly.Icons.disk, click};
  return {responsive: true, displaylogo: false, showSendToCloud: false, toImageButtonOptions: {scale: 2},
    modeBarButtonsToAdd: [svg]};
}
/* A round under the mouse in one panel is shown in all: `show` takes its name, or null when the mouse has left. */
function follow(plot, show) {
  plot.on("plotly_hover", ({points}) => {
    const point = points.find(({xaxis}) => xaxis._id === "x2");
    if (point) show(String(Math.round(point.x)));
  });
  plot.on("plotly_unhover", () => show(null));
}
/* Figures follow the reader's theme; a print stays light. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const night = {"rgb(36,36,36)": "#e8e6e3", "rgb(232,232,232)": "#3c4046", "#222222": "#e8e6e3", "#dddddd": "#3c4046", "#ffffff": "#16181c",
  "#666666": "#aaa7a2", "#6e6e6e": "#aaa7a2", "#777777": "#aaa7a2",
  "#c9c9c9": "#4a4a4a", "#bbbbbb": "#5c5c5c", "#a3a3a3": "#6f6f6f", "#7d7d7d": "#8f8f8f", "#555555": "#b4b4b4",
  "white": "#16181c", "#000000": "#f2f2f2", "black": "#f2f2f2", "#0072b2": "#4aa3df",
  "rgba(255,255,255,0.9)": "rgba(22,24,28,0.9)", "rgba(0,0,0,0.16)": "rgba(255,255,255,0.16)",
  "rgba(0,114,178,0.16)": "rgba(74,163,223,0.16)"};
function themed(value) {
  if (typeof value === "string") return night[value.toLowerCase().replaceAll(" ", "")] ?? value;
  if (Array.isArray(value)) return value.length > 200 ? value : value.map(themed);
  if (value === null || typeof value !== "object") return value;
  const kept = ["colorscale", "bdata", "text", ...(value.type === "heatmap" ? ["textfont"] : [])]; // its cells stay
  return Object.fromEntries(Object.entries(value).map(
    ([key, inner]) => [key, kept.includes(key) ? inner : themed(inner)]));
}
/* Names that fit; on a phone narrow margins, short lines, and panels one below the other. */
const narrow = matchMedia("(max-width: 640px)");
function fitted(figure, plot) {
  plot.dataset.height ??= plot.style.height;
  plot.style.height = plot.dataset.height;
  const {data, layout} = figure;
  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  for (const trace of data) {
    if (trace.name) trace.name = short(trace.name, narrow.matches ? 32 : 60);
    for (const key of ["x", "y"]) for (const value of Array.isArray(trace[key]) ? trace[key] : [])
      if (typeof value === "string") (axisOf(layout, trace, key).labelalias ??= {})[value] =
        value.split("<br>").map(part => short(part, narrow.matches ? 20 : 48)).join("<br>");
  }
  const foot = {yref: "container", y: 0, yanchor: "bottom"}; // below the axes' titles, however high the plot is
  if (layout.legend?.y < 0 && !layout.sliders?.length) layout.legend = {...layout.legend, ...foot};
  if (!narrow.matches) return figure;
  const note = layout.title?.subtitle, edge = {t: 80, b: 80, ...layout.margin};
  const lines = (text, least = 28) => text.replace(new RegExp(`(.{${least},}?) `, "g"), "$1<br>");
  if (note?.text) {
    note.text = lines(note.text);
    note.font = {...note.font, size: 13};
    edge.t += 18 * (note.text.split("<br>").length - 1);
  }
  if (layout.title?.text) {
    layout.title.text = lines(layout.title.text, 20);
    const more = layout.title.text.split("<br>").length - 1;
    Object.assign(layout.title, {font: {...layout.title.font, size: 17}, pad: {t: 14 + 10 * more}});
    edge.t += 22 * more;
  }
  for (const [name, axis] of Object.entries(layout))
    if (/^[xy]axis/.test(name) && axis.title?.text) axis.title.text = lines(axis.title.text);
  layout.margin = {...edge, l: 50, r: data.some(trace => trace.type === "bar" && trace.text) ? 36 : 10};
  layout.font = {...layout.font, size: 12};
  return stacked(figure, plot, edge);
}
function axisOf(layout, trace, key) {
  return (layout[(trace[`${key}axis`] ?? key).replace(/^[xy]/, "$&axis")] ??= {});
}
function stacked(figure, plot, edge) {
  const {data, layout} = figure, panels = [], gap = 90;
  for (const trace of data) {
    const x = axisOf(layout, trace, "x"), y = axisOf(layout, trace, "y");
    if (!y.overlaying && !panels.some(panel => panel.x === x && panel.y === y)) panels.push({x, y});
  }
  for (const panel of panels) panel.was = {x: panel.x.domain ?? [0, 1], y: panel.y.domain ?? [0, 1]};
  const right = Math.max(...panels.map(panel => panel.was.x[0]));
  if (!panels.some(panel => panel.was.x[1] <= right)) return figure; // there is one column
  panels.sort((a, b) => b.was.y[1] - a.was.y[1] || a.was.x[0] - b.was.x[0]);
  const before = (layout.height ?? 450) - edge.t - edge.b;
  for (const panel of panels) panel.high = Math.max(200, 0.8 * before * (panel.was.y[1] - panel.was.y[0]));
  const after = panels.reduce((sum, panel) => sum + panel.high, gap * (panels.length - 1));
  let top = after;
  for (const {x, y, high} of panels) {
    x.domain = [0, 1];
    y.domain = [(top - high) / after, top / after];
    x.showticklabels = y.showticklabels = true;
    top -= high + gap;
  }
  for (const note of layout.annotations ?? []) {
    if (note.xref !== "paper" || note.yref !== "paper") continue;
    const near = panels.filter(({was}) => note.x >= was.x[0] - 0.01 && note.x <= was.x[1] + 0.01);
    const far = panel => Math.abs(note.y - panel.was.y[1]);
    const {was, y} = (near.length ? near : panels).reduce((a, b) => (far(b) < far(a) ? b : a));
    note.x = (note.x - was.x[0]) / (was.x[1] - was.x[0]);
    note.y = y.domain[1] + (note.y - was.y[1]) * before / after;
    note.font = {...note.font, size: 13};
    note.text = note.text.replace(/(.{34,}?) /g, "$1<br>");
  }
  for (const slider of layout.sliders ?? []) Object.assign(slider, {x: 0, len: 1, y: -170 / after});
  for (const menu of layout.updatemenus ?? []) Object.assign(menu, {y: -270 / after});
  if (layout.sliders?.length) layout.legend = {...layout.legend, y: -60 / after};
  for (const trace of data) {
    const [low, high] = axisOf(layout, trace, "y").domain, bar = trace.colorbar ?? trace.marker?.colorbar;
    if (!bar) continue;
    Object.assign(bar, {x: 1, xanchor: "left", y: (low + high) / 2, yanchor: "middle", len: high - low,
      lenmode: "fraction"});
    layout.margin.r = 70;
  }
  const named = data.filter(trace => trace.showlegend !== false && trace.name).length;
  layout.height = after + edge.t + (layout.sliders?.length ? 310 : 70 + 22 * Math.ceil(named / 2));
  plot.style.height = `${layout.height}px`;
  return figure;
}
