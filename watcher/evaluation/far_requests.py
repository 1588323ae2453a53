"""Requests to a worker on another host: paths as they are there, and the files that go along."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from watcher.evaluation import frames, messages, wire
from watcher.evaluation.carriage import Offers, renamed
from watcher.evaluation.far_device import FarDevice, mapped
from watcher.evaluation.frames import File
from watcher.files.slices import Work


class Requests:
    """What goes to one worker.

    Attributes:
        offers: The files that its agent may ask for.
        artefacts: Where files that the worker leaves come to lie here, None for nowhere.
    """

    def __init__(self, device: FarDevice, began: frames.Began, send: Callable[..., None]) -> None:
        """Take how the worker began; `send` queues a frame with its bytes."""
        self._device, self._began, self._send = device, began, send
        self.offers = Offers()
        self.artefacts: Path | None = None
        self._folders: dict[str, str] = {}
        self._count = 0

    def passing(self, request: msgspec.Struct) -> Work[None]:
        """Send a request, and offer what it needs; files are read a few MB at a time.

        Raises:
            OSError: a file cannot be read here.
        """
        line = frames.Line()
        match request:
            case frames.Calm():
                self._send(request)
                return
            case messages.Start():
                request, line = yield from self._start(request)
            case messages.Evaluate():
                prefix, line = yield from self._checkpoint(request.prefix, request.id)
                request = msgspec.structs.replace(request, prefix=prefix)
        self._send(line, wire.write_request(request).rstrip(b"\n"))

    def _start(self, request: messages.Start) -> Work[tuple[messages.Start, frames.Line]]:
        """Name what the worker is set up from as it is there, and offer it."""
        theirs, snapshot, folders = self._device.theirs, request.snapshot, []
        self.artefacts = Path(request.artefacts_dir) if request.artefacts_dir else None
        moved: dict[str, str] = {}
        if snapshot:
            there = f"{self._began.given}/{frames.SNAPSHOT}"
            moved = {snapshot.folder: there}
            files: dict[str, Path | bytes] = {}
            for path in sorted(Path(snapshot.folder).iterdir()):
                if path.is_file() and not path.name.startswith("."):
                    files[path.name] = renamed(
                        path.read_bytes(), path.name, self._device.table.path_map
                    )
            offer = yield from self.offers.offering(frames.SNAPSHOT, files)
            self._send(offer)
            folders.append(frames.SNAPSHOT)
            originals = {mapped(copy, moved): file for copy, file in snapshot.originals.items()}
            snapshot = messages.SnapshotFiles(there, originals)
        check, line = request.check, frames.Line(folders=folders)
        if check:
            # What cannot be read here is told once it is evaluated; the worker starts all the same.
            try:
                check, more = yield from self._checkpoint(check, "check")
                line = frames.Line(needs=more.needs, folders=[*folders, *more.folders])
            except OSError:
                check = None
        request = msgspec.structs.replace(
            request,
            options=_walk(request.options, lambda text: theirs(mapped(text, moved))),
            device=self._began.device,
            device_shared=bool(self._began.shared),
            check=check,
            snapshot=snapshot,
            artefacts_dir=self._began.folder,
        )
        return request, line

    def _checkpoint(self, prefix: str, token: str) -> Work[tuple[str, frames.Line]]:
        """Return a checkpoint's prefix there, and what has to be there before it is read."""
        path = Path(prefix)
        if self._device.is_shared(prefix):
            index = Path(prefix + ".index")
            digest = hashlib.sha256(index.read_bytes()).hexdigest()
            theirs = self._device.theirs
            return theirs(prefix), frames.Line(needs=[File(theirs(str(index)), digest)])
        self._count += 1
        folder = f"c{self._count}"
        files: dict[str, Path | bytes] = {
            file.name: file
            for file in sorted(path.parent.iterdir())
            if file.name == path.name + ".index" or file.name.startswith(path.name + ".data-")
        }
        offer = yield from self.offers.offering(folder, files)
        self._send(offer)
        self._folders[token] = folder
        return f"{self._began.given}/{folder}/{path.name}", frames.Line(folders=[folder])

    def drop(self, token: str) -> None:
        """Let a checkpoint's files go, which were sent for an evaluation that is over."""
        folder = self._folders.pop(token, None)
        if folder:
            self.offers.drop(folder)
            self._send(frames.Drop(folder=folder))


def _walk(value: Any, change: Callable[[str], str]) -> Any:
    """Return options with each text in them changed, also those in lists and by name."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_walk(one, change) for one in value]
    if isinstance(value, dict):
        return {name: _walk(one, change) for name, one in value.items()}
    return value
