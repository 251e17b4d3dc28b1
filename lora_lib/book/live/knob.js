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
    this.frames = this.data.bodies.map((body, i) => {
      if (i === this.at(this.data.start)) return first;
      const frame = made("div", { class: "knob-away" });
      if (body.startsWith("<pre")) frame.innerHTML = body; // a text takes its room before it is shown
      this.picture.append(frame);
      return frame;
    });
    if (first.querySelector("pre")) this.picture.ariaLive = "polite";
    if (this.notebook) new MutationObserver(() => this.nameWidgets()).observe(this.notebook, WATCHED);
    new ResizeObserver(() => this.build()).observe(this.picture);
  }

  build() {
    const at = this.at(this.turned);
    this.frames[at].innerHTML ||= this.data.bodies[at];
    this.frames.forEach((frame, i) => {
      frame.classList.toggle("knob-away", i !== at);
      frame.ariaHidden = i === at ? null : "true";
    });
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

const WATCHED = { childList: true, subtree: true, attributes: true, attributeFilter: ["class"] };

enliven("knob-drawn", Knob);
