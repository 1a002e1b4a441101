/* The figures of a notebook, each behind the place where it is drawn. */
(async () => {
  await unpack(document.getElementById("plotlyjs"));
  const redraws = [];
  for (const medium of [dark, narrow])
    medium.addEventListener("change", () => redraws.forEach(redraw => redraw(false)));
  for (const source of document.querySelectorAll("script.figure")) {
    const plot = source.previousElementSibling, figure = JSON.parse(source.textContent);
    const redraw = print => {
      const look = dark.matches && !print ? themed : structuredClone;
      const drawn = fitted({data: look(figure.data), layout: look(figure.layout ?? {})}, plot);
      return Plotly.react(plot, {...drawn, frames: figure.frames ?? [],
        config: toolbar()});
    };
    redraws.push(redraw);
    await redraw(false);
    const names = (figure.frames ?? []).map(frame => frame.name);
    const at = {mode: "immediate", frame: {duration: 0, redraw: false}, transition: {duration: 0}};
    follow(plot, name => {
      const shown = name ?? names[plot._fullLayout.sliders?.[0]?.active];
      if (names.includes(shown)) Plotly.animate(plot, [shown], at);
    });
    await new Promise(resolve => setTimeout(resolve));
  }
  addEventListener("beforeprint", () => redraws.forEach(redraw => redraw(true)));
  addEventListener("afterprint", () => redraws.forEach(redraw => redraw(false)));
})();
