"""Figure: a picture drawn with matplotlib, as an SVG element or as the content of a file."""

from __future__ import annotations

import hashlib
import io
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from watcher.plot.fonts import find_fonts, quiet, signs_of
from watcher.plot.legend import legend_of
from watcher.plot.library import load, load_matplotlib
from watcher.plot.series import Panel, Picture, short_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_INCHES = 10.0
SUFFIXES = (".png", ".svg", ".pdf")
_PANEL_INCHES, _HEAD_INCHES = 3.2, 0.8
_ROW_INCHES, _NOTE_INCHES = 0.2, 0.15
_NARROW_INCHES = 6.5
_DPI = 144
_LETTERS_AN_INCH = 14
# Where a reader has not got our font, one of these is there, and no text gets wider in it.
_OTHER_FONTS = "Verdana, Arial, sans-serif"
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "checkpoint-watcher",  # the same rows give the same bytes
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
    "figure.titlesize": 12,
}


def to_svg(picture: Picture, *, width_inches: float = WIDTH_INCHES, prefix: str = "") -> str:
    """Draw a picture as an `<svg>` element that can stand in an HTML page as it is.

    Text stays text, nothing is fetched, and no style reaches outside of the element. It has a
    viewBox, so CSS may scale it (`svg {width: 100%; height: auto}`).

    Args:
        picture: What to draw; at least one panel.
        width_inches: How wide, at 72 points an inch. Below 6.5 the legends are under the panels
            and not beside them, for narrow screens.
        prefix: Begins every id; by default it depends on what is drawn, so that several elements
            can stand in one page.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    with prepared(picture):
        figure = draw(picture, width_inches=width_inches)
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
    digest = hashlib.sha256(repr((picture, width_inches)).encode()).hexdigest()
    return _embeddable(stream.getvalue(), picture, prefix or f"p{digest[:10]}-")


def to_bytes(picture: Picture, suffix: str) -> bytes:
    """Draw a picture as the content of a file.

    Args:
        picture: What to draw; at least one panel.
        suffix: One of `SUFFIXES`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    if suffix == ".svg":
        return f'<?xml version="1.0" encoding="utf-8"?>\n{to_svg(picture)}\n'.encode()
    with prepared(picture):
        stream = io.BytesIO()
        undated: dict[str, Any] = {"CreationDate": None} if suffix == ".pdf" else {}
        draw(picture).savefig(stream, format=suffix[1:], metadata=undated)
    return stream.getvalue()


def size_of(content: bytes) -> str:
    """Return how wide and high the content of a file is: a PNG's pixels, else points."""
    if content.startswith(b"\x89PNG"):
        # https://www.w3.org/TR/png-3/#11IHDR
        return "x".join(str(int.from_bytes(content[at : at + 4], "big")) for at in (16, 20))
    found = re.search(rb'(?:viewBox="|/MediaBox \[ *)0 0 ([\d.]+) ([\d.]+)', content)
    return f"{float(found[1]):.0f}x{float(found[2]):.0f} pt" if found else "of unknown size"


def boxes(picture: Picture) -> str:
    """Return the characters that no font here has: a box stands for each, but in an SVG file."""
    load_matplotlib()
    return "".join(sorted(find_fonts(signs_of(picture))[1]))


@contextmanager
def prepared(picture: Picture) -> Iterator[None]:
    """Have matplotlib there and set for a picture, whatever a user's matplotlibrc says."""
    matplotlib = load_matplotlib()
    load("matplotlib.figure")
    with matplotlib.rc_context(), quiet():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        matplotlib.rcParams["font.family"] = find_fonts(signs_of(picture))[0]
        yield


def draw(picture: Picture, *, width_inches: float = WIDTH_INCHES) -> Figure:
    """Draw a picture and return matplotlib's figure, laid out; to be called in `prepared`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from watcher.plot.panel import DrawnPanel, scale_steps

    beside = width_inches >= _NARROW_INCHES
    letters = int(width_inches * _LETTERS_AN_INCH)
    notes = [line for note in picture.notes for line in textwrap.wrap(note, letters)]
    heights = [_height(panel, beside=beside) for panel in picture.panels]
    high = sum(heights) + _HEAD_INCHES + _NOTE_INCHES * len(notes)
    figure = Figure(figsize=(width_inches, high), layout="constrained", dpi=_DPI)
    FigureCanvasAgg(figure)
    title = short_label(picture.title, letters // 2)
    figure.suptitle(title, x=0.01, ha="left", weight="bold", gid="title")
    if notes:
        figure.supxlabel("\n".join(notes), x=0.01, ha="left", fontsize=8, gid="notes")
    grid = figure.subplots(len(heights), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[
        :, 0
    ]
    drawn = [
        DrawnPanel(place, panel, axes, letters * 2 // 3)
        for place, (panel, axes) in enumerate(zip(picture.panels, grid, strict=True))
    ]
    lowest = sum(not panel.closer for panel in picture.panels) - 1
    for place, (one, panel) in enumerate(zip(drawn, picture.panels, strict=True)):
        one.draw(beside=beside, last=place >= lowest)
        steps = panel.steps if panel.closer else picture.steps
        scale_steps(one.axes, *steps, shown=place >= lowest)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out: once is enough
    for one in drawn:
        one.write_ranks()
    return figure


def _height(panel: Panel, *, beside: bool) -> float:
    rows = sum(entry.text.count("\n") + 1 for entry in legend_of(panel)) * _ROW_INCHES
    return max(_PANEL_INCHES, rows) if beside else _PANEL_INCHES + rows


def _embeddable(svg: str, picture: Picture, prefix: str) -> str:
    """Cut matplotlib's SVG down to its element, with ids and style of its own."""
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, count=1, flags=re.DOTALL)
    # Its style rule would hold for the whole page: as attributes it holds for this element.
    svg = re.sub(r"\s*<defs>\s*<style.*?</style>\s*</defs>", "", svg, count=1, flags=re.DOTALL)
    svg = re.sub(r'(?<![\w-])id="', f'id="{prefix}', svg)
    svg = re.sub(r'((?:xlink:)?href="|url\()#', rf"\1#{prefix}", svg)
    svg = re.sub(r"(font-family: '[^;\"]*')(?=[;\"])", rf"\1, {_OTHER_FONTS}", svg)
    told = ". ".join([picture.title, *(panel.title for panel in picture.panels), *picture.notes])
    head = '<svg role="img" stroke-linejoin="round" stroke-linecap="butt" '
    first, rest = svg.split(">", 1)
    return f"{head}{first[5:]}>\n <title>{escape(told)}</title>{rest}"
