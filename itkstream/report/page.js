"use strict";
for (const choices of document.querySelectorAll("[data-sets]")) {
  choices.addEventListener("click", (event) => {
    const chosen = event.target.closest("button");
    if (!chosen) return;
    document.documentElement.dataset[choices.dataset.sets] = chosen.dataset.value;
    for (const button of choices.children) {
      button.setAttribute("aria-pressed", String(button === chosen));
    }
  });
}
for (const button of document.querySelectorAll("[data-shows]")) {
  button.addEventListener("click", () => {
    const shown = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(shown));
    for (const layer of document.querySelectorAll(`.layer[data-round="${button.dataset.shows}"]`)) {
      layer.style.visibility = shown ? "visible" : "hidden";
    }
  });
}
for (const stack of document.querySelectorAll(".stack")) {
  const turn = () => stack.classList.toggle("kept");
  stack.addEventListener("click", turn);
  stack.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    turn();
  });
}
for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    getSelection().selectAllChildren(source);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      button.textContent = "Press Ctrl-C";
    }
  });
}
addEventListener("beforeprint", () => {
  for (const details of document.querySelectorAll("details")) details.open = true;
});
