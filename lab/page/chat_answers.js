// The chat model's answers side by side, base and adapter, under three headings: learned, memorised, forgotten.
import { chatText } from "../files/gguf.js";
import { KNOWN } from "./chat_sets.js";
import { $, say } from "./state.js";
import { made } from "./words.js";

const LONGEST = 60; // tokens of an answer
const SHOWN = 4; // trained pairs that are asked again

const baseAnswers = new Map(); // by question: the base does not change

export class Answers {
  // `chat`: {engine, view()}. The headings follow from a run: {pairs, heldOut, follows}.
  constructor(chat) {
    this.chat = chat;
    this.round = 0; // counts up: answers of an earlier one are no longer wanted
    this.groups = [];
  }

  show({ pairs, heldOut, follows }, measured) {
    const exact = ({ answer }, text) => text.trim() === answer;
    const fall = measured && ` The loss on these answers went from ${measured.start} to ${measured.end}.`;
    this.groups = [
      {
        name: "Learned",
        about: "questions of the same kind, held back from the training",
        rows: heldOut.slice(0, SHOWN),
        right: follows && (({ answer }, text) => follows(text, answer)),
        count: "follow the pattern",
        more: fall ?? "",
      },
      {
        name: "Memorised",
        about: "questions that it was trained on",
        rows: pairs.slice(0, SHOWN),
        right: exact,
        count: "are the trained answer, word for word",
        more: "",
      },
      {
        name: "Forgotten",
        about: "what the model knew before",
        rows: KNOWN,
        right: ({ right }, text) => right.test(text),
        count: "are right",
        more: "",
      },
    ];
    $("answers").replaceChildren(...this.groups.map(group => this.section(group)));
    return this.answerAll();
  }

  section(group) {
    group.counted = made("p", { className: "lab-note" });
    group.places = group.rows.map(row => new Row(row));
    const head = made("p", { className: "lab-title", textContent: `${group.name}? ${group.about}` });
    return made("section", {}, head, group.counted, ...group.places.map(({ element }) => element));
  }

  // One question of the reader's, above the others.
  async askOwn(question) {
    const row = new Row({ question });
    if (this.own) this.own.element.remove();
    this.own = row;
    $("answers").prepend(row.element);
    await this.answerAll();
  }

  // Answer all questions, the base's answers only once. A newer call ends it.
  async answerAll() {
    const mine = ++this.round;
    const wanted = () => mine === this.round;
    try {
      for (const row of this.own ? [this.own] : []) if (wanted()) await this.answer(row, wanted);
      for (const group of this.groups) {
        for (const row of group.places) if (wanted()) await this.answer(row, wanted);
        if (wanted()) this.count(group);
      }
      if (wanted()) say("write-status", "");
    } catch (error) {
      if (wanted()) say("write-status", error.message, true);
    }
  }

  async answer(row, wanted) {
    const { question } = row.pair;
    say("write-status", `Answering: ${question}`);
    if (!baseAnswers.has(question)) {
      const text = await this.write(question, null, part => row.showBase(part));
      if (!wanted()) return;
      baseAnswers.set(question, text);
    }
    row.showBase(baseAnswers.get(question));
    const view = this.chat.view();
    if (!view) return;
    const text = await this.write(question, view, part => wanted() && row.showAdapted(part));
    if (wanted()) row.showAdapted(text);
  }

  // The likeliest answer, token by token; `tell` hears it grow.
  async write(question, view, tell) {
    const prompt = chatText([{ role: "user", content: question }]);
    const what = { view, base: false, prompt, count: LONGEST, temperature: 0, seed: 1 };
    const news = told => told.adapted && tell(told.adapted.tokens.join(""));
    const { adapted } = await this.chat.engine.ask("write", what, { news });
    return adapted.tokens.join("");
  }

  // How many of a group's answers are so, without and with the adapter.
  count({ places, right, count, more, counted, name }) {
    const adapter = Boolean(this.chat.view());
    const of = which => places.filter(row => right(row.pair, row[which])).length;
    const said = right ? `${of("adapted")} of ${places.length} answers ${count} (base: ${of("base")}).` : "";
    counted.textContent = adapter ? `${said}${more}` : "";
    const group = this.groups.find(one => one.name === name);
    group.result = adapter && right ? { adapted: of("adapted"), base: of("base"), of: places.length } : null;
    for (const row of places) row.mark(right, adapter);
  }
}

// A question with its two answers.
class Row {
  constructor(pair) {
    this.pair = pair;
    this.base = this.adapted = "";
    this.boxes = ["Base", "With the adapter"].map(name => {
      const text = made("p", { className: "lab-answer" });
      return { text, box: made("div", {}, made("span", { className: "lab-note", textContent: name }), text) };
    });
    const asked = made("p", { className: "lab-question", textContent: pair.question });
    const two = made("div", { className: "lab-two" }, ...this.boxes.map(({ box }) => box));
    this.element = made("div", { className: "lab-pair" }, asked, two);
  }

  showBase(text) {
    this.base = this.boxes[0].text.textContent = text;
  }

  showAdapted(text) {
    this.adapted = this.boxes[1].text.textContent = text;
  }

  mark(right, adapter) {
    if (!right) return;
    for (const [i, which] of ["base", "adapted"].entries()) {
      const yes = right(this.pair, this[which]);
      if (which === "adapted" && !adapter) continue;
      this.boxes[i].text.textContent = `${yes ? "✓" : "✗"} ${this[which]}`;
    }
  }
}
