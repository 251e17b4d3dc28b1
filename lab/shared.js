// What the parts of the page share.
export const $ = id => document.getElementById(`lab-${id}`);

export const MINI = "gpt2-mini"; // the page's own model

export const lab = {
  engine: null, // once the model is loaded
  model: MINI, // its name
  adapters: new Map(), // those that the worker has: {r, kinds}, by name
  kept: [], // what is said of those that this browser keeps: see store.js
  carried: null, // {files, about}: the adapter that the page's address carries
  left: null, // the name of the adapter that writes on the left, in place of the base
  shown: {}, // texts and bars on the page
  samples: [], // {at, prompt, text} of the last run
  promptIsOurs: true, // until the reader types one
};

// Tell the reader; `wrong` in the colour of what went wrong.
export function say(place, text, wrong = false) {
  $(place).textContent = text;
  $(place).classList.toggle("lab-wrong", wrong);
}

export function checkedKinds(fieldset) {
  return [...$(fieldset).querySelectorAll("input:checked")].map(box => box.value);
}

// Put a prompt that shows what an adapter learned into the box, unless the reader has typed one.
export function suggestPrompt(prompt) {
  if (lab.promptIsOurs && prompt) $("prompt").value = prompt;
}

// A slider sends many events. `work` runs once at a time, and once more if it was asked for meanwhile.
export function latest(work) {
  let running = false;
  let again = false;
  return async () => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      try {
        await work();
      } catch (error) {
        say("write-status", error.message, true);
      }
    }
    running = false;
  };
}
