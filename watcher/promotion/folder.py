"""Folder: one board's rows become the files in its folder, and the promotions in the database.

The order keeps the promise that at any instant what the folder names is whole: note names before a
file gets one; take and verify new files and make them durable (`placing`); replace `best.json` and
`checkpoint` by rename (`promote`); and only later remove what fell out, for somebody may just have
read its name; forget names after the last file is gone. A crash between any two steps leaves files
that are not named yet or not named any more; the next call closes that. Files that nobody promoted
are reported and left alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import structlog

from watcher.decision.rank import name_leaders
from watcher.files.slices import slice_end
from watcher.promotion import promote
from watcher.promotion.placing import Contents, Placing, look_into
from watcher.protocols import CheckpointFormat
from watcher.store import Store
from watcher.types import Files, Leader, ScoredCheckpoint, Verified

_log = structlog.get_logger(__name__)


class BoardFolder:
    """The folder of one board, and what is about to leave it.

    Attributes:
        name: The board's name.
        path: Its folder.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        store: Store,
        format: CheckpointFormat,
        *,
        file: str,
        evict_seconds: float,
        verified: Verified,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.path = path
        self._format = format
        self._file = file
        self._store = store
        self._evict_seconds = evict_seconds
        self._verified = verified
        self._placing = Placing(format, verified)
        self._steady = steady
        self._left: dict[str, float] = {}
        self._said = ""
        # What was shown, in which state of the database and of the folder.
        self._shown: tuple[object, ...] = ()
        # What the database holds of which files were found whole.
        self._whole: dict[str, Files] | None = None

    @property
    def evict_at(self) -> float:
        """Steady time at which files are due to be evicted, infinite when none are."""
        return min(self._left.values(), default=math.inf) + self._evict_seconds

    @property
    def progress(self) -> str | None:
        """What is being put in place and how far that is, None when nothing takes long."""
        return self._placing.progress

    def leave_alone(self) -> None:
        """Change nothing for now; what was about to leave stays too."""
        self._left.clear()
        self._placing.drop()

    def show(
        self,
        ranked: Sequence[ScoredCheckpoint],
        board: promote.BoardFile,
        now: float,
        reasons: Mapping[int, str] = MappingProxyType({}),
    ) -> tuple[list[Leader], bool]:
        """Make the folder and the promotions show `ranked`.

        Args:
            ranked: In this order.
            board: What its file says beside them.
            now: Seconds since the epoch.
            reasons: Checkpoint id to why it is there, where that is not its score.

        Returns:
            The leaders, and whether anything changed.

        Raises:
            Unfinished: not all is in place yet, call again; what was named before still stands.
            LeaderLost: the files of one are damaged, here and in the pins; show the others.
            PinError: a leader could not be put in place; what was named before still stands.
            OSError: a state file could not be written; likewise.
        """
        promotions = self._store.promotions
        if self._whole is None:
            self._whole = promotions.found_whole(self.name)
            for sha256, files in self._whole.items():
                self._verified |= {(sha256, files), (sha256, files[1:])}
        contents = look_into(self.path, self._format)
        placed = promotions.placements(self.name)
        foreign = promote.foreign_names(contents, placed.values())
        leaders = name_leaders(ranked, placed, foreign)
        if any(leader.row.sha256 not in placed for leader in leaders):
            promotions.place(self.name, leaders)
            placed = promotions.placements(self.name)
        asked = (leaders, board, reasons, placed, self._store.ledger.revision)
        if self._shown == (*asked, contents) and not self._left:
            return leaders, False
        names = set(placed.values())
        evicted = self._change(leaders, names, board, contents, reasons)
        self._tell_unknown(promote.unknown_files(contents, self._file, names, self._format))
        self._tell_repaired(contents, now)
        paths = {leader.row.checkpoint_id: str(self.path / leader.name) for leader in leaders}
        changed = promotions.record(self.name, leaders, paths, board.metric, now)
        if evicted:
            promotions.unplace(self.name, evicted)
        self._note_whole(leaders)
        # Had anything been changed just now, the folder is another the next time.
        self._shown = (*asked, contents)
        return leaders, changed

    def _note_whole(self, leaders: Sequence[Leader]) -> None:
        """Remember across restarts what was read byte by byte, and made durable before."""
        contents = look_into(self.path, self._format)
        of = {leader.row.sha256: contents.checkpoints.get(leader.name, ()) for leader in leaders}
        whole = {sha256: files for sha256, files in of.items() if (sha256, files) in self._verified}
        if whole != self._whole:
            self._store.promotions.note_whole(self.name, whole)
            self._whole = whole

    def _change(
        self,
        leaders: list[Leader],
        placed: set[str],
        board: promote.BoardFile,
        contents: Contents,
        reasons: Mapping[int, str],
    ) -> set[str]:
        """Change the files; returns the names whose files are gone.

        Who has read a name before it left has `evict_seconds` to open it.
        """
        if not leaders and not self.path.is_dir():
            self._left.clear()
            return placed
        self.path.mkdir(mode=0o755, exist_ok=True)
        oldest = self._steady() - self._evict_seconds
        self._placing.put(self.path, leaders, contents, slice_end())
        metrics = self._store.ledger.metrics(leader.row.evaluation_id for leader in leaders)
        promote.write_board(self.path, self._file, board, leaders, metrics, reasons)
        left = placed - {leader.name for leader in leaders}
        gone = {name for name in left if self._left.get(name, math.inf) <= oldest}
        promote.evict(self.path, gone, self._format)
        # Counted from now on: a moment ago the state files may still have named them.
        present = self._steady()
        self._left = {name: self._left.get(name, present) for name in left - gone}
        return gone

    def _tell_repaired(self, before: Contents, now: float) -> None:
        """Say which files of what was promoted before were missing or damaged, and are not now."""
        taken, self._placing.taken = self._placing.taken, set()
        lacking = {promote.STATE_FILE, self._file} - before.files.keys()
        if not taken and not lacking:
            return
        rows = self._store.promotions.present(self.name)
        repaired = sorted(taken & {Path(row["path"]).name for row in rows})
        repaired += sorted(lacking) if rows else []
        if repaired:
            files = ", ".join(repaired)
            _log.warning(f"{self.path.name}/ was not whole, brought back", files=files)
            self._store.ledger.add_event(
                now, "repaired", f"{self.path.name}/ was not whole, brought back: {files}"
            )

    def _tell_unknown(self, unknown: Sequence[str]) -> None:
        files = ", ".join(unknown)
        if files and files != self._said:
            _log.warning(f"{self.path.name}/ holds files that are not ours", files=files)
        self._said = files
