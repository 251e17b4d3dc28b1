// A matrix as an action: the reader drags the arrow x around the circle, and sees where the matrix sends it.
// `action` in __init__.py makes the page.
const SIZE = 100; // a drawing reaches from -SIZE to SIZE in both directions
const UNIT = 50; // one, in the drawing's own unit

const place = ([x, y]) => [x * UNIT, -y * UNIT].map(v => Number(v.toFixed(1)));
const scaled = (by, v) => v.map(x => by * x);
const sum = (v, w) => v.map((x, i) => x + w[i]);
const dot = (v, w) => v[0] * w[0] + v[1] * w[1];
const toward = degrees => {
  const angle = (degrees * Math.PI) / 180;
  return [Math.cos(angle), Math.sin(angle)];
};

class Ellipse extends Turned {
  toStart() {
    this.angle = this.data.start[0];
    this.turned = [this.data.start[1]];
  }

  // Both pairs of arrows, each at a right angle.
  get axes() {
    const pair = degrees => [toward(degrees), toward(degrees + 90)];
    return { u: pair(this.data.u), v: pair(this.data.v) };
  }

  get strengths() {
    return [this.data.strongest, this.data.weaker[this.turned[0]]];
  }

  // x·M, with M = σ₁·u₁ᵀv₁ + σ₂·u₂ᵀv₂.
  send(x) {
    const { u, v } = this.axes;
    const [first, second] = this.strengths.map((size, i) => scaled(size * dot(u[i], x), v[i]));
    return sum(first, second);
  }

  build() {
    if (!this.handle) this.draw();
    this.paint();
  }

  draw() {
    const panel = name => {
      const svg = drawn("svg", { viewBox: `${-SIZE} ${-SIZE} ${2 * SIZE} ${2 * SIZE}`, class: "live-panel" });
      return [made("div", { class: "live-half" }, made("p", { class: "live-title" }, name), svg), svg];
    };
    const [left, before] = panel("in: x (drag its arrow)");
    const [right, after] = panel("out: x·M");
    this.before = before;
    this.after = after;
    after.ariaHidden = "true";
    this.handle = drawn("g", {
      role: "slider",
      tabindex: 0,
      class: "live-handle",
      "aria-label": "angle of x",
      "aria-valuemin": 0,
      "aria-valuemax": 359,
    });
    this.handle.addEventListener("keydown", event => this.press(event));
    before.addEventListener("pointerdown", event => {
      before.setPointerCapture(event.pointerId);
      this.handle.focus({ preventScroll: true });
      this.drag(event);
      event.preventDefault();
    });
    before.addEventListener(
      "pointermove",
      event => before.hasPointerCapture(event.pointerId) && this.drag(event),
    );
    this.picture.replaceChildren(made("div", { class: "live-halves" }, left, right));
  }

  // The arrow follows the pointer, in whole degrees.
  drag(event) {
    const { left, top, width, height } = this.before.getBoundingClientRect();
    const [x, y] = [event.clientX - left - width / 2, top + height / 2 - event.clientY];
    this.to((Math.atan2(y, x) * 180) / Math.PI);
  }

  press(event) {
    const step = { ArrowLeft: 5, ArrowUp: 5, ArrowRight: -5, ArrowDown: -5, PageUp: 45, PageDown: -45 }[
      event.key
    ];
    if (!step) return;
    event.preventDefault();
    this.to(this.angle + step);
  }

  to(angle) {
    this.angle = (Math.round(angle) + 360) % 360;
    this.paint();
    this.keep();
  }

  arrow(v, kind, name) {
    const length = Math.hypot(...v);
    const [x, y] = place(v);
    const parts = [drawn("line", { x1: 0, y1: 0, x2: x, y2: y })];
    if (length > 0.02) {
      const turn = (Math.atan2(y, x) * 180) / Math.PI;
      parts.push(drawn("path", { d: "M0 0-11-4.5v9z", transform: `translate(${x} ${y}) rotate(${turn})` }));
    }
    const beyond = kind === "live-x" && name === "x" ? 0.45 : 0.27; // its handle lies at the tip of x
    const [tx, ty] = place(scaled(1 + beyond / Math.max(length, 0.12), v));
    const label = drawn("text", { x: tx, y: ty + 4 });
    label.textContent = name;
    return drawn("g", { class: kind }, ...parts, label);
  }

  paint() {
    const { u, v } = this.axes;
    const x = toward(this.angle);
    const out = this.send(x);
    const parts = this.strengths.map((size, i) => size * dot(u[i], x));
    const ring = send => {
      const points = range(73).map(i => place(send(toward(5 * i))).join(" "));
      return drawn("path", { class: "live-ring", d: `M${points.join("L")}z` });
    };
    this.handle.replaceChildren(this.arrow(x, "live-x", "x"), drawn("circle", this.grip(x)));
    this.handle.setAttribute("aria-valuenow", this.angle);
    this.handle.setAttribute("aria-valuetext", `${this.angle} degrees`);
    this.before.replaceChildren(
      ring(w => w),
      this.arrow(u[0], "live-first", "u₁"),
      this.arrow(u[1], "live-second", "u₂"),
      this.handle,
    );
    const [[x1, y1], [x2, y2]] = [place(scaled(parts[0], v[0])), place(out)];
    this.after.replaceChildren(
      ring(w => this.send(w)),
      this.arrow(scaled(this.strengths[0], v[0]), "live-first", "σ₁v₁"),
      this.arrow(scaled(this.strengths[1], v[1]), "live-second", "σ₂v₂"),
      drawn("line", { class: "live-dots", x1, y1, x2, y2 }),
      this.arrow(out, "live-x", "x·M"),
    );
    const digits = n =>
      number(n)
        .replace(/^(−?\d)$/, "$1.00")
        .replace(/^(−?\d\.\d)$/, "$10");
    this.tell(
      `in x: ${digits(dot(u[0], x))} of u₁ and ${digits(dot(u[1], x))} of u₂; out come ${digits(parts[0])} along v₁ ` +
        `and ${digits(parts[1])} along v₂; the matrix has rank ${this.strengths.filter(size => size > 0).length}`,
    );
  }

  // Where the arrow can be held.
  grip(x) {
    const [cx, cy] = place(x);
    return { class: "live-grip", cx, cy, r: 12 };
  }

  // The angle and the place of σ₂: "45.4".
  state() {
    return `${this.angle}.${this.turned[0]}`;
  }

  restore(word) {
    if (!/^\d{1,3}\.\d{1,2}$/.test(word)) return;
    const [angle, weaker] = word.split(".").map(Number);
    if (angle >= 360 || weaker >= this.data.weaker.length) return;
    this.angle = angle;
    this.turned = [weaker];
  }
}

enliven("live-ellipse", Ellipse);
