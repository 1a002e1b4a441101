"use strict";
/* Tabs, the address, and the first movement. */

function start() {
  const found = readAddress(location.hash);
  const matrix = new MatrixTab(found), model = new ModelTab();
  const notice = text => {
    $("notice").textContent = text;
    $("notice").hidden = !text;
  };
  const tabs = TABS.map(name => $(`tab-${name}`));
  const open = (name, focus = false) => {
    for (const tab of tabs) {
      const chosen = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", String(chosen));
      tab.tabIndex = chosen ? 0 : -1;
      $(tab.getAttribute("aria-controls")).hidden = !chosen;
      if (chosen && focus) tab.focus();
    }
    (name === "matrix" ? model : matrix).motion.stop();
    (name === "matrix" ? matrix : model).rest();
  };
  tabs.forEach((tab, i) => {
    tab.addEventListener("click", () => open(TABS[i]));
    tab.addEventListener("keydown", event => {
      const by = {ArrowRight: 1, ArrowLeft: -1, Home: -i, End: tabs.length - 1 - i}[event.key];
      if (by === undefined) return;
      event.preventDefault();
      open(TABS[(i + by + tabs.length) % tabs.length], true);
    });
  });
  const follow = address => {
    notice(address.note);
    if (address.tab === "model") model.visit(address);
    open(address.tab);
  };
  addEventListener("hashchange", () => {
    const address = readAddress(location.hash);
    if (address.tab === "matrix") matrix.visit(address);
    follow(address);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => matrix.redraw());
  follow(found);
  if (found.given) return;
  if (document.hidden) document.addEventListener("visibilitychange", () => matrix.play(), {once: true});
  else matrix.play();
}

start();
