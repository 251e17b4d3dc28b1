// A recorded comparison that plays before any model is loaded: its first scene stands there, the others follow token
// by token.
const TOKEN = 60; // milliseconds between two tokens
const HOLD = 2500; // and after a scene's last one

export const prefersStill = () => matchMedia("(prefers-reduced-motion: reduce)").matches;

// `scenes`: [{adapted: {tokens, ids}, …}]. `enter(scene)` is called when one begins, `show(scene, count)` shows its first
// `count` tokens, and `changed()` hears that the playing began, paused or ended.
export class Player {
  constructor(scenes, { enter, show, changed }) {
    Object.assign(this, { scenes, enter, show, changed, at: 0, token: 0, timer: null });
  }

  get playing() {
    return this.timer !== null;
  }

  play() {
    if (this.playing) return;
    if (this.ended) [this.at, this.token] = [0, 0];
    if (this.at === 0) this.finish();
    this.next();
    this.changed();
  }

  // As it stands now; `play` goes on from here.
  pause() {
    if (!this.playing) return;
    clearTimeout(this.timer);
    this.timer = null;
    this.changed();
  }

  // Leave a whole scene on the page.
  finish() {
    this.pause();
    if (this.token === 0) this.enter(this.scenes[this.at]);
    this.token = this.length;
    this.show(this.scenes[this.at], this.length);
  }

  get length() {
    return this.scenes[this.at].adapted.tokens.length;
  }

  get ended() {
    return this.at === this.scenes.length - 1 && this.token === this.length;
  }

  tick() {
    if (this.token === this.length) [this.at, this.token] = [this.at + 1, 0];
    if (this.token === 0) this.enter(this.scenes[this.at]);
    this.token += 1;
    this.show(this.scenes[this.at], this.token);
    this.next();
  }

  next() {
    this.timer = this.ended ? null : setTimeout(() => this.tick(), this.token === this.length ? HOLD : TOKEN);
    if (this.ended) this.changed();
  }
}
