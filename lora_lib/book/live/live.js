// What every live picture has: its controls, the way back to the start, and its state in the address.
// The scripts of this folder are put into a page together, inside braces, so that their names stay their own.

const number = (x, digits = 2) => `${Number(x.toFixed(digits)) || 0}`.replace("-", "−");
const range = n => Array.from({ length: n }, (_, i) => i);

// An element with attributes and children.
function made(kind, attributes, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A kind of picture has `toStart()`, `build()` to draw all anew, `state()` in one word, and `restore(word)`, which
// takes such a word or, where it is none, changes nothing.
class Picture {
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.querySelector(".knob-data").textContent);
    this.picture = figure.querySelector(".live-picture");
    this.line = figure.querySelector(".knob-line");
    figure.querySelector(".knob-still").remove();
    this.line.insertAdjacentHTML("beforebegin", this.data.controls);
    this.reset = made("button", { type: "button", class: "knob-reset" }, "Back to the start");
    this.line.append(this.reset);
    this.controls = [...figure.querySelectorAll(".knob-axis")];
    this.toStart();
    this.start = this.state();
    this.inBook = figure.closest(".bd-article") && location.protocol.startsWith("http");
    if (this.inBook) this.restore(new URLSearchParams(location.search).get(figure.id) ?? "");
    this.listen();
    this.build();
  }

  listen() {
    this.figure.addEventListener("input", event => {
      const axis = this.controls.indexOf(event.target.closest(".knob-axis"));
      if (axis < 0) return;
      this.turned[axis] = Number(event.target.value);
      this.build();
      this.keep();
    });
    this.reset.addEventListener("click", () => {
      this.toStart();
      this.build();
      this.keep();
      this.figure.querySelector(".knob-axis input:is([type=range], :checked)").focus();
    });
    this.figure.addEventListener("keydown", event => {
      if (event.key.startsWith("Arrow")) event.stopPropagation(); // JupyterLab would take them for itself
    });
  }

  // Show what was turned in the controls, and say `text` in the line below them.
  tell(text) {
    this.controls.forEach((axis, n) => {
      const slider = axis.querySelector("[type=range]");
      if (!slider) {
        axis.querySelectorAll("[type=radio]")[this.turned[n]].checked = true;
        return;
      }
      const label = JSON.parse(axis.dataset.labels)[this.turned[n]];
      slider.value = this.turned[n];
      slider.style.setProperty("--at", slider.value / slider.max);
      slider.setAttribute("aria-valuetext", label);
      axis.querySelector("output").value = label;
    });
    const line = this.line.querySelector("p");
    if (line.textContent !== text) line.textContent = text; // what is said once is not said again
    this.reset.disabled = this.state() === this.start;
  }

  // In the book, the address keeps the state, so that a link leads to it.
  keep() {
    clearTimeout(this.waiting);
    if (!this.inBook) return;
    this.waiting = setTimeout(() => {
      const url = new URL(location);
      if (this.reset.disabled) url.searchParams.delete(this.figure.id);
      else url.searchParams.set(this.figure.id, this.state());
      url.hash = this.figure.id;
      history.replaceState(history.state, "", url);
    }, 300);
  }
}

// Bring the pictures of one kind to life, each once.
function enliven(kind, Kind) {
  for (const figure of document.querySelectorAll(`.${kind}:not(.knob-alive)`)) {
    figure.classList.add("knob-alive");
    new Kind(figure);
  }
}
