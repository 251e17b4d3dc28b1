// Train on the reader's words: the form, the run that goes on, and the curves of the last runs.
const SHOWN_RUNS = 3; // curves that lie over each other
const STORED = "lora-book-lab-text"; // where the browser keeps the reader's text

let runs = []; // {name, settings, steps, losses, measured: [{at, heldOut, prose}]}
let trained = 0; // counts up, for names
let training = false;
let paused = false;

const onPhone = () => window.innerWidth < 600;

// What the form says. Throws an Error that names the number that will not do.
function trainingSettings() {
  const number = (id, name, fits, expected) => {
    const value = $(id).value.trim() === "" ? Number.NaN : Number($(id).value);
    if (!fits(value))
      throw Object.assign(new Error(`${name} must be ${expected}; it is “${$(id).value}”.`), {
        field: $(id),
      });
    return value;
  };
  const kinds = checkedKinds("train-on");
  if (!kinds.length) throw new Error("Choose at least one kind of layer for LoRA.");
  return {
    text: $("text").value,
    r: number(
      "train-rank",
      "Rank r",
      r => Number.isInteger(r) && r >= 1 && r <= 320,
      "a whole number from 1 to 320, the shorter side of this model's layers",
    ),
    alpha: number("train-alpha", "Alpha", alpha => alpha > 0 && Number.isFinite(alpha), "a number above 0"),
    rate: number(
      "rate",
      "The rate",
      rate => rate > 0 && Number.isFinite(rate),
      "a number above 0, such as 0.001",
    ),
    steps: number(
      "steps",
      "Steps",
      steps => Number.isInteger(steps) && steps >= 1 && steps <= 2000,
      "a whole number from 1 to 2000",
    ),
    batch: onPhone() ? 2 : 4,
    prompt: $("prompt").value,
    kinds,
  };
}

async function train() {
  let settings;
  try {
    settings = trainingSettings();
  } catch (error) {
    error.field?.focus();
    return say("train-status", error.message, true);
  }
  const name = `run-${++trained}`;
  const run = { name, settings, steps: settings.steps, losses: [], measured: [] };
  $("recorded-train")?.remove();
  runs = [...runs.filter(old => !old.recorded).slice(1 - SHOWN_RUNS), run];
  $("samples").replaceChildren();
  setTraining(true);
  say("train-status", `${label(run)} is in training.`);
  try {
    const { steps, burst } = await lab.engine.ask(
      "train",
      { name, settings },
      { news: news => heard(run, news) },
    );
    run.steps = Math.max(1, run.losses.length);
    say(
      "train-status",
      burst ?? `${label(run)} is trained: ${steps} steps. It is chosen above, and can be taken home below.`,
      Boolean(burst),
    );
    addAdapter(name, settings.r, `yours: ${label(run)}`);
  } catch (error) {
    runs = runs.filter(other => other !== run);
    say("train-status", error.message, true);
  }
  setTraining(false);
  drawTraining();
}

function label({ name, settings: { r, rate } }) {
  return `${name.replace("-", " ")} (r ${r}, rate ${rate})`;
}

// What the worker tells on the way.
function heard(run, { step, loss, perSecond, left, at, heldOut, prose, sample }) {
  if (loss !== undefined) {
    run.losses.push(loss);
    $("speed").textContent =
      `step ${step} of ${run.steps}, ${Math.round(perSecond)} tokens/s, ${Math.ceil(left / 1000)} s left`;
  }
  if (heldOut !== undefined) {
    run.measured.push({ at, heldOut, prose });
    const loss = run.losses.at(-1);
    if (loss !== undefined)
      say(
        "train-status",
        `Step ${at}: training ${loss.toFixed(2)}, held-out end ${heldOut.toFixed(2)}, other prose ${prose.toFixed(2)}.`,
      );
  }
  if (sample !== undefined) {
    const words = made("span", { className: "lab-given", textContent: run.settings.prompt });
    $("samples").prepend(made("li", {}, made("b", { textContent: `step ${at} ` }), words, sample));
  }
  drawTraining();
}

function setTraining(on) {
  training = on;
  paused = false;
  $("train").disabled = on;
  $("pause").disabled = $("stop").disabled = !on;
  $("pause").textContent = "Pause";
  if (!on) $("speed").textContent = "";
}

function drawTraining() {
  const current = runs.at(-1);
  $("loss").dataset.losses = JSON.stringify(current && !current.recorded ? current.losses : []);
  drawRuns($("loss"), runs);
  $("loss").setAttribute("aria-label", `The loss, step by step. ${runs.map(inWords).join(" ")}`);
  const earlier = runs.slice(0, -1).map(label).join(" and ");
  $("legend").textContent = current
    ? `${current.recorded ? "A recorded run" : label(current)}${earlier ? `; dashed: ${earlier}` : ""}. Nats a token, lower is better.`
    : "";
  $("runs").hidden = !runs.length;
  $("runs").tBodies[0].replaceChildren(...runs.map(row));
}

// From where to where each loss went: the training loss as the mean of its last ten steps.
function ends({ losses, measured }) {
  const tail = losses.slice(-10);
  const mean = tail.reduce((a, b) => a + b, 0) / tail.length;
  return [
    [losses[0], mean],
    [measured[0]?.heldOut, measured.at(-1)?.heldOut],
    [measured[0]?.prose, measured.at(-1)?.prose],
  ].map(pair => (pair.every(Number.isFinite) ? pair.map(loss => loss.toFixed(2)).join(" → ") : "–"));
}

function inWords(run) {
  const [loss, heldOut, prose] = ends(run);
  return `${label(run)}: training ${loss}, held-out end ${heldOut}, other prose ${prose}.`;
}

function row(run) {
  const head = made("th", { scope: "row", textContent: label(run) });
  return made("tr", {}, head, ...ends(run).map(text => made("td", { textContent: text })));
}

// An adapter that the reader trained or brought: it can be chosen, and is.
function addAdapter(name, rank, text) {
  lab.kept.add(name);
  lab.ranks[name] = rank;
  $("adapter").append(made("option", { value: name, textContent: text }));
  $("adapter").value = name;
  setRankLimit();
  $("alpha").value = 1;
  changed();
}

// ---- The text ----------------------------------------------------------------------------------------------------

const countTokens = latest(async () => {
  const text = $("text").value;
  const tokens = lab.engine
    ? `, ${(await lab.engine.ask("count", { text })).toLocaleString("en")} tokens`
    : "";
  $("count").textContent = `${text.length.toLocaleString("en")} characters${tokens}`;
});

function textChanged() {
  try {
    localStorage.setItem(STORED, $("text").value);
  } catch {
    // No room, or the browser keeps nothing: then the text is not kept, and the page says so.
    say("train-status", "This browser does not keep the text: a reload would lose it.");
  }
  countTokens();
}

function prepareTraining() {
  $("example").append(made("option", { value: "", textContent: "my own words" }));
  for (const [name, { title }] of Object.entries(EXAMPLES)) {
    $("example").append(made("option", { value: name, textContent: `example: ${title}` }));
  }
  let stored = null;
  try {
    stored = localStorage.getItem(STORED);
  } catch {
    // Nothing is kept in this browser.
  }
  const example = Object.keys(EXAMPLES).find(name => EXAMPLES[name].text === (stored ?? EXAMPLES[name].text));
  $("example").value = example ?? "";
  $("text").value = stored ?? EXAMPLES[example].text;
  countTokens();
  $("text").addEventListener("input", () => {
    $("example").value = "";
    textChanged();
  });
  $("example").addEventListener("change", () => {
    $("text").value = EXAMPLES[$("example").value]?.text ?? "";
    textChanged();
  });
  $("train-form").addEventListener("submit", event => {
    event.preventDefault();
    if (lab.engine && !training) train();
  });
  $("pause").addEventListener("click", () => {
    paused = !paused;
    lab.engine.ask(paused ? "pause" : "goOn");
    $("pause").textContent = paused ? "Go on" : "Pause";
  });
  $("stop").addEventListener("click", () => lab.engine.ask("stop"));
  window.addEventListener("beforeunload", event => {
    if (training) event.preventDefault(); // the browser asks whether to leave
  });
  runs = [];
  new ResizeObserver(drawTraining).observe($("loss"));
}

async function startTraining() {
  await countTokens();
}
