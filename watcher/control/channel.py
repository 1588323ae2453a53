"""The channel: how a command asks the daemon of a run for something, as only that may write.

`ask` puts a JSON file into `requests/` of the state folder and wakes the daemon through the FIFO
`requests/wake`; the daemon carries it out and puts its answer beside it. Files survive where a
socket would not: a request that was not read yet is carried out after a restart.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from watcher.errors import StoreError
from watcher.files.atomic_io import replace_file
from watcher.store.database_file import REQUESTS_NAME, encodable

_WAKE = "wake"
_POLL_SECONDS = 0.05


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a person asks for.

    Attributes:
        verb: `keep` and `let_go` checkpoints; `requeue` them; `resume` after an early stop;
            `average` weights.
        checkpoints: Names, `ckpt-12`, `best`, `last`, steps, or beginnings of a sha256.
        every: Instead of names: `pinned`, all whose files are kept, or `failed`.
        choice: Instead of names, of what to average: `top-3`, `last-5`.
        greedy: Average only what makes the score no worse.
        recompute_batch_norm: Of how many training images to compute an average's statistics anew.
    """

    verb: Literal["keep", "let_go", "requeue", "resume", "average"]
    checkpoints: tuple[str, ...] = ()
    every: Literal["pinned", "failed"] | None = None
    choice: str | None = None
    greedy: bool = False
    recompute_batch_norm: int | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it: a line for each thing done, and one for each that could not be."""

    done: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()


class ControlChannel:
    """The daemon's side. Where the folder or the FIFO cannot be made there are no requests."""

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / REQUESTS_NAME
        self._wake: int | None = None
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            for answer in self._folder.glob("*.answer"):
                answer.unlink()  # nobody waits for it any more
            with contextlib.suppress(FileExistsError):
                os.mkfifo(self._folder / _WAKE, 0o600)
            # Open for both, so that it never reads as ended when the last writer is gone.
            flags = os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW
            self._wake = os.open(self._folder / _WAKE, flags)

    def filenos(self) -> list[int]:
        """What to wait on; readable when a request has come."""
        return [] if self._wake is None else [self._wake]

    def take(self) -> Iterator[tuple[str, Request]]:
        """Yield what is asked for, oldest first; each has to be answered, or it comes again."""
        if self._wake is not None:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wake, 4096)
        for file in self._waiting():
            try:
                yield file.stem, msgspec.json.decode(file.read_bytes(), type=Request)
            except (OSError, msgspec.DecodeError):
                with contextlib.suppress(OSError):
                    file.unlink()  # written by nothing of ours

    def answer(self, key: str, answer: Answer) -> None:
        """Answer a request, which ends it; raises OSError when that cannot be written."""
        replace_file(self._folder / f"{key}.answer", msgspec.json.encode(answer), mode=0o600)
        (self._folder / f"{key}.json").unlink(missing_ok=True)

    def close(self) -> None:
        """Close the FIFO."""
        if self._wake is not None:
            os.close(self._wake)
            self._wake = None

    def _waiting(self) -> list[Path]:
        try:
            files = [file for file in self._folder.iterdir() if file.suffix == ".json"]
        except OSError:
            return []
        return sorted(file for file in files if stat.S_ISREG(file.lstat().st_mode))


def ask(state_dir: Path, request: Request, *, seconds: float = 15.0) -> Answer | None:
    """Ask the running daemon, and wait for its answer.

    Returns:
        The answer, None when none came in time; the request then stays and is carried out later.

    Raises:
        StoreError: the request cannot be written.
    """
    folder = state_dir / REQUESTS_NAME
    key = f"{time.time_ns():020d}-{secrets.token_hex(4)}"
    try:
        asked = msgspec.json.encode(encodable(msgspec.to_builtins(request)))
        replace_file(folder / f"{key}.json", asked, mode=0o600)
        _wake(folder)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with contextlib.suppress(FileNotFoundError):
                answer = msgspec.json.decode((folder / f"{key}.answer").read_bytes(), type=Answer)
                (folder / f"{key}.answer").unlink()
                return answer
            time.sleep(_POLL_SECONDS)
    except OSError as error:
        raise StoreError(
            f"cannot write a request into {folder}: {error.strerror}",
            hint="ask as the user that the watcher runs as",
        ) from error
    return None


def _wake(folder: Path) -> None:
    # Without a reader this fails; the daemon finds the request at its next look.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder / _WAKE, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            os.write(descriptor, b".")
        finally:
            os.close(descriptor)
