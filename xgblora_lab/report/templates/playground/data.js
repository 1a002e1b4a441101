"use strict";
/* What Python put into the page. */
const DATA = JSON.parse(document.getElementById("data").textContent);
for (const pair of Object.values(DATA.directions)) {
  for (const side of ["U", "V"]) {
    const bytes = Uint8Array.from(atob(pair[side]), c => c.charCodeAt(0));
    pair[side] = new Float64Array(bytes.buffer);
  }
}
