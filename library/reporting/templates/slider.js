for (const all of document.querySelectorAll(".choices")) {
  const values = all.dataset.values.split(" | ");
  const slider = all.querySelector("input"), told = all.querySelector("output");
  const show = () => {
    told.textContent = values[slider.value];
    slider.setAttribute("aria-valuetext", values[slider.value]);
    for (const strip of all.querySelectorAll(".strip"))
      [...strip.children].forEach((figure, at) => figure.classList.toggle("shown", at == slider.value));
  };
  all.classList.add("one");
  all.querySelector("p").hidden = false;
  slider.addEventListener("input", show);
  show();
}
