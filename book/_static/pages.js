// What a page needs beyond its style: the keyboard reaches what scrolls sideways, long lists of the same kind are one stop
// of the Tab key, in which the arrows walk, and paper is light and shows what is folded.
{
  const SCROLLS = ".drawn.wide, div.math, .pst-scrollable-table-container, .bd-article pre";

  function reach() {
    for (const part of document.querySelectorAll(SCROLLS)) {
      if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  }

  // Of these parts the Tab key reaches one, at first `start`; arrows lead from there to the others that can be seen.
  function oneStop(parts, start = parts[0]) {
    const stop = part => {
      for (const other of parts) other.tabIndex = other === part ? 0 : -1;
    };
    if (start) stop(start);
    for (const part of parts) {
      part.addEventListener("focus", () => stop(part));
      part.addEventListener("keydown", event => {
        const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
        if (!step) return;
        const seen = parts.filter(other => other.checkVisibility({ visibilityProperty: true }));
        const next = seen[seen.indexOf(part) + step];
        if (!next) return;
        event.preventDefault();
        next.focus();
      });
    }
    return stop;
  }

  function lists() {
    const chapters = [
      ...document.querySelectorAll(".bd-sidebar-primary .navbar-brand, nav.bd-links :is(a, summary)"),
    ];
    oneStop(
      chapters,
      chapters.find(link => link.classList.contains("current")),
    );
    oneStop([...document.querySelectorAll(".bd-sidebar-secondary nav a")]);
    const copies = [...document.querySelectorAll(".copybtn")];
    const stop = oneStop(copies);
    // The button of the first cell in sight is the one that is reached.
    const place = new IntersectionObserver(seen => {
      const first = seen.find(entry => entry.isIntersecting);
      if (first && !copies.includes(document.activeElement)) stop(first.target);
    });
    for (const copy of copies) place.observe(copy);
  }

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(reach, 150);
  });
  addEventListener("load", () => {
    reach();
    lists();
  });

  const page = document.documentElement;
  let theme = null;
  addEventListener("beforeprint", () => {
    theme = page.dataset.theme;
    page.dataset.theme = "light";
    for (const fold of document.querySelectorAll("details:is(.choice, .deeper):not([open])")) {
      fold.open = true;
      fold.dataset.printed = "";
    }
  });
  addEventListener("afterprint", () => {
    page.dataset.theme = theme;
    for (const fold of document.querySelectorAll("details[data-printed]")) {
      fold.open = false;
      delete fold.dataset.printed;
    }
  });
}
