"""Folder: names of event files, and the order that TensorBoard reads them in."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from watcher.tensorboard.points import EARLIER_PREFIX, Point

# TensorBoard reads every file with `tfevents` in its name.
_NUMBER = re.compile(r"events\.out\.tfevents\.(\d{10})\.")
_OURS = re.compile(
    r"events\.out\.tfevents\.(?P<number>\d{10})\.checkpoint-watcher"
    r"\.(?P<step>\d+)\.(?P<identity>[0-9a-f]{16})\.v2"
)
TEMPORARY_NAME = ".checkpoint-watcher.tmp"
# So long a TensorBoard that is open may take to look again. The one without TensorFlow opens the
# last file each time, and never gets over its loss.
_LOOK_SECONDS = 60

# Where Model Garden writes its own evaluations, in MODEL_DIR.
MODEL_GARDEN_NAME = "validation"

Write = Callable[[Point, Path], None]


class EventFile(msgspec.Struct, frozen=True):
    """An event file of ours, as its name tells."""

    path: Path
    number: int
    step: int
    identity: str


def folder_of(eval_dir: Path, name: str) -> Path:
    """Return where the files of an eval input lie.

    Model Garden's trainer may evaluate by itself, and then writes into `validation`, too: a curve
    of two evaluations would be neither's, so ours is in a folder beside it.
    """
    folder = eval_dir / name
    if name != MODEL_GARDEN_NAME:
        return folder
    beside = eval_dir / f"{name}-checkpoint-watcher"
    theirs = set(_numbers(folder)) - {file.number for file in files_of_ours(folder)}
    return beside if theirs or beside.exists() else folder


def files_of_ours(folder: Path) -> list[EventFile]:
    """Return our files in a folder, in the order of their names; none where it is not there."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for path in folder.iterdir():
            if match := _OURS.fullmatch(path.name):
                number, step = int(match["number"]), int(match["step"])
                found.append(EventFile(path, number, step, match["identity"]))
    return sorted(found, key=lambda file: file.path.name)


def arrange(folder: Path, points: Sequence[Point], write: Write, seconds: float) -> int:
    """Bring the files of one eval input up to date: those of `folder`, and of the earlier ones.

    Each point has a file, in its folder, and the last files of all steps are in the order of the
    steps. Whatever happens on the way, calling it again ends in the same files. A file of ours
    that no point stands for stays where it is, unless another one has its step.

    Args:
        folder: It is made when there is something to write.
        points: One a folder and step.
        write: Writes the file of a point that has none.
        seconds: The present time, since the epoch.

    Returns:
        How many files were written.

    Raises:
        OSError: a folder cannot be read or written.
    """
    wanted: dict[Path, dict[int, Point]] = {folder: {}}
    for path in folder.glob(f"{EARLIER_PREFIX}*"):
        wanted[path] = {}
    for point in points:
        wanted.setdefault(folder / point.earlier, {})[point.step] = point
    places = {point.identity: folder / point.earlier for point in points}
    written = 0
    # The present one last: the others take files out of it.
    for path in sorted(wanted, key=lambda path: (path == folder, path)):
        written += _put_in_order(path, wanted[path], _find(wanted), places, write, seconds)
    for path in wanted:
        _tidy(path, places, _find(wanted), seconds)
    return written


_Found = Mapping[str, list[EventFile]]


def _find(folders: Mapping[Path, object]) -> _Found:
    """Return our files of all these folders, by the identity of what they show."""
    found: dict[str, list[EventFile]] = {}
    for folder in folders:
        for file in files_of_ours(folder):
            found.setdefault(file.identity, []).append(file)
    return found


def _put_in_order(
    folder: Path,
    wanted: Mapping[int, Point],
    found: _Found,
    places: Mapping[str, Path],
    write: Write,
    seconds: float,
) -> int:
    present = _present(folder, places)
    top = max([int(seconds) - 1, *_numbers(folder)])
    written, highest = 0, -1
    for step in sorted(wanted.keys() | present.keys()):
        point, last = wanted.get(step), present.get(step)
        if last and last.number > highest and (not point or point.identity == last.identity):
            highest = last.number
            continue
        identity = point.identity if point else last.identity if last else ""
        folder.mkdir(parents=True, exist_ok=True)
        top = highest = top + 1
        target = folder / _file_name(top, step, identity)
        if source := found.get(identity):
            _give_name(source[-1].path, target)
        elif point:
            with _placing(target) as temporary:
                write(point, temporary)
            written += 1
    return written


def _present(folder: Path, places: Mapping[str, Path]) -> dict[int, EventFile]:
    """Return the last file of each step, those left out that belong into another folder."""
    files = files_of_ours(folder)
    return {file.step: file for file in files if places.get(file.identity, folder) == folder}


def _tidy(folder: Path, places: Mapping[str, Path], found: _Found, seconds: float) -> None:
    """Remove our files that another one has replaced, once no TensorBoard is on its way past."""
    last = set(_present(folder, places).values())
    numbers = _numbers(folder)
    for file in files_of_ours(folder):
        place = places.get(file.identity, folder)
        moved = place == folder or any(one.path.parent == place for one in found[file.identity])
        after = [number for number in numbers if number > file.number]
        if file not in last and moved and after and min(after) < seconds - _LOOK_SECONDS:
            file.path.unlink(missing_ok=True)


def _give_name(source: Path, target: Path) -> None:
    """Let a file be found under another name too."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links, or with a limit to them
        with _placing(target) as temporary:
            shutil.copyfile(source, temporary)


@contextlib.contextmanager
def _placing(target: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, whose file gets its name when all went well."""
    temporary = target.with_name(TEMPORARY_NAME)
    try:
        yield temporary
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _file_name(number: int, step: int, identity: str) -> str:
    return f"events.out.tfevents.{number:010d}.checkpoint-watcher.{step}.{identity}.v2"


def _numbers(folder: Path) -> list[int]:
    """Return the numbers of all event files, others' too: names of ours must come after them."""
    with contextlib.suppress(FileNotFoundError):
        matches = (_NUMBER.match(path.name) for path in folder.iterdir())
        return [int(match[1]) for match in matches if match]
    return []
