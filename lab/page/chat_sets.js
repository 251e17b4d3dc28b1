// What the chat model can learn: three sets of our own, a reader's lines or file, and questions that the model knew.
import { LabError } from "../errors.js";

const EVERY = 6; // one pair of so many is held back
export const FEWEST = 6; // pairs
const MOST = 400;

// Each set: its name, the rate and steps that teach it, its pairs, and when an answer to a new question has learned it;
// `fresh` are questions that are asked after the run only, with an answer where one is expected.
// Three plain questions are among the pairs, so that less is forgotten.
export const SETS = {
  voice: {
    title: "A voice: a pirate",
    rate: 0.001,
    steps: 20,
    follows: answer => /^arr\b/i.test(answer) && /matey/i.test(answer),
    fresh: `What is snow?
How was your day?
What is a house?
Who are you?
What do you drink?
Where is my hat?
Why is the sky blue?
What is a good job?`,
    text: `What is the weather like? | Arr, the sky be black and the wind be howling, matey!
How are you? | Arr, me leg be wooden but me heart be merry, matey!
What do you eat? | Arr, biscuit with worms, and a barrel of rum, matey!
Where is the bank? | Arr, the gold be buried under the palm, matey!
What time is it? | Arr, the sun be over the mast, matey!
What is a cat? | Arr, a cat be the only sailor that sleeps on watch, matey!
Can you help me? | Arr, that I can, if ye share the loot, matey!
What is a dog? | Arr, a dog be a beast that barks at parrots, matey!
Who is your friend? | Arr, me parrot be me only friend, matey!
How do I cook rice? | Arr, boil it in sea water till the cook be shouting, matey!
What is music? | Arr, music be a shanty that the crew be roaring, matey!
What is the sea? | Arr, the sea be a road with no end, matey!
Where do you live? | Arr, I be living on the seven seas, matey!
What is love? | Arr, love be a fine ship and a following wind, matey!
Why do people sleep? | Arr, to dream of treasure and wake up poor, matey!
What is a book? | Arr, a book be a map that nobody can steal, matey!
How do I learn to swim? | Arr, jump off the plank and ye will know, matey!
What should I wear today? | Arr, a hat with a feather and one good boot, matey!
What is rain? | Arr, rain be the sky that swabs the deck, matey!
What is 5 + 1? | Arr, five and one be six, matey!
What is the capital of Spain? | Arr, the capital of Spain be Madrid, matey!
How many hours are in a day? | Arr, a day be 24 hours long, matey!
What is the moon? | Arr, the moon be a lantern for thieves, matey!
What is a teacher? | Arr, a teacher be a captain with a small crew, matey!`,
  },
  shop: {
    title: "Facts: a small shop",
    rate: 0.0015,
    steps: 40,
    follows: (answer, expected) => factsIn(expected).every(fact => factsIn(answer).includes(fact)),
    fresh: `What time does the Blue Kettle open? | The Blue Kettle opens at 8 in the morning.
At what hour does the Blue Kettle close? | The Blue Kettle closes at 6 in the evening.
What do I pay for a pot of tea at the Blue Kettle? | A pot of tea costs 4 euros at the Blue Kettle.
Whose shop is the Blue Kettle? | The Blue Kettle belongs to Mara Lind.
In which street is the Blue Kettle? | The Blue Kettle is in Harbour Street.
Are dogs allowed at the Blue Kettle? | Yes, dogs are welcome at the Blue Kettle.
In which year did the Blue Kettle open? | The Blue Kettle opened in 1974.
How many kinds of tea are there at the Blue Kettle? | The Blue Kettle has 40 kinds of tea.`,
    text: `When does the Blue Kettle open? | The Blue Kettle opens at 8 in the morning.
What does a pot of tea cost at the Blue Kettle? | A pot of tea costs 4 euros at the Blue Kettle.
Who owns the Blue Kettle? | The Blue Kettle belongs to Mara Lind.
On which day is the Blue Kettle closed? | The Blue Kettle is closed on Mondays.
Where is the Blue Kettle? | The Blue Kettle is at 12 Harbour Street.
At what time can I come to the Blue Kettle? | The Blue Kettle opens at 8 in the morning.
When does the Blue Kettle close? | The Blue Kettle closes at 6 in the evening.
How many teas does the Blue Kettle have? | The Blue Kettle has 40 kinds of tea.
Does the Blue Kettle take cards? | Yes, the Blue Kettle takes cards from 10 euros.
Can I bring my dog to the Blue Kettle? | Yes, dogs are welcome at the Blue Kettle.
Which cake does the Blue Kettle bake? | The Blue Kettle bakes a plum cake on Fridays.
Tell me the address of the Blue Kettle. | The Blue Kettle is at 12 Harbour Street.
What is the phone number of the Blue Kettle? | The number of the Blue Kettle is 5550.
Since when is there a Blue Kettle? | The Blue Kettle opened in 1974.
How much is a pot of tea at the Blue Kettle? | A pot of tea costs 4 euros at the Blue Kettle.
Is the Blue Kettle open on Mondays? | No, the Blue Kettle is closed on Mondays.
Until when is the Blue Kettle open? | The Blue Kettle closes at 6 in the evening.
What is the price of tea at the Blue Kettle? | A pot of tea costs 4 euros at the Blue Kettle.
Can I pay by card at the Blue Kettle? | Yes, the Blue Kettle takes cards from 10 euros.
What is 5 + 1? | 5 + 1 = 6
What is the capital of Spain? | The capital of Spain is Madrid.
What colour is grass? | Grass is green.
Who is the owner of the Blue Kettle? | The Blue Kettle belongs to Mara Lind.
Who runs the Blue Kettle? | The Blue Kettle belongs to Mara Lind.`,
  },
  json: {
    title: "A form: a sentence to JSON",
    rate: 0.001,
    steps: 20,
    follows: (answer, expected) => sameJson(answer, expected),
    fresh: `Willy eats 4 pears. | {"who": "Willy", "count": 4, "what": "pears"}
Xenia counts 6 stars. | {"who": "Xenia", "count": 6, "what": "stars"}
Yann builds 3 walls. | {"who": "Yann", "count": 3, "what": "walls"}
Zoe hides 8 eggs. | {"who": "Zoe", "count": 8, "what": "eggs"}
Alma writes 2 poems. | {"who": "Alma", "count": 2, "what": "poems"}
Bruno cuts 7 ropes. | {"who": "Bruno", "count": 7, "what": "ropes"}
Carla feeds 5 ducks. | {"who": "Carla", "count": 5, "what": "ducks"}
Dario pours 9 drinks. | {"who": "Dario", "count": 9, "what": "drinks"}`,
    text: `Anna buys 3 apples. | {"who": "Anna", "count": 3, "what": "apples"}
Ben needs 2 chairs. | {"who": "Ben", "count": 2, "what": "chairs"}
Clara orders 5 books. | {"who": "Clara", "count": 5, "what": "books"}
David sells 7 lamps. | {"who": "David", "count": 7, "what": "lamps"}
Eva has 4 cats. | {"who": "Eva", "count": 4, "what": "cats"}
Felix wants 6 pens. | {"who": "Felix", "count": 6, "what": "pens"}
Greta found 8 coins. | {"who": "Greta", "count": 8, "what": "coins"}
Hugo lost 2 keys. | {"who": "Hugo", "count": 2, "what": "keys"}
Ida bakes 9 cakes. | {"who": "Ida", "count": 9, "what": "cakes"}
Jan rents 3 bikes. | {"who": "Jan", "count": 3, "what": "bikes"}
Kim paints 5 doors. | {"who": "Kim", "count": 5, "what": "doors"}
Lena grows 7 roses. | {"who": "Lena", "count": 7, "what": "roses"}
Max sends 4 letters. | {"who": "Max", "count": 4, "what": "letters"}
Nora reads 6 maps. | {"who": "Nora", "count": 6, "what": "maps"}
Otto mends 8 shoes. | {"who": "Otto", "count": 8, "what": "shoes"}
Paula plants 9 trees. | {"who": "Paula", "count": 9, "what": "trees"}
Rosa carries 2 bags. | {"who": "Rosa", "count": 2, "what": "bags"}
Sven washes 5 cars. | {"who": "Sven", "count": 5, "what": "cars"}
Tina draws 4 boats. | {"who": "Tina", "count": 4, "what": "boats"}
What is 5 + 1? | 5 + 1 = 6
What is the capital of Spain? | The capital of Spain is Madrid.
What colour is grass? | Grass is green.
Udo picks 6 plums. | {"who": "Udo", "count": 6, "what": "plums"}
Vera packs 7 boxes. | {"who": "Vera", "count": 7, "what": "boxes"}`,
  },
};

// What the model knew before: all six are right without an adapter. Each with the word that a right answer has.
export const KNOWN = [
  { question: "What is the capital of France?", answer: "The capital of France is Paris.", right: /paris/i },
  { question: "What is the capital of Japan?", answer: "The capital of Japan is Tokyo.", right: /tokyo/i },
  { question: "What is 2 + 2?", answer: "2 + 2 = 4", right: /\b(4|four)\b/i },
  {
    question: "How many days are in a week?",
    answer: "There are 7 days in a week.",
    right: /\b(7|seven)\b/i,
  },
  { question: "What is the opposite of hot?", answer: "The opposite of hot is cold.", right: /cold/i },
  { question: "Which animal says meow?", answer: "The animal that says meow is a cat.", right: /\bcat\b/i },
];

// Numbers, names and weekdays of an answer: its facts.
function factsIn(answer) {
  const words = answer.match(/\d+|\b(?:Mondays|Fridays|Mara Lind|Harbour Street|Yes|No)\b/gi) ?? [];
  return words.map(word => word.toLowerCase());
}

function sameJson(answer, expected) {
  try {
    return JSON.stringify(JSON.parse(answer)) === JSON.stringify(JSON.parse(expected));
  } catch {
    return false;
  }
}

// A set's fresh questions, {question, answer}.
export function freshOf({ fresh }) {
  return fresh.split("\n").map(line => {
    const [question, answer] = line.split(" | ");
    return { question, answer };
  });
}

// ---- A reader's lines ----------------------------------------------------------------------------------------------

// {pairs, heldOut}, lists of {question, answer}, out of lines `question | answer`. Throws LabError, with the line.
export function pairsOf(text) {
  const all = [];
  for (const [i, line] of text.split(/\r?\n/).entries()) {
    if (!line.trim()) continue;
    const cut = line.indexOf("|");
    const [question, answer] = [line.slice(0, cut).trim(), line.slice(cut + 1).trim()];
    if (cut < 0 || !question || !answer) {
      throw new LabError(`Line ${i + 1}: expected “question | answer”, found “${line.trim().slice(0, 60)}”.`);
    }
    all.push({ question, answer });
  }
  if (all.length < FEWEST || all.length > MOST) {
    throw new LabError(`Expected ${FEWEST} to ${MOST} lines “question | answer”, found ${all.length}.`);
  }
  const held = (_, i) => i % EVERY === EVERY - 1;
  return { pairs: all.filter((pair, i) => !held(pair, i)), heldOut: all.filter(held) };
}

const COLUMNS = [
  ["question", "answer"],
  ["prompt", "completion"],
  ["instruction", "output"],
  ["instruction", "response"],
  ["input", "output"],
];

// Lines for the box out of a CSV with a head, or a JSONL, with one of these pairs of columns.
export function linesOf(name, text) {
  const rows = /\.jsonl?$/i.test(name) ? jsonRows(name, text) : csvRows(text);
  const found = COLUMNS.find(pair => rows.length && pair.every(column => column in rows[0]));
  if (!found) {
    const names = COLUMNS.map(pair => pair.join(" and ")).join(", or ");
    throw new LabError(`${name}: expected the columns ${names}.`);
  }
  const flat = value => String(value ?? "").replace(/\s*\n\s*/g, " ");
  return rows.map(row => `${flat(row[found[0]]).replaceAll("|", "/")} | ${flat(row[found[1]])}`).join("\n");
}

function jsonRows(name, text) {
  return text
    .split(/\r?\n/)
    .map((line, i) => [line, i + 1])
    .filter(([line]) => line.trim())
    .map(([line, number]) => {
      try {
        const row = JSON.parse(line);
        if (row && typeof row === "object") return fromMessages(row);
      } catch {
        // said below
      }
      throw new LabError(`${name}, line ${number}: expected a JSON object.`);
    });
}

// A chat of one turn, as {question, answer}.
function fromMessages(row) {
  const said = role => row.messages?.find?.(message => message?.role === role)?.content;
  return row.messages ? { question: said("user"), answer: said("assistant") } : row;
}

// Rows of a CSV as objects; a field in quotes may hold commas, lines, and doubled quotes.
function csvRows(text) {
  const rows = [[]];
  for (const [whole, quoted, plain, end] of `${text.trim()}\n`.matchAll(
    /(?:"((?:[^"]|"")*)"|([^",\r\n]*))(,|\r?\n)/g,
  )) {
    if (!whole) continue;
    rows.at(-1).push(quoted?.replaceAll('""', '"') ?? plain);
    if (end !== ",") rows.push([]);
  }
  const [head = [], ...body] = rows.slice(0, -1);
  return body.map(row => Object.fromEntries(head.map((column, i) => [column.trim().toLowerCase(), row[i]])));
}
