// The chat model's answers side by side, base and adapter: a chat with the reader, and under three headings what a run
// learned, memorised and forgot.
import { LabError } from "../errors.js";
import { chatText } from "../files/llama_files.js";
import { KNOWN } from "./chat_sets.js";
import { $, say } from "./state.js";
import { made } from "./words.js";

const LONGEST = 60; // tokens of an answer
const SHOWN = 4; // trained pairs that are asked again
const MOST_NEW = 8; // held-back lines that are asked, where there are no fresh questions

export class Answers {
  // `chat`: {engine, view()}. The headings follow from a run: {pairs, heldOut, follows, fresh}.
  constructor(chat) {
    this.chat = chat;
    this.clear();
  }

  // Another model: nothing that was said counts.
  clear() {
    this.round = (this.round ?? 0) + 1; // counts up: answers of an earlier one are no longer wanted
    this.groups = [];
    this.baseAnswers = new Map(); // by prompt: the base does not change
    this.newChat();
    $("answers").replaceChildren();
  }

  newChat() {
    this.round++;
    this.turns = []; // rows
    $("turns").replaceChildren();
    say("room", "");
  }

  show({ pairs, heldOut, follows, fresh }, measured) {
    const exact = ({ answer }, text) => text.trim() === answer;
    const fall = measured && ` The loss on held-back answers went from ${measured.start} to ${measured.end}.`;
    const unseen = fresh ?? heldOut.slice(0, MOST_NEW);
    const trained = pairs.slice(0, SHOWN);
    this.groups = [
      {
        name: "Learned",
        about: fresh
          ? `${unseen.length} questions that the run never saw`
          : `${unseen.length} held-back lines: never trained on, but they chose the step`,
        rows: unseen,
        expected: fresh ? "Expected" : "Your line says",
        right: follows && (({ answer }, text) => follows(text, answer)),
        count: "follow the pattern",
        more: fall ?? "",
      },
      {
        name: "Memorised",
        about: `the first ${trained.length} of ${pairs.length} trained questions`,
        rows: trained,
        expected: "Trained answer",
        right: exact,
        count: "are the trained answer, word for word",
        more: "",
      },
      {
        name: "Forgotten",
        about: `${KNOWN.length} things that the model knew before`,
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
    group.places = group.rows.map(row => new Row(row, group.expected));
    const head = made("p", { className: "lab-title", textContent: `${group.name}? ${group.about}` });
    return made("section", {}, head, group.counted, ...group.places.map(({ element }) => element));
  }

  // The reader's next question. Each side reads its own answers again, and both must have room for one more. Throws
  // LabError, and leaves the chat as it is, if they have not.
  async askNext(question) {
    const row = new Row({ question });
    const turns = [...this.turns, row];
    const taken = await this.tokensOf(turns);
    const { context } = this.chat.engine.config;
    if (taken + LONGEST > context) {
      throw new LabError(
        `This chat is full: with your question it has ${taken} tokens, and an answer takes up to ${LONGEST}, ` +
          `but the page reads at most ${context}. ${this.turns.length ? "Press New chat." : "Shorten the question."}`,
      );
    }
    this.turns = turns;
    $("turns").append(row.element);
    await new Promise(answered => this.answerAll(answered).then(answered));
    const next = [...this.turns, new Row({ question: "" })];
    if (this.turns === turns) say("room", `This chat has ${await this.tokensOf(next)} of ${context} tokens.`);
  }

  // Tokens of a chat, on the side that has more.
  async tokensOf(turns) {
    const count = which => this.chat.engine.ask("count", { text: chatText(messagesOf(turns, which)) });
    return Math.max(await count("base"), await count("adapted"));
  }

  // Answer the last question of the chat and those under the headings, as the sliders are set. What is answered stays. A
  // newer call ends it. `chatDone` is called before the headings, which take longer.
  async answerAll(chatDone = () => {}) {
    const mine = ++this.round;
    const wanted = () => mine === this.round;
    try {
      for (const [i, row] of this.turns.entries()) {
        const open = !row.answeredWith || i === this.turns.length - 1;
        if (wanted() && open) await this.answer(this.turns.slice(0, i + 1), wanted);
      }
      chatDone();
      for (const group of this.groups) {
        for (const row of group.places) if (wanted()) await this.answer([row], wanted);
        if (wanted()) this.count(group);
      }
      if (wanted()) say("write-status", "");
    } catch (error) {
      if (wanted()) say("write-status", error.message, true);
    }
  }

  // Both sides' answers to the last of these turns.
  async answer(turns, wanted) {
    const row = turns.at(-1);
    const view = this.chat.view();
    if (row.answeredWith === JSON.stringify(view)) return;
    say("write-status", `Answering: ${row.pair.question}`);
    const prompt = chatText(messagesOf(turns, "base"));
    if (!this.baseAnswers.has(prompt)) {
      const text = await this.write(prompt, null, part => wanted() && row.showBase(part));
      if (!wanted()) return;
      this.baseAnswers.set(prompt, text);
    }
    row.showBase(this.baseAnswers.get(prompt));
    if (view) {
      const asked = chatText(messagesOf(turns, "adapted"));
      const text = await this.write(asked, view, part => wanted() && row.showAdapted(part));
      if (!wanted()) return;
      row.showAdapted(text);
    }
    row.answeredWith = JSON.stringify(view);
  }

  // The likeliest answer, token by token; `tell` hears it grow.
  async write(prompt, view, tell) {
    const what = { view, base: false, prompt, count: LONGEST, temperature: 0, seed: 1 };
    const news = told => told.adapted && tell(told.adapted.tokens.join(""));
    const { adapted } = await this.chat.engine.ask("write", what, { news });
    return adapted.tokens.join("");
  }

  // How many of a group's answers are so, without and with the adapter.
  count({ places, right, count, more, counted, name }) {
    const adapter = Boolean(this.chat.view());
    const of = which => places.filter(row => right(row.pair, row[which])).length;
    const said = right
      ? `${of("adapted")} of ${places.length} answers ${count} (base: ${of("base")}).`
      : "Read them: the page does not know what is right here.";
    counted.textContent = adapter ? `${said}${more}` : "";
    const group = this.groups.find(one => one.name === name);
    group.result = adapter && right ? { adapted: of("adapted"), base: of("base"), of: places.length } : null;
    for (const row of places) row.mark(right, adapter);
  }
}

// A chat as one side has read it, up to its last question. The base has answered where there was no adapter.
function messagesOf(turns, which) {
  return turns.flatMap((row, i) => {
    const asked = { role: "user", content: row.pair.question };
    if (i === turns.length - 1) return [asked];
    return [asked, { role: "assistant", content: row[which] || row.base }];
  });
}

// A question with its two answers, and what its line says.
class Row {
  constructor(pair, expected) {
    this.pair = pair;
    this.base = this.adapted = "";
    this.answeredWith = null; // how the sliders were set, once both have answered
    this.boxes = ["Base", "With the adapter"].map(name => {
      const text = made("p", { className: "lab-answer" });
      return { text, box: made("div", {}, made("span", { className: "lab-note", textContent: name }), text) };
    });
    const asked = made("p", { className: "lab-question", textContent: pair.question });
    const two = made("div", { className: "lab-two" }, ...this.boxes.map(({ box }) => box));
    const line = expected && pair.answer ? `${expected}: ${pair.answer}` : "";
    const said = line ? [made("p", { className: "lab-note", textContent: line })] : [];
    this.element = made("div", { className: "lab-pair" }, asked, ...said, two);
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
