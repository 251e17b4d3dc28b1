// A map of runs: a square for each pair of settings, coloured by what came out. The reader presses one and sees how its
// run went, beside the others of its row. `run_map` in __init__.py makes the page.
const WIDE_AS = 340;
const HIGH_AS = 210;
const ROOM = { left: 34, right: 8, top: 10, bottom: 34 }; // around the curves

class RunMap extends Turned {
  toStart() {
    this.at = [...this.data.start];
    this.turned = [];
  }

  get chosen() {
    return this.data.cells[this.at[0]][this.at[1]];
  }

  listen() {
    super.listen();
    this.picture.addEventListener("click", event => {
      const square = event.target.closest("button");
      if (square) this.choose([Number(square.dataset.i), Number(square.dataset.j)]);
    });
    this.picture.addEventListener("keydown", event => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step || !event.target.closest("button")) return;
      event.preventDefault();
      this.walk(step);
    });
  }

  // To the next square in this direction; squares without a run are passed over.
  walk([down, right]) {
    let [i, j] = this.at;
    do {
      i += down;
      j += right;
    } while (this.data.cells[i] && j >= 0 && j < this.data.columns.length && !this.data.cells[i][j]);
    if (!this.data.cells[i]?.[j]) return;
    this.choose([i, j]);
    this.square(i, j).focus();
  }

  choose(at) {
    this.at = at;
    this.build();
    this.keep();
  }

  square(i, j) {
    return this.picture.querySelector(`[data-i="${i}"][data-j="${j}"]`);
  }

  build() {
    if (!this.curves) this.draw();
    this.paint();
  }

  draw() {
    const { rows, columns, cells, names, least, most, apart } = this.data;
    const values = cells.map(row => row.map(cell => cell?.value));
    const head = [names[0], ...columns].map(name => made("th", { scope: "col" }, name));
    const square = (cell, i, j) => {
      if (!cell) return made("td", {});
      const best = values[i].every(value => value === undefined || value >= cell.value);
      const label = `${rows[i]}, ${names[1]} ${columns[j]}: ${cell.value.toFixed(2)}${best ? ", the best of its row" : ""}`;
      const button = made("button", { type: "button", "data-i": i, "data-j": j, "aria-label": label });
      button.textContent = cell.value.toFixed(2);
      const depth = (most - Math.min(most, cell.value)) / (most - least);
      button.style.setProperty("--depth", `${Math.round(8 + 42 * Math.max(0, depth))}%`);
      if (best) button.className = "live-best";
      return made("td", {}, button);
    };
    const line = (row, i) =>
      made(
        "tr",
        { class: i === apart ? "live-apart" : "" },
        made("th", { scope: "row" }, rows[i]),
        ...row.map((cell, j) => square(cell, i, j)),
      );
    const table = made(
      "table",
      { class: "live-map-table" },
      made("caption", {}, `${names[2]}, by ${names[0]} (rows) and ${names[1]} (columns)`),
      made("thead", {}, made("tr", {}, ...head)),
      made("tbody", {}, ...cells.map(line)),
    );
    this.curves = drawn("svg", { viewBox: `0 0 ${WIDE_AS} ${HIGH_AS}`, class: "live-curves", role: "img" });
    this.picture.replaceChildren(table, this.curves);
  }

  // The curves of the chosen row, on axes that never change.
  paint() {
    const { rows, columns, cells, apart, axis, steps, names } = this.data;
    const [row, column] = this.at;
    const last = Math.max(...cells.flat().map(cell => (cell ? cell.curve.length : 0)));
    const x = n => ROOM.left + (n / (last - 1)) * (WIDE_AS - ROOM.left - ROOM.right);
    const y = value => {
      const share = (value - axis[0]) / (axis[1] - axis[0]);
      return HIGH_AS - ROOM.bottom - Math.min(1, Math.max(0, share)) * (HIGH_AS - ROOM.top - ROOM.bottom);
    };
    const word = (text, attributes) => {
      const element = drawn("text", attributes);
      element.textContent = text;
      return element;
    };
    const parts = [];
    for (const value of axis.slice(2)) {
      parts.push(
        drawn("line", {
          class: "live-grid",
          x1: ROOM.left,
          x2: WIDE_AS - ROOM.right,
          y1: y(value),
          y2: y(value),
        }),
      );
      parts.push(word(value, { x: ROOM.left - 5, y: y(value) + 4, "text-anchor": "end" }));
    }
    for (const n of [0, Math.round((last - 1) / 2), last - 1])
      parts.push(
        word(steps[0] + n * steps[1], { x: x(n), y: HIGH_AS - 19, "text-anchor": n ? "end" : "start" }),
      );
    parts.push(word(`${names[3]} by step`, { x: WIDE_AS / 2, y: HIGH_AS - 4, "text-anchor": "middle" }));
    const path = (cell, kind) =>
      parts.push(
        drawn("path", {
          class: kind,
          d: `M${cell.curve.map((v, n) => `${x(n).toFixed(1)} ${y(v).toFixed(1)}`).join("L")}`,
        }),
      );
    for (const [j, cell] of cells[row].entries()) if (cell && j !== column) path(cell, "live-other");
    path(this.chosen, row === apart ? "live-chosen-line live-apart" : "live-chosen-line");
    this.curves.replaceChildren(...parts);
    this.curves.ariaLabel = `${names[3]} of ${rows[row]} at ${names[1]} ${columns[column]}, step by step, falls from ${number(this.chosen.curve[0])} to ${number(this.chosen.curve.at(-1))}`;
    for (const button of this.picture.querySelectorAll("button")) {
      const here = Number(button.dataset.i) === row && Number(button.dataset.j) === column;
      button.tabIndex = here ? 0 : -1;
      button.ariaPressed = String(here);
    }
    this.tell(this.chosen.said);
  }

  // The labels: "rank 8~0.001".
  state() {
    return `${this.data.rows[this.at[0]]}~${this.data.columns[this.at[1]]}`;
  }

  restore(word) {
    const [row, column] = word.split("~");
    const at = [this.data.rows.indexOf(row), this.data.columns.indexOf(column)];
    if (this.data.cells[at[0]]?.[at[1]]) this.at = at;
  }
}

enliven("live-map", RunMap);
