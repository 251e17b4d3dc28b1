// A knob: pictures or texts that were drawn in advance, one of them shown. `knob` in knobs.py makes the page.
const WIDE = { tabindex: 0, role: "group", "aria-label": "picture, wider than the screen" };

class Knob extends Turned {
  toStart() {
    this.turned = [...this.data.start];
  }

  // The number of the frame for these values.
  at(turned) {
    return turned.reduce((at, i, n) => at * this.labels[n].length + i, 0);
  }

  listen() {
    super.listen();
    const first = this.picture.firstElementChild;
    this.frames = [];
    this.frames[this.at(this.data.start)] = first;
    if (first.querySelector("pre")) {
      this.picture.ariaLive = "polite";
      for (const i of this.data.bodies.keys()) this.frame(i); // texts take their room before they are shown
    }
    if (this.data.later) this.fetchWhenNear();
    if (this.notebook) {
      new MutationObserver(() => this.nameWidgets()).observe(this.notebook, WATCHED);
      this.takeOverFromKernel();
    }
    new ResizeObserver(() => this.build()).observe(this.picture);
  }

  // The place of frame number `at`, made when it is first asked for.
  frame(at) {
    if (!this.frames[at]) {
      this.frames[at] = made("div", { class: "knob-away", "aria-hidden": "true" });
      this.frames[at].innerHTML = this.data.bodies[at];
      this.picture.append(this.frames[at]);
    }
    return this.frames[at];
  }

  // The height of the longest read-out.
  roomFor(line) {
    if (this.measured?.width !== this.width) {
      const longest = this.data.readouts.reduce((a, b) => (b.length > a.length ? b : a), "");
      const ghost = made("p", { "aria-hidden": "true" }, longest);
      ghost.style = `position: absolute; visibility: hidden; width: ${this.width}px; min-height: 0`;
      line.after(ghost);
      this.measured = { width: this.width, height: ghost.offsetHeight };
      ghost.remove();
    }
    return this.measured.height;
  }

  // In a page of the book the frames lie in a file of their own (see drawings.py there). It is fetched when the reader
  // has come near, or touches the knob.
  fetchWhenNear() {
    const { later } = this.data;
    this.data.later = null;
    const ask = () => {
      near.disconnect();
      for (const kind of TOUCHES) this.figure.removeEventListener(kind, ask);
      const root = document.documentElement.dataset.content_root;
      const file = made("script", { src: `${root}_static/frames/${this.figure.id}.js?v=${later}` });
      file.addEventListener("load", () => {
        this.data.bodies = window.bookFrames[this.figure.id];
        this.build();
      });
      document.head.append(file);
    };
    const near = new IntersectionObserver(seen => seen.some(entry => entry.isIntersecting) && ask());
    for (const kind of TOUCHES) this.figure.addEventListener(kind, ask);
    if (this.state() !== this.start) ask();
    else if (document.readyState === "complete") near.observe(this.picture);
    else addEventListener("load", () => setTimeout(() => near.observe(this.picture), 1000));
  }

  build() {
    const at = this.at(this.turned);
    if (this.frames[at] || this.data.bodies.length) {
      const shown = this.frame(at);
      for (const frame of this.frames) {
        frame?.classList.toggle("knob-away", frame !== shown);
        if (frame) frame.ariaHidden = frame === shown ? null : "true";
      }
    }
    this.tell(this.data.readouts[at]);
    const wide = this.picture.scrollWidth > this.picture.clientWidth;
    for (const [key, value] of Object.entries(WIDE)) {
      if (wide) this.picture.setAttribute(key, value);
      else this.picture.removeAttribute(key);
    }
  }

  // The labels, axis by axis: "64~all-linear".
  state() {
    return this.turned.map((i, n) => this.labels[n][i]).join("~");
  }

  restore(word) {
    const turned = word.split("~").map((label, n) => (this.labels[n] ?? []).indexOf(label));
    if (turned.length === this.labels.length && !turned.includes(-1)) this.turned = turned;
  }

  // ipywidgets do not notice when a kernel is shut down; JupyterLab shows it in the notebook's bar. The widget is then
  // marked, so that the drawn frames stand in for it.
  takeOverFromKernel() {
    const state = this.notebook.closest(".jp-NotebookPanel").querySelector(".jp-Notebook-ExecutionIndicator");
    if (!state) return;
    const look = () => {
      if (!["unknown", "dead"].includes(state.dataset.status)) return;
      for (const live of this.notebook.querySelectorAll(`.live-${this.figure.id}`))
        live.classList.add("knob-gone");
    };
    new MutationObserver(look).observe(state, { attributes: true, attributeFilter: ["data-status"] });
  }

  // In a notebook with a kernel ipywidgets stand in for the knob: their sliders and rows of buttons have no name, and
  // their texts are not announced.
  nameWidgets() {
    for (const widget of this.notebook.querySelectorAll(`.live-${this.figure.id} .widget-inline-hbox`)) {
      const name = widget.querySelector("label")?.textContent;
      const handle = widget.querySelector("[role=slider]");
      if (handle && !handle.ariaLabel) handle.ariaLabel = name;
      const buttons = widget.querySelectorAll(".widget-toggle-button");
      if (buttons.length && widget.role !== "group")
        Object.assign(widget, { role: "group", ariaLabel: name });
      for (const button of buttons) {
        const pressed = String(button.classList.contains("mod-active"));
        if (button.ariaPressed !== pressed) button.ariaPressed = pressed;
      }
    }
    for (const said of this.notebook.querySelectorAll(`.live-${this.figure.id} .knob-said`)) {
      if (!said.ariaLive) said.ariaLive = "polite";
    }
  }
}

const TOUCHES = ["pointerover", "pointerdown", "focusin"];
const WATCHED = { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] };

enliven("knob-drawn", Knob);
