// The values under the pointer, which the drawing tells by <title>, also below it: a finger has no pointer to rest.
document.documentElement.classList.add("scripted");
for (const chart of document.querySelectorAll(".chart")) {
  const output = chart.querySelector("output");
  const show = event => {
    const hit = event.target.closest(".hit");
    if (output && hit) output.textContent = hit.querySelector("title").textContent;
  };
  chart.addEventListener("pointerdown", show);
  chart.addEventListener("pointermove", show);
}
