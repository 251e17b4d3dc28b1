// Which chapters have been read: ticked in the list of chapters, and kept in this browser alone.
// A chapter is ticked when its end is in sight after a minute on its page, or by hand.
{
  const KEY = "lora-book-read";
  const MINUTE = 60_000;
  const path = link => new URL(link.href, location.href).pathname;
  const chapters = [...document.querySelectorAll("nav.bd-links a")].filter(a =>
    path(a).includes("/notebooks/"),
  );
  const nameOf = link => path(link).split("/").pop();

  function read() {
    try {
      return new Set(JSON.parse(localStorage.getItem(KEY)));
    } catch {
      return new Set(); // what stands there is not ours
    }
  }

  function keep(names) {
    try {
      if (names.size) localStorage.setItem(KEY, JSON.stringify([...names]));
      else localStorage.removeItem(KEY);
    } catch {
      // a full store: the tick lasts as long as the page
    }
    show(names);
  }

  const mark = document.createElement("p");
  mark.className = "read-mark";
  mark.innerHTML =
    '<label><input type="checkbox" autocomplete="off"> I have read this chapter</label> ' +
    "<span>Ticks are kept in this browser alone. </span>" +
    '<button type="button">Clear all ticks</button>';
  const box = mark.querySelector("input");
  const clear = mark.querySelector("button");
  const here = chapters.find(link => link.getAttribute("href") === "#");

  function show(names) {
    for (const link of chapters) {
      link.querySelector(".read-tick")?.remove();
      if (names.has(nameOf(link)))
        link.insertAdjacentHTML("beforeend", '<span class="read-tick" role="img" aria-label="read">✓</span>');
    }
    if (here) box.checked = names.has(nameOf(here));
    clear.hidden = names.size === 0;
  }

  function tick(on) {
    const names = read();
    names[on ? "add" : "delete"](nameOf(here));
    keep(names);
  }

  function wait() {
    let longEnough = false;
    let atEnd = false;
    const look = () => {
      if (!longEnough || !atEnd) return;
      stop();
      tick(true);
    };
    const timer = setTimeout(() => {
      longEnough = true;
      look();
    }, MINUTE);
    const observer = new IntersectionObserver(entries => {
      atEnd = entries.at(-1).isIntersecting;
      look();
    });
    const stop = () => {
      clearTimeout(timer);
      observer.disconnect();
    };
    observer.observe(mark);
    box.addEventListener("change", stop, { once: true }); // whoever ticks by hand decides
  }

  // Where the browser refuses to keep anything (see tidy_pages.py), a tick would be gone with the page.
  if (!("unkept" in document.documentElement.dataset)) {
    if (here) {
      document.querySelector("article").append(mark);
      box.addEventListener("change", () => tick(box.checked));
      clear.addEventListener("click", () => {
        keep(new Set());
        box.focus();
      });
    }
    const names = read();
    show(names);
    if (here && !names.has(nameOf(here))) wait();
    addEventListener("storage", () => show(read()));
  }
}
