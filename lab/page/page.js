// The page begins here: a recording that plays, or what the address says.
import { asked, readAddress } from "./address.js";
import { prepareBringing } from "./bring.js";
import { Lab, missing } from "./engine.js";
import { prepareKept } from "./kept.js";
import { notHere, prepareSharing, receive } from "./link_button.js";
import { ready } from "./loading.js";
import recorded from "./recorded.json";
import { runs, showRecordedRun } from "./runs.js";
import { $, lab, say } from "./state.js";
import { prepareTaking } from "./take_home.js";
import { prepareTraining } from "./train.js";
import { changed, playRecorded, preparePlaying, prepareWriting, showStill } from "./write.js";

const PLAYS = "This is a recording. ";
const TOUCH = "Change anything to load the model: 25 MB, once.";

function start() {
  const lacking = missing();
  prepareWriting();
  preparePlaying();
  prepareTraining();
  prepareTaking();
  prepareSharing();
  prepareBringing();
  const kept = prepareKept();
  $("load").disabled = Boolean(lacking);
  $("load").addEventListener("click", () => ready().catch(() => {})); // the page says what went wrong
  showRecordedRun(recorded.train);
  if (lacking) say("status", `This browser lacks ${lacking}. The lab needs it; the chapters do not.`, true);
  else say("status", PLAYS + TOUCH);
  open(kept);
  window.addEventListener("hashchange", () => {
    if (location.hash.includes("=")) open(kept).then(changed); // else it is a heading of this page
  });
}

// Show what the address says, or play what tools/record_lab.py saw.
async function open(kept) {
  if (!location.hash.includes("=")) return playRecorded(recorded.write);
  lab.promptIsOurs = !asked().has("prompt");
  try {
    if (asked().has("carried")) return await openCarried();
    let { unknown, ignored } = readAddress();
    showStill([recorded.write, recorded.facts]);
    if (unknown) await kept; // it may be one of the reader's own
    if (unknown) ({ unknown, ignored } = readAddress());
    if (unknown) throw notHere(unknown);
    say("status", `This address has its own settings.${ignored} ${TOUCH} Until then you see recorded texts.`);
  } catch (error) {
    showStill([recorded.write]);
    say("status", error.message, true);
  }
}

async function openCarried() {
  const written = await receive();
  readAddress();
  if (written) playRecorded(written);
  const { title, r } = lab.carried.about;
  say(
    "status",
    `This link carries an adapter of rank ${r}: “${title}”. It is in the address itself. ${TOUCH}`,
  );
}

start();
Lab.page = lab; // for the tests, and for readers who open the console
// What is on the page now, for tools/record_lab.py.
Lab.seen = () => ({ write: lab.shown, train: { ...runs.at(-1), files: null, samples: lab.samples } });
