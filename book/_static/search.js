// The search finds sections as the reader types. Its texts are a script of their own (_ext/sections.py), fetched when
// the search is first touched; Enter leads to the first section, and where none is found to the search of all pages.
{
  const MOST = 8;
  const root = document.documentElement.dataset.content_root ?? "";
  const form = document.querySelector(
    "#pst-search-dialog form, .search-button__search-container form, form.bd-search",
  );
  const input = form?.querySelector("input[type=search], input[name=q]");
  let sections = null;
  let asked = false;

  // Letters that people type differently become one: capitals, α and alpha, dashes.
  const plain = text =>
    text
      .normalize("NFKC")
      .toLowerCase()
      .replace(/α/g, "alpha")
      .replace(/√/g, "root ")
      .replace(/[’']/g, "'")
      .replace(/[‐–—−]/g, "-");
  // What people type, and the book's own words for it.
  const SAME = { "catastrophic forgetting": "forgetting", oom: "out of memory", lr: "learning rate" };
  const meant = typed => SAME[plain(typed).trim()] ?? plain(typed).trim();
  const stem = word => (word.length > 4 ? word.replace(/(ting|ing|ed|es|s|e)$/, "") : word);
  const split = text => text.split(/[^\p{L}\p{N}=+\-_.]+/u).filter(Boolean);
  const escaped = text => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
  // The words as they were typed, at the beginning of a word.
  const phrase = query => new RegExp(`(?<![\\p{L}\\p{N}])${escaped(query).replace(/ +/g, "\\s*")}`, "u");

  function score(section, query, stems, asTyped) {
    let points = 0;
    if (section.head === query) points = 100;
    else if (asTyped.test(section.head)) points = 60;
    else if (stems.every(word => section.heads.some(other => other.startsWith(word)))) points = 40;
    else {
      const at = section.text.search(asTyped);
      const everywhere = stems.every(word => section.words.some(other => other.startsWith(word)));
      if (at >= 0) points = 12 + (section.text.match(new RegExp(asTyped, "gu")) ?? []).length;
      else if (everywhere) points = 6;
      points = Math.min(points, 20);
    }
    return points && points + 9 * (section.preferred - 1);
  }

  function find(typed) {
    const query = meant(typed);
    if (!query) return [];
    const stems = split(query).map(stem);
    const asTyped = phrase(query);
    return sections
      .map(section => ({ section, points: score(section, query, stems, asTyped) }))
      .filter(({ points }) => points > 0)
      .sort((a, b) => b.points - a.points)
      .slice(0, MOST)
      .map(({ section }) => section);
  }

  function read() {
    sections = window.bookSections.map(([title, page, address, text, preferred]) => {
      const [head, body] = [plain(title), plain(text)];
      return {
        title,
        page,
        address,
        said: text,
        head,
        text: body,
        heads: split(head).map(stem),
        words: split(body),
        preferred,
      };
    });
    show();
  }

  function ask() {
    if (asked) return;
    asked = true;
    const file = document.createElement("script");
    file.src = `${root}_static/sections.js`;
    file.addEventListener("load", read);
    document.head.append(file);
  }

  const list = document.createElement("ul");
  list.className = "book-found";
  list.id = "book-found";
  list.ariaLabel = "Sections found";
  list.hidden = true;
  const said = document.createElement("p");
  said.className = "book-found-said";
  said.role = "status";

  // What stands around the words, a line of it, with the words in bold.
  function around(section, query) {
    const at = section.text.search(phrase(query));
    const from = at < 40 ? 0 : section.said.indexOf(" ", at - 40) + 1;
    const end = from + 110;
    const line = [(from ? "… " : "") + section.said.slice(from, at < 0 ? end : at)];
    if (at >= 0) {
      const words = document.createElement("b");
      words.textContent = section.said.slice(at, at + query.length);
      line.push(words, section.said.slice(at + query.length, end));
    }
    return line;
  }

  function show() {
    const found = sections && input.value.trim() ? find(input.value) : [];
    list.replaceChildren(
      ...found.map(section => {
        const item = document.createElement("li");
        const link = document.createElement("a");
        link.href = root + section.address;
        const [title, page, line] = ["b", "i", "span"].map(kind => document.createElement(kind));
        title.textContent = section.title;
        page.textContent = section.title === section.page ? "" : section.page;
        line.append(...around(section, meant(input.value)));
        link.append(title, page, line);
        item.append(link);
        return item;
      }),
    );
    list.hidden = !found.length;
    said.textContent =
      sections && input.value.trim()
        ? found.length
          ? ""
          : "No section has these words. Enter searches all pages."
        : "";
  }

  // Arrows walk from the field into the list and back.
  function walk(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || list.hidden) return;
    event.preventDefault();
    const stops = [input, ...list.querySelectorAll("a")];
    stops.at((stops.indexOf(document.activeElement) + step + stops.length) % stops.length).focus();
  }

  if (input) {
    form.after(list, said);
    input.setAttribute("aria-controls", list.id);
    input.autocomplete = "off";
    for (const kind of ["focus", "input"]) input.addEventListener(kind, ask);
    input.addEventListener("input", show);
    form.addEventListener("submit", event => {
      const first = !list.hidden && list.querySelector("a");
      if (!first) return;
      event.preventDefault();
      first.click();
    });
    for (const part of [input, list]) part.addEventListener("keydown", walk);
    list.addEventListener("click", () => document.querySelector("dialog[open]")?.close());
  }
}
