"use strict";
async function unpack(source) {
  const bytes = Uint8Array.from(atob(source.textContent), c => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);
}
/* Figures follow the reader's theme; a print stays light. */
const dark = matchMedia("(prefers-color-scheme: dark)");
const night = {"#222222": "#e8e6e3", "#777777": "#aaa7a2", "#dddddd": "#3c4046", "#ffffff": "#16181c",
  "white": "#16181c", "#000000": "#f2f2f2", "black": "#f2f2f2", "#0072b2": "#4aa3df",
  "rgba(255,255,255,0.9)": "rgba(22,24,28,0.9)", "rgba(0,0,0,0.16)": "rgba(255,255,255,0.16)",
  "rgba(0,114,178,0.16)": "rgba(74,163,223,0.16)"};
function themed(value) {
  if (typeof value === "string") return night[value.toLowerCase().replaceAll(" ", "")] ?? value;
  if (Array.isArray(value)) return value.length > 200 ? value : value.map(themed);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(
    ([key, inner]) => [key, key === "colorscale" || key === "bdata" || key === "text" ? inner : themed(inner)]));
}
/* On a phone: narrow margins. */
function fitted(layout, plot) {
  if (plot.clientWidth >= 600) return layout;
  layout.margin = {...layout.margin, l: 50, r: 10};
  layout.font = {...layout.font, size: 12};
  return layout;
}
