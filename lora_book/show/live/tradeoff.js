// Learning against forgetting. A point is where training ended: by a method, at a learning rate, with its change scaled
// by λ afterwards. The reader turns all three, or presses a point. `tradeoff` in __init__.py makes the page.
const WIDE_AS = 340;
const HIGH_AS = 240;
const ROOM = { left: 30, right: 10, top: 10, bottom: 34 }; // around the points

class Tradeoff extends Turned {
  toStart() {
    this.turned = [...this.data.start];
  }

  listen() {
    super.listen();
    this.picture.addEventListener("click", event => {
      const point = event.target.closest("[data-at]");
      if (!point) return;
      this.turned = [...point.dataset.at.split(".").map(Number), this.turned[3]];
      this.build();
      this.keep();
    });
  }

  // Of the places where `list` has something, the one nearest to `at`.
  nearest(list, at) {
    const there = range(list.length).filter(i => list[i]);
    return there.reduce((best, i) => (Math.abs(i - at) < Math.abs(best - at) ? i : best));
  }

  build() {
    const { points } = this.data;
    const [method, rate, scale] = this.turned;
    this.turned[1] = this.nearest(points[method], rate); // not every method was run at every rate
    this.turned[2] = this.nearest(points[method][this.turned[1]], scale);
    if (!this.svg) {
      this.svg = drawn("svg", { viewBox: `0 0 ${WIDE_AS} ${HIGH_AS}`, class: "live-curves", role: "img" });
      this.picture.replaceChildren(this.svg);
    }
    this.paint();
  }

  // Where a value lies between the ends of its axis, from 0 to 1.
  share(axis, value) {
    const [low, high, now] = [axis.low, axis.high, value].map(v => (axis.log ? Math.log(v) : v));
    return (now - low) / (high - low);
  }

  place(point) {
    const { across, up } = this.data;
    const against = this.turned[3];
    const x = ROOM.left + this.share(across[against], point[against]) * (WIDE_AS - ROOM.left - ROOM.right);
    const y =
      HIGH_AS - ROOM.bottom - this.share(up, point[across.length]) * (HIGH_AS - ROOM.top - ROOM.bottom);
    return [x, y].map(v => Number(v.toFixed(1)));
  }

  paint() {
    const { points, methods } = this.data;
    const [method, rate, scale] = this.turned;
    const parts = [...this.frame()];
    for (const i of range(points.length)) if (i !== method) parts.push(...this.runs(i, false));
    parts.push(...this.scaled(), ...this.runs(method, true));
    const [cx, cy] = this.place(points[method][rate][scale]);
    parts.push(drawn("circle", { cx, cy, r: 6, style: this.ink(method), class: "live-here" }));
    this.svg.replaceChildren(...parts);
    const said = this.said(this.turned);
    this.svg.ariaLabel = `${methods[method]} among all runs. ${said}`;
    this.tell(said);
  }

  // The chosen method has its colour, and so has full fine-tuning, which all others are compared with.
  look(method, chosen, kind) {
    if (chosen) return { style: this.ink(method, kind) };
    const style = method === this.data.apart ? this.ink(method, kind) : `${kind}: currentcolor`;
    return { style, class: "live-other" };
  }

  // The colour of full fine-tuning, or of LoRA.
  ink(method, kind = "fill") {
    return `${kind}: var(${method === this.data.apart ? "--live-apart, #d55e00" : "--live-on"})`;
  }

  // Axes with their marks, and the base's height.
  *frame() {
    const { across: choices, up, base } = this.data;
    const across = choices[this.turned[3]];
    const word = (text, attributes) => {
      const element = drawn("text", attributes);
      element.textContent = text;
      return element;
    };
    const bottom = HIGH_AS - ROOM.bottom;
    for (const value of up.marks) {
      const y = bottom - this.share(up, value) * (bottom - ROOM.top);
      yield drawn("line", { class: "live-grid", x1: ROOM.left, x2: WIDE_AS - ROOM.right, y1: y, y2: y });
      yield word(value, { x: ROOM.left - 5, y: y + 4, "text-anchor": "end" });
    }
    for (const value of across.marks) {
      const x = ROOM.left + this.share(across, value) * (WIDE_AS - ROOM.left - ROOM.right);
      yield word(value, { x, y: bottom + 15, "text-anchor": "middle" });
    }
    yield word(across.name, { x: WIDE_AS / 2, y: HIGH_AS - 4, "text-anchor": "middle" });
    yield word(`↑ ${up.name}`, { x: ROOM.left + 4, y: ROOM.top + 4 });
    const y = bottom - this.share(up, base.at(-1)) * (bottom - ROOM.top);
    const dashes = { "stroke-dasharray": "6 3" };
    yield drawn("line", {
      class: "live-other",
      x1: ROOM.left,
      x2: WIDE_AS - ROOM.right,
      y1: y,
      y2: y,
      ...dashes,
    });
    yield word("the base", { x: WIDE_AS - ROOM.right, y: y - 4, "text-anchor": "end" });
  }

  // One method, from rate to rate, with all of its change; each point can be pressed.
  *runs(method, chosen) {
    const whole = this.data.scales.length - 1;
    const runs = this.data.points[method];
    const rates = range(runs.length).filter(i => runs[i]);
    const path = rates.map(i => this.place(runs[i][whole]).join(" ")).join("L");
    const look = this.look(method, chosen, "stroke");
    yield drawn("path", { d: `M${path}`, ...look });
    for (const i of rates) yield* this.point([method, i, whole], chosen);
  }

  // The way from the chosen run towards the base: the same weights with less and less of the change.
  *scaled() {
    const [method, rate] = this.turned;
    const scales = this.data.points[method][rate];
    const found = range(scales.length).filter(i => scales[i]);
    const path = found.map(i => this.place(scales[i]).join(" "));
    yield drawn("path", {
      d: `M${path.join("L")}`,
      "stroke-dasharray": "3 3",
      style: this.ink(method, "stroke"),
    });
    for (const i of found) yield* this.point([method, rate, i], true);
  }

  *point([method, rate, scale], chosen) {
    const [cx, cy] = this.place(this.data.points[method][rate][scale]);
    const look = this.look(method, chosen, "fill");
    yield drawn("circle", { cx, cy, r: 3, ...look });
    const hand = { style: "fill: transparent; cursor: pointer" };
    yield drawn("circle", { cx, cy, r: 10, "data-at": [method, rate, scale].join("."), ...hand });
  }

  said([method, rate, scale]) {
    const { methods, rates, scales, points, across, up, base } = this.data;
    const point = points[method][rate][scale];
    const values = [...across, up].map(
      ({ name }, i) => `${name} ${number(point[i])} (base ${number(base[i])})`,
    );
    const times = scale === scales.length - 1 ? "" : `, its change × ${scales[scale]}`;
    return `${methods[method]} at ${rates[rate]}${times}: ${values.join(", ")}; ${point.at(-1)} seeds`;
  }

  // As high as the longest sentence is at this width, rounded up, so that nothing below the line moves.
  roomFor(line) {
    if (this.measured?.width !== this.width) {
      const now = line.textContent;
      line.textContent = this.longest();
      this.measured = { width: this.width, height: line.scrollHeight + 1 };
      line.textContent = now;
    }
    return this.measured.height;
  }

  longest() {
    const { points } = this.data;
    const all = points.flatMap((rates, i) =>
      rates.flatMap((scales, j) => (scales ?? []).flatMap((run, k) => (run ? this.said([i, j, k]) : []))),
    );
    return all.reduce((a, b) => (b.length > a.length ? b : a));
  }

  // The places of the four controls: "1.3.4.0".
  state() {
    return this.turned.join(".");
  }

  restore(word) {
    if (!/^\d{1,2}(\.\d{1,2}){3}$/.test(word)) return;
    const at = word.split(".").map(Number);
    const sizes = this.labels.map(labels => labels.length);
    if (at.every((n, i) => n < sizes[i]) && this.data.points[at[0]][at[1]]?.[at[2]]) this.turned = at;
  }
}

enliven("live-tradeoff", Tradeoff);
