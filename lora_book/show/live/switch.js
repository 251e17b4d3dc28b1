// Two adapters on one weight: the reader switches between them and folds one in. `switching` in __init__.py makes the page.
const add = (M, N) => M.map((row, i) => row.map((x, j) => x + N[i][j]));
const times = (M, N) => M.map(row => N[0].map((_, j) => row.reduce((sum, x, n) => sum + x * N[n][j], 0)));

class Switch extends Turned {
  toStart() {
    this.turned = [...this.data.start];
  }

  // The adapters in use, by name.
  get used() {
    return this.data.choices[this.turned[0]];
  }

  get folded() {
    return this.turned[1] === 1;
  }

  // A matrix as a table of plain numbers; those that differ from `before` light up.
  table(name, M, before = M) {
    const cell = (x, i, j) => made("td", { class: x === before[i][j] ? "" : "live-lit" }, number(x));
    const rows = M.map((row, i) => made("tr", {}, ...row.map((x, j) => cell(x, i, j))));
    return made("table", {}, made("caption", {}, name), made("tbody", {}, ...rows));
  }

  build() {
    const { x, W, adapters } = this.data;
    const changes = this.used.map(name => times(adapters[name].A, adapters[name].B));
    const changed = changes.reduce(add, W);
    const held = this.folded ? changed : W;
    const y = times(x, changed);
    const sign = text => made("span", {}, text);
    const row = (name, ...parts) =>
      made("div", { class: "live-row", role: "group", "aria-label": name }, ...parts);
    const lane = name => {
      const { A, B } = adapters[name];
      const used = this.used.includes(name);
      const way = !used ? "at rest" : this.folded ? "folded in: W holds it" : "in use, beside W";
      const part = row(
        `adapter ${name}`,
        sign(name),
        this.table("A", A),
        sign("·"),
        this.table("B", B),
        sign(way),
      );
      part.classList.add(used && !this.folded ? "live-used" : "live-rest");
      return part;
    };
    this.picture.replaceChildren(
      row(
        "the layer",
        this.table("x goes in", x),
        sign("·"),
        this.table(this.folded ? "W, changed" : "W", held, W),
      ),
      ...Object.keys(adapters).map(lane),
      row("the output", sign("="), this.table("y comes out", y)),
    );
    this.tell(this.summary(y[0], held));
  }

  summary(y, held) {
    const { W, adapters } = this.data;
    const numbers = M => M.length * M[0].length;
    const beside = this.folded ? [] : this.used;
    const work = beside.map(name => numbers(adapters[name].A) + numbers(adapters[name].B));
    const differ = held.flat().filter((w, n) => w !== W.flat()[n]).length;
    const who = this.used.join(" and ") || "no adapter";
    const weight = differ ? `${differ} of W's ${numbers(W)} numbers are changed` : "W is as it was";
    return (
      `In use: ${who}. y = (${y.map(n => number(n)).join(", ")}); ${weight}; ` +
      `${work.reduce((sum, n) => sum + n, numbers(W))} multiplications.`
    );
  }

  state() {
    return this.turned.join("");
  }

  restore(word) {
    const turned = [...word].map(Number);
    if (/^\d[01]$/.test(word) && turned[0] < this.data.choices.length) this.turned = turned;
  }
}

enliven("live-switch", Switch);
