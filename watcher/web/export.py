"""Export: write the report of a run, with its curves where they can be drawn."""

from __future__ import annotations

import time
import warnings
from pathlib import Path

from watcher.errors import ConfigError, WebError
from watcher.files.atomic_io import replace_file
from watcher.store.database_file import iso
from watcher.store.reading import Reader
from watcher.web.report import make_report
from watcher.web.report_data import read_report

_NARROW_INCHES = 4.6
_HINT = "give a file in a folder that is there and that you may write"


def export(reader: Reader, file: Path) -> str | None:
    """Write a report of the run into a file; one that is there is replaced as a whole.

    Returns:
        Why it has no picture, see `rendered`.

    Raises:
        StoreError: the database cannot be read now.
        WebError: the file cannot be written.
    """
    if file.is_dir() or not file.absolute().parent.is_dir():
        # Told before anything is drawn, which takes seconds.
        reason = "it is a folder" if file.is_dir() else "its folder is not there"
        raise WebError(f"cannot write {file}: {reason}", hint=_HINT)
    text, missing = rendered(reader)
    try:
        replace_file(file.absolute(), text.encode(), mode=0o644)
    except OSError as error:
        raise WebError(f"cannot write {file}: {error.strerror}", hint=_HINT) from error
    return missing


def rendered(reader: Reader) -> tuple[str, str | None]:
    """Return a report of the run; and why it has no picture, None when it has or needs none yet.

    Raises:
        StoreError: the database cannot be read now.
    """
    data = read_report(reader)
    missing = None
    pictures: tuple[str, ...] = ()
    if data.look.curve:
        try:
            pictures = _draw(reader)
        except ConfigError as error:
            missing = f"{error.message}: {error.hint}"
    note = "the curves are left out: matplotlib is not installed" if missing else ""
    return make_report(data, pictures, at=iso(time.time()), note=note), missing


def _draw(reader: Reader) -> tuple[str, ...]:
    from watcher.plot.close_up import with_close_ups
    from watcher.plot.figure import to_svg
    from watcher.plot.gather import read_run
    from watcher.plot.series import make_picture

    run = read_run(reader, categories=True, losses=True)
    picture = with_close_ups(make_picture([run], categories=True, losses=True))
    if not picture.panels:
        return ()
    with warnings.catch_warnings():
        # matplotlib's, of names so long that there is little room left beside them.
        warnings.simplefilter("ignore", UserWarning)
        return to_svg(picture), to_svg(picture, width_inches=_NARROW_INCHES)
