// LoRA's layers in a GPT-2: the reader chooses which, on the model's picture. `injection` in __init__.py makes the page.
const PARTS = {
  "attn.c_attn": ["c_attn", "queries, keys and values"],
  "attn.c_proj": ["c_proj", "out of attention"],
  "mlp.c_fc": ["c_fc", "into the MLP"],
  "mlp.c_proj": ["c_proj", "out of the MLP"],
  out_head: ["out_head", "a score for every token"],
};

const counted = n => n.toLocaleString("en");

// What `target_modules` says for these kinds: as short as it can be.
function targetsOf(kinds) {
  const names = kinds.map(kind => `"${kind}"`);
  const block = Object.keys(PARTS).filter(kind => kind !== "out_head");
  return kinds.join() === block.join() ? '"all-linear"' : `[${names.join(", ")}]`;
}

class Injection extends Turned {
  toStart() {
    this.turned = [...this.data.start];
    this.chosen = new Set(this.data.chosen);
  }

  get rank() {
    return this.data.ranks[this.turned[0]];
  }

  get model() {
    return this.data.models[this.turned[1]];
  }

  listen() {
    super.listen();
    this.picture.addEventListener("change", event => {
      const { kind } = event.target.dataset;
      if (event.target.checked) this.chosen.add(kind);
      else this.chosen.delete(kind);
      this.paint();
      this.keep();
    });
  }

  // How often a kind is in the model, and what one such layer learns: r numbers for each input and each output.
  price(kind) {
    const [d, k] = this.model.shapes[this.data.kinds.indexOf(kind)];
    return { d, k, times: kind === "out_head" ? 1 : this.model.blocks, learns: this.rank * (d + k) };
  }

  build() {
    if (!this.picture.querySelector(".live-model")) this.draw();
    this.paint();
  }

  // The model from bottom to top of a text's way: embedding, blocks, head.
  draw() {
    const group = (name, ...children) =>
      made("div", { class: "live-group", role: "group", "aria-label": name }, ...children);
    const words = name => made("p", { class: "live-title" }, name);
    const arrow = way => made("span", { class: "live-arrow", "aria-hidden": "true" }, way);
    const row = (...kinds) =>
      made("div", { class: "live-way" }, this.layer(kinds[0]), arrow("→"), this.layer(kinds[1]));
    this.code = made("code", {});
    this.blocks = words("");
    this.embedding = made("p", { class: "live-frozen" });
    this.picture.replaceChildren(
      made(
        "div",
        { class: "live-model" },
        this.embedding,
        arrow("↓"),
        group(
          "One block",
          this.blocks,
          group("Attention", words("attention"), row("attn.c_attn", "attn.c_proj")),
          group("MLP", words("MLP"), row("mlp.c_fc", "mlp.c_proj")),
        ),
        arrow("↓"),
        this.layer("out_head"),
      ),
      made("pre", { class: "live-code" }, this.code),
    );
  }

  // A layer: W as a grey box of its shape, A down its side and B across its top where it has an adapter.
  layer(kind) {
    const [name, role] = PARTS[kind];
    const box = made("input", { type: "checkbox", id: `${this.figure.id}-${kind}`, "data-kind": kind });
    box.autocomplete = "off";
    return made(
      "label",
      { class: "live-layer", for: box.id },
      made("span", { class: "live-name" }, box, made("b", {}, name), ` ${role}`),
      made("span", { class: "live-box" }, ...["a", "b"].map(part => made("i", { class: `live-${part}` }))),
      made("span", { class: "live-count" }),
    );
  }

  paint() {
    const { blocks, embedding, size, name } = this.model;
    for (const layer of this.picture.querySelectorAll(".live-layer")) {
      const box = layer.querySelector("input");
      const { d, k, times, learns } = this.price(box.dataset.kind);
      const scale = 1 / embedding[1]; // what is drawn is measured in the model's width
      box.checked = this.chosen.has(box.dataset.kind);
      for (const [key, size] of Object.entries({ d, k, r: this.rank }))
        layer.style.setProperty(`--${key}`, size * scale);
      layer.classList.toggle("live-chosen", box.checked);
      const often = times > 1 ? ` × ${times}` : "";
      layer.querySelector(".live-count").textContent =
        `${counted(d)} × ${counted(k)}: ${box.checked ? `${counted(learns)} learn${often}` : "frozen"}`;
    }
    this.blocks.textContent = `one block; there are ${blocks}`;
    this.embedding.textContent = `wte, the embedding: ${embedding.map(counted).join(" × ")}, frozen. The head is the same matrix.`;
    const kinds = this.data.kinds.filter(kind => this.chosen.has(kind));
    this.code.textContent = kinds.length
      ? `get_peft_model(model, ${targetsOf(kinds)}, lora_rank=${this.rank})`
      : "# choose a layer: get_peft_model refuses to adapt nothing";
    const learn = kinds
      .map(kind => this.price(kind))
      .reduce((sum, { times, learns }) => sum + times * learns, 0);
    this.tell(
      `${counted(learn)} numbers learn, ${((100 * learn) / (size + learn)).toFixed(2)}% of all in ${name}; ` +
        `in a file ${((4 * learn) / 1e6).toFixed(2)} MB beside the model's ${((4 * size) / 1e6).toFixed(0)} MB.`,
    );
  }

  // Rank and model by their place, then a 1 for each kind that is chosen: "30.11110".
  state() {
    return `${this.turned.join("")}.${this.data.kinds.map(kind => Number(this.chosen.has(kind))).join("")}`;
  }

  restore(word) {
    if (!/^\d\d\.[01]{5}$/.test(word)) return;
    const [turned, flags] = word.split(".").map(digits => [...digits].map(Number));
    if (turned[0] >= this.data.ranks.length || turned[1] >= this.data.models.length) return;
    this.turned = turned;
    this.chosen = new Set(this.data.kinds.filter((_, i) => flags[i]));
  }
}

enliven("live-injection", Injection);
