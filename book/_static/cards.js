// Cards: what a glossary word or a citation leads to, shown where it stands; the words are in the page (_ext/cards.py).
// A mouse that rests on the link shows its card, so does the keyboard's focus, and a first tap; the second tap follows.
{
  const texts = JSON.parse(document.getElementById("book-cards").textContent);
  const article = document.querySelector("article");
  const card = document.createElement("span");
  card.className = "book-card";
  card.hidden = true;
  card.innerHTML =
    '<span role="tooltip" id="book-card-words"><b></b><span></span></span><a></a><i>Tap again to go there.</i>';
  const words = card.querySelector("[role=tooltip]");
  const source = card.querySelector("a");
  const again = card.querySelector("i");
  let shown = null;
  let waiting = 0;
  let tapped = null;

  const textOf = link =>
    link.classList.contains("headerlink") ? undefined : texts[link.getAttribute("href")];
  const linkAt = event => {
    const link = event.target.closest?.("a");
    return link && textOf(link) && !card.contains(link) ? link : null;
  };

  function hide() {
    clearTimeout(waiting);
    shown?.removeAttribute("aria-describedby");
    shown = null;
    card.hidden = true;
  }

  function show(link, { by, y } = {}) {
    clearTimeout(waiting);
    if (shown === link) return;
    hide();
    const { name, text, url } = textOf(link);
    words.firstChild.textContent = name;
    words.lastChild.textContent = text;
    source.hidden = !url;
    if (url) {
      source.href = url;
      source.textContent = url.replace("https://", "");
    }
    again.hidden = by !== "touch";
    link.removeAttribute("title"); // the browser would show it beside the card
    link.after(card);
    link.setAttribute("aria-describedby", words.id);
    card.hidden = false;
    place(link, y);
    shown = link;
  }

  // Below the line that is pointed at, or above it where there is no room; never beyond the page's edges.
  function place(link, y) {
    card.style.left = card.style.top = 0;
    const home = card.getBoundingClientRect();
    const lines = [...link.getClientRects()];
    const line = lines.find(({ top, bottom }) => y >= top && y <= bottom) ?? lines[0];
    const room = document.documentElement.clientWidth - home.width - 8;
    const below = line.bottom + home.height + 8 < innerHeight || line.top < home.height + 70;
    card.style.left = `${Math.max(8, Math.min(line.left, room)) - home.left}px`;
    card.style.top = `${(below ? line.bottom + 4 : line.top - home.height - 4) - home.top}px`;
  }

  const later = (act, wait) => {
    clearTimeout(waiting);
    waiting = setTimeout(act, wait);
  };
  article.addEventListener("pointerover", event => {
    if (event.pointerType === "touch") return;
    const link = linkAt(event);
    if (link) later(() => show(link, { y: event.clientY }), 150);
    else if (card.contains(event.target)) clearTimeout(waiting);
    else if (shown && shown !== document.activeElement) later(hide, 250);
    else if (!shown) clearTimeout(waiting);
  });
  article.addEventListener("pointerleave", () => shown !== document.activeElement && later(hide, 250));
  article.addEventListener("pointerdown", event => {
    tapped = event.pointerType === "touch" ? { link: linkAt(event), open: shown } : null;
  });
  article.addEventListener("focusin", event => {
    const link = linkAt(event);
    if (link && !tapped) show(link);
  });
  article.addEventListener("focusout", event => {
    if (shown && event.relatedTarget !== source && event.relatedTarget !== shown) hide();
  });
  article.addEventListener("click", event => {
    const link = linkAt(event);
    if (!link || tapped?.link !== link || tapped.open === link) return;
    event.preventDefault();
    show(link, { by: "touch", y: event.clientY });
  });
  addEventListener("pointerdown", event => {
    if (shown && !card.contains(event.target) && !shown.contains(event.target)) hide();
  });
  addEventListener("keydown", event => {
    tapped = null;
    if (event.key !== "Escape" || !shown) return;
    if (document.activeElement === source) shown.focus();
    hide();
  });
}
