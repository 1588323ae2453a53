"""Fonts: find some for what matplotlib's own has no signs for, Chinese say. Reads font files.

matplotlib falls back from one font to the next, but only over names that it is given, and finds out
while drawing what none of them has.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from watcher.plot.series import Picture

OWN = "DejaVu Sans"  # matplotlib brings it
# matplotlib can draw none that have colours, and one that it brings has a box for every sign.
_USELESS = ("emoji", "color", "last resort")


def signs_of(picture: Picture) -> set[str]:
    """Return the characters that a picture needs, those that every font has left out."""
    labels = [curve.label for panel in picture.panels for curve in panel.curves]
    marked = [
        mark.point.checkpoint
        for panel in picture.panels
        for curve in panel.curves
        for mark in curve.marks
    ]
    titles = [text for panel in picture.panels for text in (panel.title, panel.note, panel.axis)]
    text = "".join([picture.title, *labels, *marked, *titles, *picture.notes])
    return {sign for sign in text if not sign.isascii() and not sign.isspace()}


def find_fonts(signs: set[str]) -> tuple[list[str], set[str]]:
    """Return which fonts to draw with, our own first, and the signs that none of them has."""
    from matplotlib.font_manager import findfont, fontManager

    families, left = [OWN], set(signs)
    if left:
        left -= _drawn_by(findfont(OWN))
    for font in fontManager.ttflist if left else ():
        if any(word in font.name.lower() for word in _USELESS) or font.name in families:
            continue
        drawn = _drawn_by(font.fname) & left
        if drawn:
            families.append(font.name)
            left -= drawn
        if not left:
            break
    return families, left


@contextmanager
def quiet() -> Iterator[None]:
    """Leave unsaid what matplotlib says of signs without a font and of little room."""
    log = logging.getLogger("matplotlib.font_manager")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        log.setLevel(level)


def _drawn_by(path: str) -> set[str]:
    from matplotlib.ft2font import FT2Font

    try:
        return {chr(code) for code in FT2Font(Path(path)).get_charmap()}
    except (OSError, RuntimeError):  # removed since it was listed, or broken
        return set()
