// What a page needs beyond its style: the keyboard reaches what scrolls sideways, and paper shows what is folded.
{
  const SCROLLS = ".drawn.wide, div.math, .pst-scrollable-table-container, .bd-article pre";

  function reach() {
    for (const part of document.querySelectorAll(SCROLLS)) {
      if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
      else part.removeAttribute("tabindex");
    }
  }

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(reach, 150);
  });
  addEventListener("load", reach);

  addEventListener("beforeprint", () => {
    for (const fold of document.querySelectorAll("details:is(.choice, .deeper):not([open])")) {
      fold.open = true;
      fold.dataset.printed = "";
    }
  });
  addEventListener("afterprint", () => {
    for (const fold of document.querySelectorAll("details[data-printed]")) {
      fold.open = false;
      delete fold.dataset.printed;
    }
  });
}
