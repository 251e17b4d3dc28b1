// Write, and turn: two texts from one prompt, without and with an adapter, and the bars below them.
const SAMPLE_TOKENS = 60;
const BARS = 6; // the likeliest of each model

let baseWords;
let adaptedWords;
let lookedAt = null; // the token that was clicked: {words, index}; null is the prompt's end

// What the sliders say.
function view() {
  const on = checkedKinds("on");
  return {
    adapter: $("adapter").value,
    rank: Number($("rank").value),
    strength: Number($("alpha").value),
    off: Object.keys(KIND_NAMES).filter(kind => !on.includes(kind)),
  };
}

const KIND_NAMES = {
  "attn.c_attn": "queries, keys and values",
  "attn.c_proj": "attention's output",
  "mlp.c_fc": "the MLP's first layer",
  "mlp.c_proj": "the MLP's second layer",
};

function setRankLimit(rank) {
  const most = lab.ranks[$("adapter").value];
  $("rank").max = most;
  $("rank").value = rank ?? most;
}

function showSliders() {
  $("rank-value").textContent = `${$("rank").value} of ${$("rank").max}`;
  $("alpha-value").textContent = `${Number($("alpha").value).toFixed(2)} × s`;
  $("temperature-value").textContent = $("temperature").value;
}

// The worker gets an adapter of the book when it is first chosen.
async function fetchAdapter(name) {
  if (lab.kept.has(name)) return;
  if (!delivered.adapters[name]) await script(`adapter-${name}.js`);
  const { r } = await lab.engine.ask("keep", { name, files: delivered.adapters[name] });
  lab.ranks[name] = r;
  lab.kept.add(name);
}

// ---- What follows a change ---------------------------------------------------------------------------------------
// A slider sends many events. Each kind of work runs once at a time, and once more if something has changed meanwhile.

function latest(work) {
  let running = false;
  let again = false;
  return async (...what) => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      try {
        await work(...what);
      } catch (error) {
        say("status", error.message, true);
      }
    }
    running = false;
  };
}

const showNext = latest(async () => {
  const { words, index } = lookedAt ?? {};
  const ids = words ? words.ids.slice(0, index) : [];
  const prompt = words ? words.prompt : $("prompt").value;
  const chosen = words?.ids[index];
  const also = chosen === undefined ? [] : [chosen];
  const rows = await lab.engine.ask("bars", { view: view(), prompt, ids, count: BARS, also });
  showBars($("next"), rows, chosen);
  const before = prompt + (words ? words.tokens.slice(0, index).join("") : "");
  $("next-after").textContent = `After “${before.length > 60 ? "…" : ""}${before.slice(-60)}”`;
  $("next-back").hidden = !words;
});

const writeAdapted = latest(() => writeTexts(false));

async function writeTexts(base) {
  const settings = {
    prompt: $("prompt").value,
    temperature: Number($("temperature").value),
    seed: Number($("seed").value),
    count: SAMPLE_TOKENS,
  };
  const show = texts => {
    if (texts.base) baseWords.show(settings.prompt, texts.base);
    if (texts.adapted) adaptedWords.show(settings.prompt, texts.adapted);
  };
  show(await lab.engine.ask("write", { view: view(), base, ...settings }, { news: show }));
}

// The sliders have moved: bars and text follow at once.
async function changed() {
  showSliders();
  writeAddress();
  takingChanged();
  if (!lab.engine) return;
  await fetchAdapter($("adapter").value);
  showNext();
  writeAdapted();
}

async function write() {
  lookAt(null);
  writeAddress();
  $("recorded-write").hidden = true;
  try {
    await fetchAdapter($("adapter").value);
    showNext();
    await writeTexts(true);
  } catch (error) {
    say("status", error.message, true);
  }
}

function lookAt(place) {
  lookedAt = place;
  for (const words of [baseWords, adaptedWords]) words.mark(words === place?.words ? place.index : -1);
  if (lab.engine) showNext();
}

function prepareWriting() {
  baseWords = new Words($("base"), index => lookAt({ words: baseWords, index }));
  adaptedWords = new Words($("adapted"), index => lookAt({ words: adaptedWords, index }));
  $("next-back").addEventListener("click", () => lookAt(null));
  $("form").addEventListener("submit", event => {
    event.preventDefault();
    if (lab.engine) write();
  });
  $("adapter").addEventListener("input", () => setRankLimit());
  for (const id of ["adapter", "rank", "alpha", "on"]) $(id).addEventListener("input", () => changed());
  for (const id of ["temperature", "seed", "prompt"]) {
    $(id).addEventListener("input", () => {
      showSliders();
      if (lab.engine) lookAt(null);
    });
  }
  $("share").addEventListener("click", async () => {
    writeAddress();
    const link = new URL(location.href);
    try {
      await navigator.clipboard.writeText(link.href);
      say("shared", "Copied.");
    } catch {
      say("shared", "This browser does not let the page copy: the link is in the address bar.");
    }
  });
}

// The model has come: what was recorded gives way to the real thing.
async function startWriting() {
  await fetchAdapter($("adapter").value);
  takingChanged();
  await write();
}
