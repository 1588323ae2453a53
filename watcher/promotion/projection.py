"""Projection: make the boards' folders, the pins and the sentinel show what the ledger says.

Wires rank, retain, promote, stop and pin release. The same call runs at the start, after each
evaluation and at every rescan, so a crash, an edit by hand and a new score are the same case.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import structlog

from watcher.checkpoints.pin import Verified, release
from watcher.config import Settings
from watcher.config.policies import averages_path, boards
from watcher.decision.board import AVERAGES_BOARD, KEPT_BOARD, Board
from watcher.decision.rank import Ranking
from watcher.decision.retain import as_pinned, retain
from watcher.decision.stop import StopDecision
from watcher.errors import LeaderLost, PinError
from watcher.files.slices import Unfinished
from watcher.promotion.averaging import Averaging, averages_board
from watcher.promotion.folder import BoardFolder
from watcher.promotion.judging import Judging, notes_on, worth_keeping
from watcher.promotion.promote import BOARD_FILE, KEPT_FILE, BoardFile
from watcher.promotion.recall import Recall
from watcher.promotion.standings import Standings
from watcher.promotion.stopping import Stopping
from watcher.protocols import CheckpointSource
from watcher.store import PINS_NAME, Store
from watcher.store.rows import unscored
from watcher.types import ScoredCheckpoint

# So long what lost its pin, and waits, may be found in MODEL_DIR again before it fails.
_LOST_SECONDS = 60.0
_log = structlog.get_logger(__name__)


class Projector:
    """The last three stages of one run: ledger to boards to folders and sentinel.

    Attributes:
        problem: Why the last update could not do all, None when it could.
        unfinished: True when the last update ended with work on files left, so that another is due
            now; until then no pin is released and nothing new is named.
        verified: What need not be verified again, for whoever pins.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        source: CheckpointSource,
        run_name: str,
        *,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        # Of the settings it needs four sections: places, ranking, what is kept and when to stop.
        run, self._retention = settings.run, settings.retention
        self._pins_dir = run.state_path / PINS_NAME
        self._store = store
        self._run_name = run_name
        self.verified: Verified = set()
        self._boards = boards(run, settings.ranking)
        self._averages = averages_board(self._boards[0], averages_path(run))
        self._averaging = Averaging(settings.ranking, self._boards[0].metric, store)
        places = {board.name: board.folder for board in (*self._boards, self._averages)}
        places[KEPT_BOARD] = run.kept_path
        self._folders = {
            name: BoardFolder(
                name,
                path,
                store,
                source.format,
                file=KEPT_FILE if name == KEPT_BOARD else BOARD_FILE,
                evict_seconds=self._retention.evict_seconds,
                verified=self.verified,
                steady=steady,
            )
            for name, path in places.items()
        }
        self._stopping = Stopping(settings.ranking, settings.stopping, run.sentinel_path, store)
        self._standings = Standings(self._boards[0], store)
        self._judging = Judging(self._boards, self._averages, store)
        self._notes: dict[int, str] | None = None
        self._nothing_ranks: set[str] = set()
        self._awaiting: set[str] = set()
        self._recall = Recall(store, source, self._pins_dir, self.verified)
        # The ledger's revision at which it was looked for what deserves a place without a pin.
        self._recalled_at: int | None = None
        self._begun = self._lost = False
        self.problem: str | None = None
        self.unfinished = False

    @property
    def evict_at(self) -> float:
        """Steady time at which files in a folder are due to be evicted, infinite when none are."""
        return min(folder.evict_at for folder in self._folders.values())

    @property
    def progress(self) -> str | None:
        """What is being promoted and how far that is, None when nothing takes long."""
        works = (folder.progress for folder in self._folders.values())
        return self._recall.progress or next(filter(None, works), None)

    @property
    def decision(self) -> StopDecision | None:
        """Why training should stop as of the last update, None to go on."""
        return self._stopping.decision

    @property
    def patience_left(self) -> dict[str, int]:
        """What may still pass without improvement: `evaluations`, `steps`, where limited."""
        return self._stopping.patience_left

    def update(self, now: float) -> None:
        """Bring everything up to date; what cannot be written is tried again at the next call.

        Large files take several calls, see `unfinished`.

        Raises:
            StoreError: the database cannot be read or written.
        """
        self.problem, self.unfinished = None, False
        try:
            if not self._begun:
                self._begin(now)
            while (best := self._update_folders(now)) is _ANEW:
                pass
            self._stopping.update(now, best)
            self.problem = self.problem or self._stopping.problem
            self._standings.update(best)
        except Unfinished:
            self.unfinished = True
        except (PinError, OSError) as error:
            self.problem = str(error)

    def close(self) -> None:
        """End; of what is unfinished nothing is left in a folder."""
        self._recall.close()
        for folder in self._folders.values():
            folder.leave_alone()

    def _begin(self, now: float) -> None:
        """Say once what the settings of this start mean for what was done before."""
        names = [board.name for board in self._boards]
        self._store.promotions.rename({one.name: one.folder for one in self._boards}, now)
        self._store.promotions.retire([*names, KEPT_BOARD, AVERAGES_BOARD], now)
        self._bring_back()
        waits = self._recalled_at is None  # for new scores, before anything is called gone
        rows = [] if waits else self._store.ledger.scored()
        for board in self._boards:
            ranking = self._judging.judge(board, rows)
            for row in [row for row in ranking.leaders if row.pin is None]:
                _log.warning(
                    "its score deserves a place, but its files are gone",
                    checkpoint=row.name,
                    board=board.name,
                    score=row.score,
                )
        self._judging.forget()
        self._begun = True

    def _update_folders(self, now: float) -> ScoredCheckpoint | None:
        """Bring the folders up to date; `_ANEW` when a leader was lost on the way."""
        # All may have gone since the last look: nothing of this run goes into another folder.
        self._store.require_present()
        later = self._brings_back_later()
        try:
            held, notes, first = self._show_boards(now)
        except LeaderLost as error:
            self._lose(error, now)
            return _ANEW
        if later:
            raise Unfinished
        self._write_notes(notes)
        self._release_pins(held)
        return first

    def _brings_back_later(self) -> bool:
        """Bring back what can be; True where that is unfinished, and a lost one is to go at once.

        What takes its place may take long to read.
        """
        try:
            self._bring_back()
            self._lost = False
        except Unfinished:
            if not self._lost:
                raise
        return self._lost

    def _lose(self, lost: LeaderLost, now: float) -> None:
        """Take a leader whose files are gone out of the ranking, and look for it once more."""
        _log.error("promoted checkpoint lost", reason=lost.message)
        self._store.queue.forget_pin(lost.checkpoint_id)
        # Of what waits to be evaluated: as long as it may be pinned again.
        self._store.queue.put_off(lost.checkpoint_id, now + _LOST_SECONDS)
        self._recall.lost(lost.checkpoint_id)
        self._recalled_at = None
        self._lost = True
        self._store.ledger.add_event(now, "lost", lost.message)

    def _show_boards(
        self, now: float
    ) -> tuple[set[int], dict[int, str | None], ScoredCheckpoint | None]:
        """Make each board's folder and `kept/` show who deserves a place.

        Returns:
            The ids of the checkpoints whose pins stay, what is noted of checkpoints by their ids,
            and the first of the main board.

        Raises:
            LeaderLost: the files of one that deserves a place are not whole any more.
        """
        rows = self._store.ledger.scored_and_pinned()
        averages = self._store.ledger.scored_and_pinned("averaged")
        waiting = self._store.queue.waiting_ids()
        held = self._averaging.follow(rows, now)
        notes: dict[int, str | None] = {}
        first = None
        # Of a run without averages a folder of that name is somebody else's.
        there = averages or self._store.promotions.placements(AVERAGES_BOARD)
        for board in (*self._boards, *([self._averages] if there else [])):
            is_main = board is self._boards[0]
            listed = averages if board is self._averages else rows
            if is_main:
                # A gain over what has no replicates yet cannot be told, but is not lost either.
                better = self._averaging.deserving(averages, self._judging.told(rows))
                # Whose place an average has gets it back once a checkpoint beats that.
                alone = self._judging.judge(board, self._judging.decidable(board, rows))
                held |= self._worth_holding(board, alone, rows, waiting) if better else set()
                listed = [*rows, *better]
            ranking = self._judging.judge(board, self._judging.decidable(board, listed))
            held |= self._worth_holding(board, ranking, listed, waiting)
            if self._stays(board, ranking):
                self._folders[board.name].leave_alone()
                held |= self._present(board.name)
                # Whatever the missing scores turn out to be, a veto may let any of these in.
                held |= {row.checkpoint_id for row in listed if board.policy.veto}
                continue
            self._show(board.name, ranking.leaders, self._text(board), now)
            notes |= notes_on(board, ranking)
            first = next(iter(ranking.leaders), None) if is_main else first
        return held | self._update_kept([*rows, *averages], now), notes, first

    def _worth_holding(
        self, board: Board, ranking: Ranking, rows: Iterable[ScoredCheckpoint], waiting: set[int]
    ) -> set[int]:
        """Return whose pins a board needs, whatever those that wait turn out to be worth."""
        settled = [row for row in rows if row.checkpoint_id not in waiting]
        # Who comes behind those that wait stays, too.
        held = {
            row.checkpoint_id
            for one in (ranking, self._judging.judge(board, settled))
            for row in worth_keeping(one, board)
        }
        if board.policy.ties_by == "noise":
            held |= self._store.replicates.awaited
        return held

    def _bring_back(self) -> None:
        """Pin again what deserves a place, or is to be kept, and still lies in MODEL_DIR.

        A new score is of a checkpoint that has a pin, so this is looked at only when the rows of
        before are seen in another way: at the start, after a loss, after another evaluation.
        """
        ledger, promotions = self._store.ledger, self._store.promotions
        if ledger.revision == self._recalled_at:
            return
        self._judging.forget()
        if any(promotions.awaiting_new_score(board.name) for board in self._boards):
            return
        here = self._recall.here()
        released = self._store.queue.released(here)
        if released:
            at_hand = ledger.scored_of(row["id"] for row in released)
            rows = [*ledger.scored_and_pinned(), *at_hand]
            for board in self._boards:
                self._recall.fill(partial(self._unpinned, board, rows), here)
            self._recall.fill(partial(self._unkept, released), here)
        self._recall.close()
        self.problem = self._recall.trouble
        if self.problem is None and not self._recall.blind:
            self._recalled_at = ledger.revision

    def _unpinned(
        self, board: Board, rows: Iterable[ScoredCheckpoint], gone: set[int]
    ) -> list[ScoredCheckpoint]:
        """Return the leaders that have no pin, as if those that are gone had never been."""
        leaders = self._judging.judge(
            board, [row for row in rows if row.checkpoint_id not in gone]
        ).leaders
        return [row for row in leaders if row.pin is None]

    def _unkept(self, released: Iterable[dict[str, Any]], gone: set[int]) -> list[ScoredCheckpoint]:
        """Return what is to be kept whatever its score and has no pin."""
        left = {row["id"]: row for row in released if row["id"] not in gone}
        rows = {row["id"]: row for row in [*self._store.queue.pinned(), *left.values()]}
        kept = retain(map(as_pinned, rows.values()), self._retention.policy)
        return [unscored(left[one]) for one in kept if one in left]

    def _stays(self, board: Board, ranking: Ranking) -> bool:
        """True when what is promoted stays as it is, whatever the ranking says.

        While it waits to be measured anew; what would deserve a place by then keeps its pin. And
        when nothing ranks at all, since every evaluation under other settings failed or the metric
        has no value: files that left could not be brought back once the settings are right again.
        """
        promotions = self._store.promotions
        if waiting := promotions.awaiting_new_score(board.name):
            if board.name not in self._awaiting:
                _log.warning(
                    "promoted checkpoints are measured anew, until then it stays as it is",
                    board=board.name,
                    waiting=waiting,
                )
                self._awaiting.add(board.name)
            return True
        self._awaiting.discard(board.name)
        if ranking.leaders or not board.policy.top_k or not promotions.still_pinned(board.name):
            self._nothing_ranks.discard(board.name)
            return False
        if board.name not in self._nothing_ranks:
            self._nothing_ranks.add(board.name)
            _log.warning("no checkpoint can rank, what is promoted stays", board=board.name)
        return True

    def _text(self, board: Board, name: str | None = None) -> BoardFile:
        return BoardFile(
            run=self._run_name,
            run_uuid=self._store.run_uuid,
            board=name or board.name,
            metric=board.metric.text,
            mode=board.policy.mode,
            fingerprint=self._store.ledger.fingerprint(),
            checkpoints=(),
        )

    def _show(
        self, name: str, rows: Sequence[ScoredCheckpoint], text: BoardFile, now: float
    ) -> None:
        before = self._store.promotions.first(name)
        leaders, changed = self._folders[name].show(rows, text, now)
        if not changed or not leaders:
            return
        first = leaders[0]
        shown = (first.row.checkpoint_id, first.row.score, text.metric)
        if shown != before:
            _log.info(name, checkpoint=first.name, score=first.row.score, of=len(leaders))

    def _present(self, board: str) -> set[int]:
        return {row["checkpoint_id"] for row in self._store.promotions.present(board)}

    def _update_kept(self, rows: Sequence[ScoredCheckpoint], now: float) -> set[int]:
        """Show what is kept for another reason than its score; returns the checkpoint ids."""
        pinned = self._store.queue.pinned()
        kept = retain(map(as_pinned, pinned), self._retention.policy)
        shown = {row["id"]: unscored(row) for row in pinned if row["id"] in kept}
        shown |= {row.checkpoint_id: row for row in rows}
        text = self._text(self._boards[0], KEPT_BOARD)
        before = self._present(KEPT_BOARD)
        leaders, _ = self._folders[KEPT_BOARD].show([shown[one] for one in kept], text, now, kept)
        new = [one.name for one in leaders if one.row.checkpoint_id not in before]
        if new:
            _log.info(KEPT_BOARD, checkpoints=", ".join(new), of=len(leaders))
        return set(kept)

    def _write_notes(self, notes: dict[int, str | None]) -> None:
        if self._notes is None:
            self._notes = self._store.ledger.notes()
        # Unless a board stays as it is, whose notes do too, all that is to be noted is known.
        if not self._awaiting and not self._nothing_ranks:
            notes = {**dict.fromkeys(self._notes), **notes}
        changed = {id_: note for id_, note in notes.items() if self._notes.get(id_) != note}
        if not changed:
            return
        self._store.ledger.set_notes(changed)
        for id_, note in changed.items():
            if note:
                self._notes[id_] = note
                _log.info("noted", reason=note)
            else:
                self._notes.pop(id_, None)

    def _release_pins(self, held: set[int]) -> None:
        limit = self._retention.waiting_policy.max_bytes
        held = held | self._store.queue.to_try_again(limit)
        kept = set()
        for row in self._store.queue.pinned():
            if row["id"] not in held and row["state"] not in ("pending", "leased"):
                self._store.queue.forget_pin(row["id"])
                release(row["prefix"], self._pins_dir)
            else:
                kept.add(row["sha256"])
        self.verified -= {seen for seen in self.verified if seen[0] not in kept}


_ANEW = ScoredCheckpoint(0, 0, "", 0, "", None, "")
