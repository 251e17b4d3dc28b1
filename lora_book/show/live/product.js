// The product A·B and what becomes of W, in cells that the reader changes. `product` in __init__.py makes the page.
const LEAST = -3;
const MOST = 3;

const factor = x => (x < 0 ? `(${number(x)})` : number(x));

// How many rows of M do not follow from the others: Gauss's elimination.
function rankOf(M) {
  const rows = M.map(row => [...row]);
  let rank = 0;
  for (let j = 0; j < rows[0].length && rank < rows.length; j++) {
    const pivot = rows.findIndex((row, i) => i >= rank && Math.abs(row[j]) > 1e-9);
    if (pivot < 0) continue;
    [rows[rank], rows[pivot]] = [rows[pivot], rows[rank]];
    for (let i = rank + 1; i < rows.length; i++) {
      const times = rows[i][j] / rows[rank][j];
      rows[i] = rows[i].map((x, n) => x - times * rows[rank][n]);
    }
    rank++;
  }
  return rank;
}

class Product extends Turned {
  toStart() {
    this.sizes = [this.data.A.length, this.data.W[0].length];
    this.said ??= made("p", { class: "live-said", "aria-live": "polite" });
    this.turned = [...this.data.start];
    this.A = this.data.A.map(row => [...row]);
    this.B = this.data.B.map(row => [...row]);
    this.at = [Math.min(1, this.sizes[0] - 1), Math.min(2, this.sizes[1] - 1)]; // row and column, from 0
    this.marked = "sum"; // what lights up: one sum, or all that an entry of A or B is part of
    this.last = "";
  }

  get r() {
    return this.turned[0] + 1;
  }

  get s() {
    return this.data.alphas[this.turned[1]] / this.r;
  }

  // A·B, or one of its sheets: a column of A times a row of B.
  times(from = 0, to = this.r) {
    const sum = (i, j) =>
      range(to - from).reduce((all, n) => all + this.A[i][from + n] * this.B[from + n][j], 0);
    return range(this.sizes[0]).map(i => range(this.sizes[1]).map(j => sum(i, j)));
  }

  listen() {
    super.listen();
    this.picture.addEventListener("click", event => this.touch(event.target.closest("[data-of]"), 1));
    for (const kind of ["pointerover", "focusin"]) {
      this.picture.addEventListener(kind, event => this.look(event.target.closest("[data-of]")));
    }
    this.picture.addEventListener("keydown", event => this.press(event));
  }

  // The cell under the finger, the mouse or the focus.
  look(cell) {
    if (!cell) return;
    const { of, i, j } = cell.dataset;
    this.marked = of === "A" || of === "B" ? of : "sum";
    this.at = [Number(i), Number(j)];
    this.last = "";
    this.paint();
  }

  // An entry of A or B goes up or down; beyond the last comes the first.
  touch(cell, step) {
    if (!cell) return;
    this.look(cell);
    const { of } = cell.dataset;
    if (this.marked === "sum") return;
    const [i, j] = this.at;
    const row = this[of][i];
    row[j] = row[j] + step > MOST ? LEAST : row[j] + step < LEAST ? MOST : row[j] + step;
    this.last = of === "A" ? `All of row ${i + 1} of A·B` : `All of column ${j + 1} of A·B`;
    this.paint();
    this.keep();
  }

  press(event) {
    const cell = event.target.closest("[data-of]");
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!cell || !step) return;
    event.preventDefault();
    const { of, i, j } = cell.dataset;
    if (of !== "AB" && step[0]) {
      this.touch(cell, -step[0]);
      return;
    }
    const cells = [...this.picture.querySelectorAll(`[data-of=${of}]`)];
    const place = [Number(i) + step[0], Number(j) + step[1]].join();
    const to = cells.find(other => [other.dataset.i, other.dataset.j].join() === place);
    const next = to ?? (of === "AB" ? cell : (cells[cells.indexOf(cell) + step[1]] ?? cell));
    for (const other of cells) other.tabIndex = other === next ? 0 : -1;
    next.focus();
  }

  // A matrix as a table. Entries of A and B are spin buttons, those of A·B buttons, all others plain numbers.
  table(of, caption, rows, columns) {
    const cell = (i, j) => {
      const td = made("td", { "data-cell": of, "data-i": i, "data-j": j });
      if (of === "A" || of === "B") {
        const spin = { role: "spinbutton", "aria-valuemin": LEAST, "aria-valuemax": MOST };
        td.append(made("span", { ...spin, "aria-label": `${of}, row ${i + 1}, column ${j + 1}` }));
      } else if (of === "AB") {
        td.append(made("button", { type: "button" }));
      } else {
        return td;
      }
      Object.assign(td.firstChild.dataset, { of, i, j });
      td.firstChild.tabIndex = i + j ? -1 : 0;
      return td;
    };
    const body = range(rows).map(i => made("tr", {}, ...range(columns).map(j => cell(i, j))));
    return made(
      "table",
      { class: `live-${of.replace(/\d/, "")}` },
      made("caption", {}, caption),
      made("tbody", {}, ...body),
    );
  }

  // All tables anew, for another rank.
  build() {
    const [d, k] = this.sizes;
    this.marked = "sum";
    const sheet = n => this.table(`sheet${n}`, `column ${n + 1} · row ${n + 1}`, d, k);
    const cross = made(
      "div",
      { class: "live-cross" },
      this.table("A", `A (${d} × ${this.r})`, d, this.r),
      this.table("B", `B (${this.r} × ${k})`, this.r, k),
      this.table("AB", `A·B (${d} × ${k})`, d, k),
      this.said,
    );
    const part = (sign, table) => made("span", { class: "live-part" }, sign, table);
    const sheets = range(this.r).map(n => part(n ? "+" : "A·B =", sheet(n)));
    const weights = [
      part("", this.table("W", "W, frozen", d, k)),
      part("+ s ·", this.table("AB2", "A·B", d, k)),
      part("=", this.table("new", "W', the new weight", d, k)),
    ];
    this.picture.replaceChildren(
      cross,
      made("div", { class: "live-row" }, ...sheets),
      made("div", { class: "live-row" }, ...weights),
    );
    this.paint();
  }

  // Numbers, colours and what lights up.
  paint() {
    const AB = this.times();
    const W = this.data.W;
    const all = {
      A: this.A,
      B: this.B,
      AB,
      AB2: AB,
      W,
      new: W.map((row, i) => row.map((w, j) => w + this.s * AB[i][j])),
    };
    for (const n of range(this.r)) all[`sheet${n}`] = this.times(n, n + 1);
    for (const cell of this.picture.querySelectorAll("td")) {
      const { cell: of, i, j } = cell.dataset;
      const value = all[of][i][j];
      const inner = cell.firstElementChild ?? cell;
      inner.textContent = number(value, 1);
      if (inner.role === "spinbutton") inner.setAttribute("aria-valuenow", value);
      if (of === "AB")
        inner.ariaLabel = `A·B, row ${Number(i) + 1}, column ${Number(j) + 1}: ${number(value)}`;
      cell.style.setProperty("--size", Math.min(1, Math.abs(value) / 6));
      cell.classList.toggle("live-below", value < 0);
      cell.classList.toggle("live-lit", this.lights(of, Number(i), Number(j)));
    }
    this.said.textContent = this.sentence(AB);
    this.tell(this.summary(AB));
  }

  // Does this cell light up? Row i of A and column j of B make one sum; an entry is in a whole row or column.
  lights(of, i, j) {
    const [row, column] = this.at;
    if (this.marked === "sum") return (of === "B" || i === row) && (of === "A" || j === column);
    if (of === this.marked) return i === row && j === column;
    const sheet = this.marked === "A" ? column : row;
    if (of === "A") return j === sheet;
    if (of === "B") return i === sheet;
    if (of === "W" || (of.startsWith("sheet") && of !== `sheet${sheet}`)) return false;
    return this.marked === "A" ? i === row : j === column;
  }

  sentence(AB) {
    const [i, j] = this.at;
    if (this.marked === "sum") {
      const terms = range(this.r).map(n => `${number(this.A[i][n])}·${factor(this.B[n][j])}`);
      const [ab, w] = [AB[i][j], this.data.W[i][j]];
      return (
        `Row ${i + 1} of A times column ${j + 1} of B: ${terms.join(" + ")} = ${number(ab)}. ` +
        `Times s = ${number(this.s)}: ${number(this.s * ab)}. ` +
        `On top of W's ${number(w)}: ${number(w + this.s * ab)}.`
      );
    }
    const value = number(this[this.marked][i][j]);
    const name = `Row ${i + 1}, column ${j + 1} of ${this.marked} is ${value}. `;
    const sheet = (this.marked === "A" ? j : i) + 1;
    const part = this.marked === "A" ? `row ${i + 1}` : `column ${j + 1}`;
    const where = `all of ${part} of sheet ${sheet}, and so in all of ${part} of A·B`;
    if (this.last) {
      const line = this.marked === "A" ? AB[i] : AB.map(row => row[j]);
      return `${name}${this.last} has changed: ${line.map(x => number(x)).join(", ")}.`;
    }
    return `${name}It is in ${where}.`;
  }

  // What the line below the controls says.
  summary(AB) {
    const [d, k] = this.sizes;
    return (
      `s = α/r = ${this.data.alphas[this.turned[1]]}/${this.r} = ${number(this.s)}. A and B hold ` +
      `${this.r * (d + k)} numbers, W ${d * k}. A·B has rank ${rankOf(AB)}.`
    );
  }

  // The rank and α by their place, then the entries: "14.4556…".
  state() {
    const entries = [...this.A.flat(), ...this.B.flat()].map(x => x - LEAST);
    return `${this.turned.join("")}.${entries.join("")}`;
  }

  restore(word) {
    if (!/^\d\d\.[0-6]+$/.test(word) || word.length !== this.start.length) return;
    const [turned, entries] = word.split(".").map(digits => [...digits].map(Number));
    if (turned[0] >= this.B.length || turned[1] >= this.data.alphas.length) return;
    this.turned = turned;
    const values = entries.map(x => x + LEAST);
    this.A = this.A.map(row => values.splice(0, row.length));
    this.B = this.B.map(row => values.splice(0, row.length));
  }
}

enliven("live-product", Product);
