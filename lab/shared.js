// What the parts of the page share.
export const $ = id => document.getElementById(`lab-${id}`);

export const lab = {
  engine: null, // once the model is loaded
  adapters: new Map(), // those that the worker has: {r, kinds}, by name
  shown: {}, // texts and bars on the page
  samples: [], // {at, prompt, text} of the last run
};

// Tell the reader; `wrong` in the colour of what went wrong.
export function say(place, text, wrong = false) {
  $(place).textContent = text;
  $(place).classList.toggle("lab-wrong", wrong);
}

export function checkedKinds(fieldset) {
  return [...$(fieldset).querySelectorAll("input:checked")].map(box => box.value);
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
