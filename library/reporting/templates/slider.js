// A slider in place of strips: it shows the image of one value in each row.
for (const all of document.querySelectorAll(".slider")) {
  const values = all.dataset.values.split(" | ");
  const input = all.querySelector("input"), output = all.querySelector("output");
  const show = () => {
    output.textContent = values[input.value];
    input.setAttribute("aria-valuetext", values[input.value]);
    for (const strip of all.querySelectorAll(".strip"))
      [...strip.children].forEach((figure, at) => figure.classList.toggle("current", at == input.value));
  };
  all.classList.add("one");
  all.querySelector("p").hidden = false;
  input.addEventListener("input", show);
  show();
}
