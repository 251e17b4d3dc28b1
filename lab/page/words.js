// A text whose tokens can be looked at, one by one, and the bars that show what could have come next.
import { prefersStill } from "./play.js";

// An HTML element.
export function made(kind, properties = {}, ...children) {
  const element = Object.assign(document.createElement(kind), properties);
  element.append(...children);
  return element;
}

// What is written for a token that shows nothing.
const INVISIBLE = { " ": "space", "\n": "new line", "\n\n": "two new lines", "": "part of a letter" };

// A text in `box`, its tokens to be clicked, or chosen with the arrow keys and Enter. `onChoose` gets its index.
export class Words {
  constructor(box, onChoose) {
    Object.assign(this, { box, onChoose, tokens: [], ids: [] });
    box.addEventListener("click", ({ target }) => this.choose(this.indexOf(target)));
    box.addEventListener("keydown", event => this.key(event));
  }

  // Tokens that are there already stay: the reader may be looking at them.
  show(prompt, { tokens, ids }) {
    const same = ids.findIndex((id, i) => id !== this.ids[i]);
    const keep = prompt === this.prompt ? (same < 0 ? tokens.length : same) : 0;
    if (prompt !== this.prompt)
      this.box.replaceChildren(made("span", { className: "lab-given", textContent: prompt }));
    while (this.box.children.length > keep + 1) this.box.lastChild.remove();
    const atEnd = this.box.scrollTop + this.box.clientHeight >= this.box.scrollHeight - 4;
    this.box.append(...tokens.slice(keep).map(token => this.button(token)));
    // A new text begins at its top; one that grows is followed, unless the reader has scrolled up.
    if (keep === 0) this.box.scrollTop = 0;
    else if (atEnd) this.box.scrollTop = this.box.scrollHeight;
    Object.assign(this, { prompt, tokens, ids });
    if (tokens.length && !this.box.querySelector("[tabindex='0']")) this.box.children[1].tabIndex = 0;
  }

  button(token) {
    const word = made("span", { className: "lab-token", textContent: token, tabIndex: -1 });
    word.setAttribute("role", "button");
    if (token in INVISIBLE) word.setAttribute("aria-label", INVISIBLE[token]);
    return word;
  }

  indexOf(element) {
    return [...this.box.children].indexOf(element.closest(".lab-token")) - 1;
  }

  choose(index) {
    if (index < 0) return;
    this.mark(index);
    this.onChoose(index);
  }

  // The token that is looked at; -1 is none.
  mark(index) {
    for (const [i, word] of [...this.box.children].slice(1).entries()) {
      word.setAttribute("aria-pressed", i === index);
      if (index >= 0) word.tabIndex = i === index ? 0 : -1;
    }
  }

  key(event) {
    const step = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1 }[event.key];
    const index = this.indexOf(event.target);
    if (event.key === "Enter" || event.key === " ") this.choose(index);
    else if (step) this.focus(index + step);
    else return;
    event.preventDefault();
  }

  focus(index) {
    const word = this.box.children[index + 1];
    if (!word?.matches(".lab-token")) return;
    for (const other of this.box.querySelectorAll("[tabindex='0']")) other.tabIndex = -1;
    word.tabIndex = 0;
    word.focus();
  }
}

const percent = share => `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`;
const MOVE = { duration: 350, easing: "ease-out" };

// One row for each token: its text, and its probability without and with the adapter. `chosen`: the token in the text.
// Rows and bars move from where they were to where they belong.
export function showBars(list, rows, chosen) {
  const before = new Map([...list.children].map(row => [row.dataset.id, placeOf(row)]));
  list.replaceChildren(...rows.map(row => barsOf(row, row.id === chosen)));
  if (!prefersStill()) for (const row of list.children) move(row, before.get(row.dataset.id));
}

function barsOf({ id, text, base, adapted }, isChosen) {
  const word = made("code", {
    className: "lab-word",
    textContent: INVISIBLE[text] ?? text.replace(/\n/g, "⏎"),
  });
  const row = made(
    "li",
    { className: isChosen ? "lab-chosen" : "" },
    word,
    bar("base", base),
    bar("adapted", adapted),
  );
  row.dataset.id = id;
  if (isChosen) row.append(made("span", { className: "lab-hidden", textContent: " – the word in the text" }));
  return row;
}

function bar(which, share) {
  const filled = made("span", { className: "lab-filled" });
  filled.style.width = `${100 * share}%`;
  const name = made("span", { className: "lab-hidden", textContent: ` ${which} ` });
  const number = made("span", { className: "lab-number", textContent: percent(share) });
  return made(
    "span",
    { className: `lab-bar lab-bar-${which}` },
    name,
    made("span", { className: "lab-groove" }, filled),
    number,
  );
}

// Where a row is now, and how long its bars are, also in the middle of a move.
function placeOf(row) {
  const { left, top } = row.getBoundingClientRect();
  return { left, top, widths: bars(row).map(filled => filled.getBoundingClientRect().width) };
}

const bars = row => [...row.querySelectorAll(".lab-filled")];

// From a place that `placeOf` gave; a new row's bars grow from nothing.
function move(row, from) {
  const to = placeOf(row);
  bars(row).forEach((filled, i) => {
    filled.animate([{ width: `${from?.widths[i] ?? 0}px` }, { width: `${to.widths[i]}px` }], MOVE);
  });
  if (!from || (from.left === to.left && from.top === to.top)) return;
  const shift = `translate(${from.left - to.left}px, ${from.top - to.top}px)`;
  row.animate([{ transform: shift }, { transform: "none" }], MOVE);
}
