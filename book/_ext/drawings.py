"""Drawings in both themes: what the notebooks hold as SVG on white becomes part of the page, in the page's colours.

A figure's ground goes, its text is set in the page's letters, and each colour becomes a variable that has a second
value in the dark. On a phone letters grow to twelve pixels; where they would grow too much, the drawing scrolls. The
pictures of a knob that are not shown at first lie in a separate file, which is fetched when the reader comes near.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from html import escape, unescape
from pathlib import Path
from typing import Any

from PIL import Image, ImageStat
from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent.parent
LIVE = ROOT / "lora_book" / "show" / "live"
PHONE, LETTERS = 374, 12.2  # pixels: a drawing on a phone of 390, from edge to edge, and the smallest letters there
GROW = 1.5  # times, at most
WIDE = 0.62  # of its size, a letter on average
PICTURE = re.compile(r'<img [^>]*?src="([^"]+\.svg|data:image/svg\+xml;base64,[^"]+)"[^>]*>')
ALT = re.compile(r' alt="([^"]*)"')
COLOUR = re.compile(r"""\b((?:fill|stroke)(?::|="))#([0-9a-f]{6})\b""")
SIZE = re.compile(r'font-size:([\d.]+)px|(?<= )font-size="([\d.]+)"(?! style)')
GROWS = 'style="font-size:max({}px,var(--least))"'
WORDS = re.compile(r'<text style="([^"]*)" x="([\d.-]+)" y="[\d.-]+">([^<]*)</text>')
RASTER = re.compile(r'<image ([^>]*?)(href="data:image/\w+;base64,([^"]+)")')
VARIABLE = re.compile(r"var\(--c([0-9a-f]{6})\)")
KNOB = re.compile(r'<figure class="knob .*?</figure>', re.S)
STYLE = re.compile(r"<style>.*?</style>\n?", re.S)
DATA = re.compile(r'(<script type="application/json" class="knob-data">)(.*?)(</script>)', re.S)
SCRIPT = re.compile(r"<script>\n?(.*?)</script>", re.S)
KIND = re.compile(r'enliven\("([\w-]+)"')


def draw(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Called by Sphinx for each page before it is written."""
    if doctree is None or "body" not in context:
        return
    files = {name: Path(app.srcdir, source) for source, (_, name) in app.env.images.items()}
    seen: set[str] = set()
    frames: list[str] = []

    def knob(match: re.Match[str]) -> str:
        html, later = light_knob(match[0], seen)
        if later:
            key = re.search(r'id="([\w-]+)"', html)[1]  # type: ignore[index]
            write(Path(app.outdir, "_static", "frames", f"{key}.js"), key, later)
            frames.extend(later)
        return html

    def picture(match: re.Match[str]) -> str:
        return in_page(match, files)

    body = PICTURE.sub(picture, KNOB.sub(knob, context["body"]))
    context["body"] = body
    used = sorted(set(VARIABLE.findall(body + "".join(frames))))
    if used:
        context["metatags"] = context.get("metatags", "") + colours(used)


def in_page(match: re.Match[str], files: dict[str, Path]) -> str:
    """The SVG in place of the <img> that shows it; another picture as it was."""
    source, alt = match[1], ALT.search(match[0])
    if source.startswith("data:"):
        svg = base64.b64decode(source.partition(",")[2]).decode()
    elif (file := files.get(source.rpartition("/")[2])) is not None:
        svg = file.read_text(encoding="utf8")
        svg = svg[svg.index("<svg") :]
    else:
        return match[0]
    return themed(svg, unescape(alt[1]) if alt else "")


def themed(svg: str, alt: str) -> str:
    """An SVG with variables for its colours and letters that can grow, named by `alt`."""
    width = float(re.search(r'viewBox="\S+ \S+ (\S+)', svg)[1])  # type: ignore[index]
    shown = re.search(r' width="([\d.]+)', svg)[1]  # type: ignore[index]
    sizes = [float(size) for sizes in SIZE.findall(svg) for size in sizes if size]
    # On a phone letters should have this size, in the drawing's own unit. Where they would grow by more than GROW, the
    # drawing is wider than the phone instead. So is one of boxes with typewriter letters, which have no room to grow.
    most = 1 if "monospace" in svg else GROW
    wanted = LETTERS * width / PHONE
    least_width = max(PHONE, PHONE * wanted / (most * min(sizes, default=wanted)))
    small = wanted * PHONE / least_width
    left, right = beyond(svg, width, small)
    small *= PHONE / (PHONE - left - right)
    style = f"--small:{small:.2f}px;max-width:{shown}px"
    if left or right:
        style += f";--room:0 {right:.0f}px 0 {left:.0f}px"
    if least_width > PHONE:
        style += f";min-width:{least_width:.0f}px"
    svg = re.sub(r'(<svg [^>]*?) width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
    if root := re.match(r'<svg [^>]*?( font-size="([\d.]+)")', svg):
        svg = svg.replace(root[1], "", 1)
        style += f";font-size:max({root[2]}px,var(--least))"
    svg = SIZE.sub(lambda m: f"font-size:max({m[1]}px,var(--least))" if m[1] else GROWS.format(m[2]), svg)
    svg = COLOUR.sub(lambda m: f"{m[1]}var(--c{m[2]})", svg)
    svg = RASTER.sub(lambda m: f'<image {m[1]}class="sheet" {m[2]}' if is_sheet(m[3]) else m[0], svg)
    named = f'<svg role="img" aria-label="{escape(alt)}" style="{style}" '
    wide = " wide" * (least_width > PHONE)
    return f'<div class="drawn{wide}">{svg.replace("<svg ", named, 1)}</div>'


def beyond(svg: str, width: float, size: float) -> tuple[float, float]:
    """How many pixels of a phone words of this size need at the left and at the right of a drawing."""
    left, right = 0.0, width
    for style, x, words in WORDS.findall(svg):
        anchor = re.search(r"text-anchor: ?(\w+)", style)
        before = {"middle": 0.5, "end": 1.0}.get(anchor[1] if anchor else "start", 0.0)
        length = WIDE * size * len(unescape(words))
        left = min(left, float(x) - before * length)
        right = max(right, float(x) + (1 - before) * length)
    left, right = (round(PHONE / width * side) for side in (-left, right - width))
    return left if left > 1 else 0, right if right > 1 else 0


def is_sheet(data: str) -> bool:
    """Whether a picture is mostly light, like a matrix with white for zero: then it is dark in the dark."""
    picture = Image.open(io.BytesIO(base64.b64decode(data))).convert("LA")
    return ImageStat.Stat(picture.getchannel("L"), picture.getchannel("A")).mean[0] > 150


def light_knob(html: str, seen: set[str]) -> tuple[str, list[str]]:
    """A knob without what another of the page brings too, and the frames that come later, if they are pictures."""
    later: list[str] = []
    html = STYLE.sub("", html)  # written to the book's own styles

    def data(match: re.Match[str]) -> str:
        kept = json.loads(match[2])
        bodies = kept.get("bodies", [])
        if any(PICTURE.search(body) for body in bodies):
            later.extend(PICTURE.sub(lambda m: in_page(m, {}), body) for body in bodies)
            packed = "".join(later).encode()
            kept["bodies"], kept["later"] = [], hashlib.sha256(packed).hexdigest()[:8]
        packed = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
        return match[1] + packed + match[3]

    def script(match: re.Match[str]) -> str:
        kind = KIND.search(match[1])
        if kind is None:
            return match[0]
        if kind[1] in seen:
            return f'<script>bookAlive["{kind[1]}"]()</script>'
        seen.add(kind[1])
        return f"<script>{{\n{source(kind[1])}}}</script>"

    return SCRIPT.sub(script, DATA.sub(data, html)), later


def source(kind: str) -> str:
    """The engine and the script of a kind of picture as they are now, which a notebook may have in an older state."""
    name = "knob" if kind == "knob-drawn" else kind.removeprefix("live-")
    return "\n".join((LIVE / file).read_text(encoding="utf8") for file in ("turned.js", f"{name}.js"))


def write(file: Path, key: str, frames: list[str]) -> None:
    """A script with the frames of one knob: scripts are fetched from a folder of files too."""
    file.parent.mkdir(parents=True, exist_ok=True)
    packed = json.dumps(frames, ensure_ascii=False, separators=(",", ":"))
    file.write_text(f'(window.bookFrames ??= {{}})["{key}"] = {packed};', encoding="utf8")


def colours(used: list[str]) -> str:
    """Both values of each colour. On paper it is always light."""
    light = "".join(f"--c{code}:#{code};" for code in used)
    dark = "".join(f"--c{code}:{darkened(code)};" for code in used)
    return f'\n<style class="drawn-colours">html{{{light}}}@media screen{{html[data-theme=dark]{{{dark}}}}}</style>\n'


def darkened(code: str) -> str:
    """The colour for a dark ground: the same hue, its lightness turned over.

    Strong colours are never too dim, and two of one hue still differ. In Oklab
    (https://bottosson.github.io/posts/oklab/), where equal steps look equal.
    """
    r, g, b = (linear(int(code[i : i + 2], 16) / 255) for i in (0, 2, 4))
    long = (0.4122214708 * r + 0.5363325363 * g + 0.0514459929 * b) ** (1 / 3)
    middle = (0.2119034982 * r + 0.6806995451 * g + 0.1073969566 * b) ** (1 / 3)
    short = (0.0883024619 * r + 0.2817188376 * g + 0.6299787005 * b) ** (1 / 3)
    light = 0.2104542553 * long + 0.7936177850 * middle - 0.0040720468 * short
    red = 1.9779984951 * long - 2.4285922050 * middle + 0.4505937099 * short
    yellow = 0.0259040371 * long + 0.7827717662 * middle - 0.8086757660 * short
    turned = 0.21 + (1 - light) * 0.98
    if (red**2 + yellow**2) ** 0.5 > 0.065:
        turned = max(0.57, 0.72 - 0.72 * (light - 0.53))
    elif turned > 0.3:
        turned = max(turned, 0.39)
    long = (turned + 0.3963377774 * red + 0.2158037573 * yellow) ** 3
    middle = (turned - 0.1055613458 * red - 0.0638541728 * yellow) ** 3
    short = (turned - 0.0894841775 * red - 1.2914855480 * yellow) ** 3
    rgb = (
        4.0767416621 * long - 3.3077115913 * middle + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * middle - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * middle + 1.7076147010 * short,
    )
    return "#" + "".join(f"{round(255 * encoded(x)):02x}" for x in rgb)


def linear(x: float) -> float:
    """Light of a value of sRGB."""
    return x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4


def encoded(x: float) -> float:
    """A value of sRGB, from its light."""
    x = min(1.0, max(0.0, x))
    return 12.92 * x if x <= 0.0031308 else 1.055 * x ** (1 / 2.4) - 0.055


def write_styles(app: Sphinx, error: Exception | None) -> None:
    """The knobs' own styles, once for the book."""
    if error is None and app.builder.format == "html":
        rules = "".join((LIVE / name).read_text(encoding="utf8") for name in ("frames.css", "live.css"))
        Path(app.outdir, "_static", "live.css").write_text(rules, encoding="utf8")


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_css_file("live.css", priority=400)  # before the book's own, which have the last word
    app.connect("html-page-context", draw, priority=600)
    app.connect("build-finished", write_styles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
