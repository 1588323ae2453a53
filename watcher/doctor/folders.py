"""Folders: whether checkpoints appear in MODEL_DIR, and how well its file system serves us."""

from __future__ import annotations

import difflib
import os
import re
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from watcher.config.carrier import LocalSettings
from watcher.config.run import RunSettings
from watcher.config.source import SourceSettings
from watcher.doctor.cadence import newest
from watcher.doctor.finding import Finding, duration
from watcher.errors import CorruptCheckpoint, IncompleteCheckpoint, ModelDirError
from watcher.files.mounts import Mount, mount_of
from watcher.launch.processes import Trainer, trainer_on
from watcher.sources import passed_over
from watcher.sources.choice import CheckpointSource, open_source
from watcher.store import PINS_NAME
from watcher.types import FoundCheckpoint

_SIBLINGS = 1000
_ALIKE = 0.8
_NO_LINKS = frozenset(("vfat", "msdos", "exfat"))


def present(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that is there, without links."""
    for folder in (path, *path.parents):
        if folder.is_dir():
            return folder.resolve()
    return Path("/")


def working_directory(
    run: RunSettings, carrier: LocalSettings, running: Sequence[Trainer]
) -> list[Finding]:
    """Say where relative paths in pipeline.config begin, where that is set or a trainer tells."""
    trainer = trainer_on(run.model_path, running)
    theirs = trainer.folder if trainer else None
    check, given = "working_directory", carrier.working_directory
    if given and not carrier.working_path.is_dir():
        text = f"working_directory ({given}) is not a folder"
        return [Finding(check, "error", text, "give the folder that the trainer is started in")]
    if trainer is None or theirs is None:
        return []
    if given and carrier.working_path.resolve() != theirs.resolve():
        text = (
            f"working_directory is {given}, and trainer {trainer.pid} was started in {theirs}:"
            f" relative paths in {trainer.kind.configuration} mean other files to it"
        )
        return [Finding(check, "warning", text, f"--working-directory {shlex.quote(str(theirs))}")]
    text = f"relative paths begin at {theirs}, where trainer {trainer.pid} was started"
    return [Finding(check, "ok", text)]


def model_dir(
    run: RunSettings, settings: SourceSettings, running: Sequence[Trainer]
) -> list[Finding]:
    """Say whether checkpoints appear in MODEL_DIR, or which other folder they may appear in."""
    folder = run.model_path
    ours = [trainer for trainer in running if trainer.model_dir == folder.resolve()]
    if not folder.is_dir():
        return [_missing(folder, settings, running)]
    source = open_source(settings, folder, run.evaluator)
    found = source.scan()
    others = [
        Finding("passed over", "note" if found else "warning", str(one), one.remedy)
        for one in passed_over.look(folder, source.format)
        if found or one.kind != "folder"  # `_elsewhere` names that as the one to give
    ]
    if found:
        last = newest(found)
        age = duration(max(0.0, time.time() - last.written_at))
        writing = f"; trainer {ours[0].pid} writes here" if ours else ""
        message = f"{len(found)} checkpoints, {last.name} written {age} ago{writing}"
        return [Finding("model_dir", "ok", message), *_barred(last, source), *others]
    if ours:
        message = f"no checkpoint yet; trainer {ours[0].pid} writes here"
        return [Finding("model_dir", "ok", message), *others]
    if elsewhere := _elsewhere(folder, settings, running):
        return [elsewhere, *others]
    if others:
        return [Finding("model_dir", "warning", f"no checkpoint to evaluate in {folder}"), *others]
    return [Finding("model_dir", "ok", f"no checkpoint in {folder} yet, and no trainer is seen")]


def _barred(checkpoint: FoundCheckpoint, source: CheckpointSource) -> list[Finding]:
    """Say that this user may not read what the trainer saves."""
    reason = source.unreadable(checkpoint)
    if reason is None:
        return []
    remedy = "run the watcher as the trainer's user, or let it read the files (the trainer's umask)"
    return [Finding("model_dir", "error", reason, remedy)]


def _missing(folder: Path, settings: SourceSettings, running: Sequence[Trainer]) -> Finding:
    elsewhere = _elsewhere(folder, settings, running)
    is_open = not folder.exists() and folder.parent.is_dir()
    if elsewhere and elsewhere.severity == "note" and is_open:
        # Somebody else's trainer, perhaps: whether this is the right folder cannot be told by it.
        waits = settings.wait_for_model_dir
        awaited = ", and is waited for" if waits else ""
        message = f"{folder} does not exist yet{awaited}; {elsewhere.message}"
        how = "start this run's trainer" + ("" if waits else " first, or use --wait-for-model-dir")
        return Finding("model_dir", "note", message, f"{elsewhere.remedy}; else {how}")
    if elsewhere:
        message = f"{folder} does not exist: {elsewhere.message}"
        return Finding("model_dir", "error", message, elsewhere.remedy)
    if folder.exists():
        return Finding("model_dir", "error", f"{folder} is not a folder", "give a folder")
    if folder.parent.is_dir() and settings.wait_for_model_dir:
        message = f"{folder} does not exist yet, and is waited for"
        return Finding("model_dir", "ok", message)
    return Finding(
        "model_dir",
        "error",
        f"{folder} does not exist",
        "start the trainer first, or use --wait-for-model-dir"
        if folder.parent.is_dir()
        else f"{folder.parent} does not exist either; is the path right?",
    )


def _elsewhere(
    folder: Path, settings: SourceSettings, running: Sequence[Trainer]
) -> Finding | None:
    """Say which other folder gets the checkpoints that were expected here."""
    remedy = "give the folder that the trainer got as --model_dir"
    since = folder.stat().st_mtime if folder.is_dir() else 0.0
    for sibling in _lookalikes(folder):
        if (count := _saved_in(sibling, settings, since)) > 0:
            # The same words without this one's name would send people to look at the wrong folder.
            message = f"{count} checkpoints are in {sibling}, which is spelled almost like it"
            return Finding("model_dir", "warning", message, remedy)
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    for child in inside[:_SIBLINGS]:
        ours = child.name in ("best", "kept", "watcher") or child.name.startswith("best-")
        if not ours and child.is_dir() and (count := _saved_in(child, settings)) > 0:
            message = f"no checkpoint in {folder}, but {count} in {child}"
            return Finding("model_dir", "warning", message, remedy)
    if len(running) == 1:
        message = f"the only trainer here, {running[0].pid}, writes into {running[0].model_dir}"
        return Finding("model_dir", "note", message, remedy)
    return None


def _lookalikes(folder: Path) -> list[Path]:
    """List the folders beside it whose names are its own but for a slip. Another number is none."""
    try:
        with os.scandir(folder.parent) as entries:
            names = [entry.name for entry, _ in zip(entries, range(_SIBLINGS), strict=False)]
    except OSError:
        return []
    alike = [name for name in names if name != folder.name and is_slip(name, folder.name)]
    return [folder.parent / name for name in sorted(alike)]


def is_slip(name: str, other: str) -> bool:
    """True when one name may be the other, mistyped; run-1 and run-2 are two runs. Pure."""
    first, second = (re.sub(r"[-_. ]", "", text.casefold()) for text in (name, other))
    if first == second:
        return True
    if re.findall(r"[0-9]+", first) != re.findall(r"[0-9]+", second):
        return False
    return difflib.SequenceMatcher(None, first, second).ratio() >= _ALIKE


def _saved_in(folder: Path, settings: SourceSettings, since: float = 0.0) -> int:
    try:
        found = open_source(settings, folder).scan()
    except ModelDirError:
        return 0
    if since and not any(checkpoint.written_at > since for checkpoint in found):
        return 0
    return len(found)


def file_system(run: RunSettings, source: CheckpointSource, mountinfo: str) -> list[Finding]:
    """Say whether events, hard links and SQLite work as they should where the run lies."""
    trainers_place, our_place = present(run.model_path), present(run.state_path)
    theirs, ours = mount_of(trainers_place, mountinfo), mount_of(our_place, mountinfo)
    return [
        *_events(run.model_path, source, theirs),
        *_links(run, source, trainers_place, our_place, (theirs, ours)),
        *_journal(our_place, ours),
    ]


def local_state(run: RunSettings, mountinfo: str) -> list[Finding]:
    """Say whether the state folder of a run on a bucket is on this machine, as it has to be."""
    mount = mount_of(present(run.state_path), mountinfo)
    if mount and mount.is_remote:
        text = f"state_dir ({run.state_path}) is on {mount.kind}, not on a disk of this machine"
        return [Finding("database place", "error", text, "give --state-dir a folder on one")]
    return _journal(present(run.state_path), mount)


def _events(folder: Path, source: CheckpointSource, mount: Mount | None) -> list[Finding]:
    if mount and mount.is_remote:
        return [
            Finding(
                "events",
                "warning",
                f"MODEL_DIR is on {mount.kind}, which tells of no file that another machine or"
                " program writes: the watcher looks again at intervals, and misses nothing that"
                " lasts as long as one",
                "lower --rescan-seconds if checkpoints are saved every few seconds",
            )
        ]
    if not folder.is_dir():
        return []
    watch = source.watch(lambda: None)
    try:
        watch.ensure()
        degraded = watch.degraded
    finally:
        watch.close()
    if degraded:
        remedy = "raise fs.inotify.max_user_instances and max_user_watches with sysctl"
        text = f"{degraded}; MODEL_DIR is looked at each second instead"
        return [Finding("events", "warning", text, remedy)]
    kind = f" on {mount.kind}" if mount else ""
    return [Finding("events", "ok", f"file system events can be had{kind}")]


def _links(
    run: RunSettings,
    source: CheckpointSource,
    theirs: Path,
    ours: Path,
    mounts: tuple[Mount | None, Mount | None],
) -> list[Finding]:
    reason, pins = None, run.state_path / PINS_NAME
    if theirs.stat().st_dev != ours.stat().st_dev:
        reason = f"{run.state_path} is on another file system than {run.model_path}"
    elif mounts[0] != mounts[1]:
        # Two mounts of one file system, as containers have them, are two to link(2).
        reason = f"{run.state_path} is on another mount than {run.model_path}"
    elif (kind := mounts[1].kind if mounts[1] else "") in _NO_LINKS:
        reason = f"{kind} has no hard links"
    elif pins.is_dir():
        reason = source.why_copies(pins)
    reason = reason or _foreign(run.model_path, source)
    if reason is None and mounts[1] and mounts[1].is_remote and not pins.is_dir():
        # Nothing is tried in the trainer's folder.
        text = f"whether {mounts[1].kind} has hard links shows at the first start, else pins are"
        text += " copies"
        return [Finding("hard links", "note", text)]
    if reason is None:
        text = "pins can be hard links: they take no time and no space of their own"
        return [Finding("hard links", "ok", text)]
    return [
        Finding(
            "hard links",
            "warning",
            f"pins will be copies, which take time and space: {reason}",
            "run the watcher as the trainer's user, with --state-dir on MODEL_DIR's file system",
        )
    ]


def _foreign(folder: Path, source: CheckpointSource) -> str | None:
    """Say that the newest checkpoint is somebody else's, which the kernel lets nobody link."""
    try:
        protected = Path("/proc/sys/fs/protected_hardlinks").read_text().strip() == "1"
        found = source.scan()
    except (OSError, ModelDirError):
        return None
    if not protected or not found or os.geteuid() == 0:
        return None
    shards = sorted(folder.glob(f"{newest(found).name}.data-*"))
    if not shards or shards[0].stat().st_uid == os.geteuid() or os.access(shards[0], os.W_OK):
        return None
    return f"{shards[0].name} belongs to another user (fs.protected_hardlinks)"


def _journal(folder: Path, mount: Mount | None) -> list[Finding]:
    if not mount or not mount.is_remote:
        kind = f" ({mount.kind})" if mount else ""
        return [Finding("database place", "ok", f"a local file system{kind}: WAL can be used")]
    if mount.is_bucket:
        text = f"the database is on {mount.kind}, which keeps none whole: the start is refused"
        return [
            Finding("database place", "error", text, "give --state-dir a folder on a disk here")
        ]
    return [
        Finding(
            "database place",
            "warning",
            f"the database is on {mount.kind}: write-ahead logging needs a local disk, so readers"
            " and the watcher wait for each other, and locks may not reach from one machine to"
            " another",
            "run the watcher of it on one machine only; --state-dir on a local disk is better for"
            " the database, but makes the pins copies",
        )
    ]


def step_reached(source: CheckpointSource) -> int:
    """Return the step that a trainer goes on from, 0 where there is none to be read."""
    try:
        found = source.scan()
        return (source.format.global_step(newest(found).prefix) or 0) if found else 0
    except (ModelDirError, OSError, CorruptCheckpoint, IncompleteCheckpoint):
        return 0
