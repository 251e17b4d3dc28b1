// The engine of everything that a reader turns: controls, the way back to the start, the state in the address, and a
// link to it. It is put into a page together with the script of one kind of picture, inside braces, so that its names
// meet no others.

const number = (x, digits = 2) => `${Number(x.toFixed(digits)) || 0}`.replace("-", "−");
const range = n => Array.from({ length: n }, (_, i) => i);

// An element with attributes and children.
function made(kind, attributes, ...children) {
  const element = document.createElement(kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// The same for what is drawn.
function drawn(kind, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", kind);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// A kind of picture has `toStart()`, `build()` to draw everything, `state()` in one word, and `restore(word)`, which
// takes such a word and ignores any other. `turned` holds the place of each control's value.
class Turned {
  constructor(figure) {
    this.figure = figure;
    this.data = JSON.parse(figure.querySelector(".knob-data").textContent);
    this.picture = figure.querySelector(".knob-frames");
    this.line = figure.querySelector(".knob-line");
    this.still = figure.querySelector(".knob-still");
    this.still.insertAdjacentHTML("beforebegin", this.data.controls);
    this.controls = [...figure.querySelectorAll(".knob-axis")];
    this.labels = this.controls.map(axis => JSON.parse(axis.dataset.labels));
    this.controls.forEach((axis, n) => {
      const said = axis.querySelector("output"); // has room for its longest value
      if (said) said.style.minWidth = `${Math.max(...this.labels[n].map(label => label.length))}ch`;
    });
    // A notebook that can be run; one that was exported to HTML has outputs alone.
    this.notebook = figure.closest(".jp-NotebookPanel") && figure.closest(".jp-OutputArea");
    this.still.hidden = !(this.notebook && this.data.any);
    if (!this.still.hidden) this.still.textContent = this.data.any;
    this.inBook = figure.closest(".bd-article") && location.protocol.startsWith("http");
    this.reset = this.button("knob-reset", "Back to the start", () => this.backToStart());
    if (this.inBook)
      this.link = this.button("knob-link", "Copy a link to this setting", () => this.copyLink());
    this.toStart();
    this.start = this.state();
    if (this.inBook) this.restore(this.word());
    this.listen();
    this.build();
  }

  button(kind, words, act) {
    const button = made("button", { type: "button", class: kind }, words);
    button.addEventListener("click", act);
    this.line.append(button);
    return button;
  }

  listen() {
    this.figure.addEventListener("input", event => {
      const axis = this.controls.indexOf(event.target.closest(".knob-axis"));
      if (axis < 0) return;
      this.turned[axis] = Number(event.target.value);
      this.build();
      this.keep();
    });
    this.figure.addEventListener("keydown", event => {
      if (event.key.startsWith("Arrow")) event.stopPropagation(); // JupyterLab would take them for itself
    });
    const line = this.line.querySelector("p");
    new ResizeObserver(() => line.clientWidth !== this.width && this.keepRoom(line)).observe(line);
    addEventListener("pagehide", () => this.waiting && this.writeAddress());
  }

  backToStart() {
    this.toStart();
    this.build();
    this.keep();
    this.figure
      .querySelector('.knob-axis input:is([type=range], :checked), .knob-frames [tabindex="0"]')
      .focus();
  }

  // Show in the controls what was turned, and say `text` in the line below them.
  tell(text) {
    this.controls.forEach((axis, n) => {
      const slider = axis.querySelector("[type=range]");
      if (!slider) {
        axis.querySelectorAll("[type=radio]")[this.turned[n]].checked = true;
        return;
      }
      const label = this.labels[n][this.turned[n]];
      slider.value = this.turned[n];
      slider.style.setProperty("--at", slider.value / slider.max);
      slider.setAttribute("aria-valuetext", label);
      axis.querySelector("output").value = label;
    });
    const line = this.line.querySelector("p");
    if (line.textContent !== text) line.textContent = text; // the same words are not announced twice
    this.keepRoom(line);
    this.reset.disabled = this.state() === this.start;
    if (this.link) this.link.disabled = this.reset.disabled;
  }

  // The read-out keeps the height that it once had, so that nothing below it moves; a new width is a new beginning.
  keepRoom(line) {
    const width = line.clientWidth;
    if (width !== this.width) line.style.minHeight = "";
    this.width = width;
    line.style.minHeight = `${Math.max(line.offsetHeight, this.roomFor?.(line) ?? 0)}px`;
  }

  // What the address says of this picture.
  word() {
    return new URLSearchParams(location.search).get(this.figure.id) ?? "";
  }

  // The address of this page with the picture as it is now.
  address() {
    const url = new URL(location);
    if (this.state() === this.start) url.searchParams.delete(this.figure.id);
    else url.searchParams.set(this.figure.id, this.state());
    url.hash = this.figure.id;
    return url;
  }

  // In the book, the address keeps the state: soon, or at once when the reader leaves.
  keep() {
    clearTimeout(this.waiting);
    if (this.inBook) this.waiting = setTimeout(() => this.writeAddress(), 300);
  }

  writeAddress() {
    clearTimeout(this.waiting);
    this.waiting = 0;
    history.replaceState(history.state, "", this.address());
  }

  async copyLink() {
    this.writeAddress();
    try {
      await navigator.clipboard.writeText(location.href);
      this.link.textContent = "Copied";
    } catch {
      this.link.textContent = "Copy it from the address bar";
    }
    setTimeout(() => {
      this.link.textContent = "Copy a link to this setting";
    }, 2000);
  }
}

// Bring the pictures of one kind to life, each once. A page that brings this script once for many pictures calls
// `bookAlive` for the others.
function enliven(kind, Kind) {
  window.bookAlive ??= {};
  window.bookAlive[kind] = () => {
    for (const figure of document.querySelectorAll(`.${kind}:not(.knob-alive)`)) {
      figure.classList.add("knob-alive");
      new Kind(figure);
    }
  };
  window.bookAlive[kind]();
}
