// What ipywidgets leaves out of a panel: a figure as wide as its cell, a click on a round in it, focus that is
// not lost when a button is switched off, Enter on buttons, names for the handles of sliders, and End at their end.

function whenAttached(el, then) {
  if (el.isConnected) then();
  else requestAnimationFrame(() => whenAttached(el, then));
}

function care(root, model) {
  let last = null; // the control that the reader used last
  // Else JupyterLab takes Enter on a button for "edit this cell".
  root.setAttribute("data-lm-suppress-shortcuts", "true");

  const tried = new WeakMap();
  const widths = () => {
    for (const plot of root.querySelectorAll(".js-plotly-plot")) {
      const drawn = plot._fullLayout?.width;
      const wide = plot.clientWidth;
      if (!drawn || !wide || Math.abs(drawn - wide) <= 2 || tried.get(plot) === wide) continue;
      tried.set(plot, wide); // once for each width: to draw it again changes the page, which calls this again
      window.dispatchEvent(new Event("resize"));
    }
  };

  // anywidget gives plotly.js two seconds to load. On a busy machine that is too short, and the live figure stays
  // empty for good; the kernel then draws a plain one.
  let asked = false;
  const stuck = () => [...root.querySelectorAll(".js-plotly-plot")].some((plot) => plot.data?.length === 0);
  const ask = () => {
    if (asked || !stuck()) return;
    asked = true;
    setTimeout(() => {
      asked = false;
      if (!stuck()) return;
      model.set("stuck", true);
      model.save_changes();
    }, 2500);
  };

  const names = () => {
    for (const handle of root.querySelectorAll(".noUi-handle")) {
      const field = handle.closest(".widget-hbox")?.querySelector("label");
      if (field) handle.setAttribute("aria-label", field.textContent);
    }
  };

  const write = (slider, round) => {
    const field = slider?.closest(".widget-hbox")?.querySelector("input[type=number]");
    if (!field) return false;
    field.value = round;
    field.dispatchEvent(new Event("change", { bubbles: true }));
    return true;
  };

  // A click on a round in one panel of a figure shows that round in all.
  const rounds = () => {
    for (const plot of root.querySelectorAll(".js-plotly-plot")) {
      if (!plot.on || plot.dataset.rounds) continue;
      plot.dataset.rounds = "answers";
      plot.on("plotly_click", ({ points }) => {
        const point = points.find(({ xaxis }) => xaxis._id === "x2");
        if (point && point.x >= 0) write(root.querySelector(".noUi-target"), Math.round(point.x));
      });
    }
  };

  // A button that is switched off loses the focus; it goes on to the next one that can be pressed, or back.
  const focus = () => {
    const active = document.activeElement;
    if (!last?.isConnected || !(active === document.body || active.disabled)) return;
    const near = [...(last.closest(".widget-hbox")?.querySelectorAll("button") ?? [])];
    const after = near.slice(near.indexOf(last) + 1);
    [last, ...after, ...near].find((button) => !button.disabled)?.focus();
  };

  let waiting = 0;
  const soon = () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { widths(); ask(); names(); rounds(); focus(); }, 60);
  };
  root.addEventListener("focusin", (event) => {
    last = event.target.matches("button") ? event.target : null;
  });
  root.addEventListener("click", (event) => { // what the button moves shall be seen
    if (event.target.closest("button")) root.scrollIntoView({ block: "nearest" });
  });
  const elsewhere = (event) => { if (!root.contains(event.target)) last = null; }; // the reader moved on
  for (const kind of ["pointerdown", "focusin"]) document.addEventListener(kind, elsewhere);
  // The slider's own End goes to where its end was when it was made.
  root.addEventListener("keydown", (event) => {
    const slider = event.target.closest?.(".noUi-target");
    if (event.key !== "End" || !write(slider, slider?.noUiSlider.options.range.max)) return;
    event.preventDefault();
    event.stopPropagation();
  }, true);
  new MutationObserver(soon).observe(root, {
    subtree: true, childList: true, attributes: true, attributeFilter: ["disabled"],
  });
  new ResizeObserver(soon).observe(root);
  soon();
}

export default {
  render({ el, model }) {
    whenAttached(el, () => {
      const root = el.closest(".xgblora-panel");
      if (root) care(root, model);
    });
  },
};
