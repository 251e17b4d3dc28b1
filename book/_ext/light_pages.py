"""What a page does not need before it can be read is left out, or comes later: a slow phone shows its text sooner."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from fontTools import subset
from fontTools.ttLib import TTFont
from PIL import Image
from sphinx.application import Sphinx

SCRIPT = re.compile(r'<script ([^>]*)src="([^"]+)"></script>')
SEARCH = ("searchtools.js", "language_data.js", "searchindex.js", "sphinx_highlight.js")
PICTURE = re.compile(r'<img ((?:(?!loading=)[^>])*?)src="([^":]+\.(?:png|jpe?g|webp))"((?:(?!loading=)[^>])*?)/?>')
ICON_NAME, ICON_RULE = re.compile(r"\bfa-[a-z0-9-]+"), re.compile(r"([^{}]+)\{content:\"\\([0-9a-f]+)\"\}")
THEME_ICON = re.compile("[\ue000-\uf8ff]")  # the theme's own rules have the letters themselves
THEME_CODE = re.compile(r'content:"\\(f[0-9a-f]{3})"')
logging.getLogger("fontTools").setLevel(logging.WARNING)  # else a line for each table of a font
ICON_FONT = re.compile(r"src:url\(\.\./vendor/fontawesome/webfonts/(fa-[\w-]+)\.woff2\)[^}]*")


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Called by Sphinx when all pages are written."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    icons: set[str] = set()
    for page in out.rglob("*.html"):
        text = page.read_text(encoding="utf8")
        head, rest = text.split("</head>", 1) if "</head>" in text else ("", text)
        text = scripts_later(head, page) + "</head>" * bool(head) + pictures_later(rest, page.parent)
        icons |= set(ICON_NAME.findall(text))
        page.write_text(text, encoding="utf8")
    keep_icons(out / "_static", icons)


def scripts_later(head: str, page: Path) -> str:
    """The scripts of a page's head run when its text stands; those of the search on the search's own page alone."""

    def change(match: re.Match[str]) -> str:
        attributes, source = match.groups()
        name = urlsplit(source).path.rpartition("/")[2]
        if name in SEARCH:
            return ""
        if name == "documentation_options.js":  # others read it at once, and it is short
            script = page.parent.joinpath(unquote(urlsplit(source).path)).read_text(encoding="utf8")
            return f"<script>{script}</script>"
        return match[0] if "defer" in attributes else f'<script {attributes}defer src="{source}"></script>'

    # What the search's page does on loading needs all of its scripts in their order.
    return head if page.name == "search.html" else SCRIPT.sub(change, head)


def pictures_later(body: str, folder: Path) -> str:
    """A picture comes when the reader is near, and until then has its place."""

    def change(match: re.Match[str]) -> str:
        before, source, after = match.groups()
        size = ""
        if 'width="' not in before + after:
            with Image.open(folder / unquote(source)) as picture:
                size = f'width="{picture.width}" height="{picture.height}" '
        return f'<img {before}src="{source}"{after} {size}loading="lazy">'

    return PICTURE.sub(change, body)


def keep_icons(static: Path, used: set[str]) -> None:
    """Of the theme's 2,000 icons, those that some page or the theme's own style shows."""
    style = static / "styles" / "pydata-sphinx-theme.css"
    css = style.read_text(encoding="utf8")
    codes = {int(code, 16) for names, code in ICON_RULE.findall(css) if used & set(ICON_NAME.findall(names))}
    codes |= {ord(letter) for letter in THEME_ICON.findall(css)}
    book_theme = (static / "styles" / "sphinx-book-theme.css").read_text(encoding="utf8")
    codes |= {int(code, 16) for code in THEME_CODE.findall(book_theme)} | set(map(ord, THEME_ICON.findall(book_theme)))
    fonts = static / "vendor" / "fontawesome" / "webfonts"
    for name in set(ICON_FONT.findall(css)):
        font = TTFont(fonts / f"{name}.ttf")
        options = subset.Options(flavor="woff", notdef_outline=True)
        cut = subset.Subsetter(options)
        cut.populate(unicodes=codes)
        cut.subset(font)
        subset.save_font(font, fonts / f"{name}.woff", options)
        for whole in ("ttf", "woff2"):
            (fonts / f"{name}.{whole}").unlink()
    to = r'src:url(../vendor/fontawesome/webfonts/\1.woff) format("woff")'
    style.write_text(ICON_FONT.sub(to, css), encoding="utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("build-finished", lighten, priority=900)  # when the other extensions have had their say
    return {"parallel_read_safe": True, "parallel_write_safe": True}
