// What a model writes at each rank of its adapter: played once from rank 0, then the reader turns it.
// `voices` in __init__.py makes the page. Its address is the rank: #rank=4.
const BEAT = 1100; // milliseconds for a rank
const SIDE = 200; // the weight, in the drawing's own unit

class Voices extends Turned {
  toStart() {
    this.turned = [...this.data.start];
  }

  listen() {
    super.listen();
    this.texts = [...this.picture.querySelectorAll(".live-text")];
    this.draw();
    this.again = this.button("knob-play", "Play from rank 0", () => this.play());
    for (const touch of ["pointerdown", "keydown"])
      this.figure.addEventListener(touch, () => this.stop(), { capture: true });
    addEventListener("hashchange", () => {
      this.restore(this.word());
      this.build();
    });
    if (matchMedia("(prefers-reduced-motion: reduce)").matches || this.state() !== this.start) return;
    const near = new IntersectionObserver(seen => {
      if (!seen.some(entry => entry.isIntersecting)) return;
      near.disconnect();
      this.play();
    });
    near.observe(this.picture);
  }

  // The weight as a square with A at its left and B on top of it, all of them to scale.
  draw() {
    const rect = (name, at) => drawn("rect", { class: name, ...at });
    const words = (x, y, text) => drawn("text", { x, y }, text);
    this.A = rect("live-on", { y: 0, height: SIDE });
    this.B = rect("live-on", { x: 0, width: SIDE });
    const { side } = this.data;
    this.picture
      .querySelector("svg")
      .replaceChildren(
        rect("live-off", { x: 0, y: 0, width: SIDE, height: SIDE }),
        words(SIDE / 2, SIDE / 2 - 6, "W, frozen"),
        words(SIDE / 2, SIDE / 2 + 16, `${side} × ${side}`),
        this.A,
        this.B,
        words(-16, SIDE / 2, "A"),
        words(SIDE / 2, -14, "B"),
      );
  }

  play() {
    this.stop();
    this.figure.classList.add("live-plays");
    const beats = this.texts.length;
    let at = 0;
    const beat = () => {
      this.turned = [at];
      this.build();
      at += 1;
      if (at === beats) this.stop();
    };
    beat();
    this.beats = setInterval(beat, BEAT);
  }

  stop() {
    clearInterval(this.beats);
    this.figure.classList.remove("live-plays");
  }

  build() {
    const [at] = this.turned;
    const rank = this.data.ranks[at];
    const thin = (SIDE * rank) / this.data.side;
    for (const [part, place, size] of [
      [this.A, "x", "width"],
      [this.B, "y", "height"],
    ]) {
      part.setAttribute(place, -3 - thin);
      part.setAttribute(size, thin);
    }
    this.texts.forEach((text, n) => {
      text.classList.toggle("knob-away", n !== at);
      text.ariaHidden = n === at ? null : "true";
    });
    // While it plays by itself, nobody is told.
    this.line.querySelector("p").ariaLive = this.figure.classList.contains("live-plays") ? "off" : "polite";
    this.tell(this.data.said[at]);
  }

  state() {
    return `${this.data.ranks[this.turned[0]]}`;
  }

  restore(word) {
    const at = this.data.ranks.indexOf(Number(word));
    if (word && at >= 0) this.turned = [at];
  }

  word() {
    return new URLSearchParams(location.hash.slice(1)).get("rank") ?? "";
  }

  address() {
    const url = new URL(location);
    url.hash = `rank=${this.state()}`;
    return url;
  }
}

enliven("live-voices", Voices);
