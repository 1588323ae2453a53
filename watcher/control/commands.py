"""Commands: carries out what a person asks for by `keep`, `requeue` and `resume`.

The same code runs in the daemon, through its channel, and in the command itself while no daemon
runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from watcher.control.channel import Answer, Request
from watcher.decision.averages import FEWEST, choose, parse_choice
from watcher.decision.rank import rankable
from watcher.errors import WatcherError
from watcher.files.slices import Job, Progress, Unfinished, Work
from watcher.promotion.averaging import first_parents
from watcher.promotion.recall import Recall
from watcher.protocols import CheckpointSource
from watcher.store import Store

_log = structlog.get_logger(__name__)

# What never held a model, or nothing whole, cannot be evaluated however often it is asked for.
_REFUSED = ("untrained", "corrupt", "missed")


class Commands:
    """Verbs on one run that answer to a person; each tells what it did and what it could not."""

    def __init__(self, store: Store, source: CheckpointSource, pins_dir: Path) -> None:
        self._store = store
        self._recall = Recall(store, source, pins_dir)
        self._job: Job[Answer] | None = None

    @property
    def progress(self) -> str | None:
        """What is being pinned again and how far that is, None when nothing takes long."""
        return self._recall.progress

    def close(self) -> None:
        """End what is unfinished."""
        if self._job:
            self._job.close()
        self._job = None
        self._recall.close()

    def carry_out(self, request: Request, now: float, until: float = math.inf) -> Answer:
        """Do what is asked for; doing it again changes nothing more.

        Raises:
            Unfinished: the steady time `until` came while files were pinned again. Ask again to go
                on; another request begins when this one is answered.
            StoreError: the database cannot be written; ask again.
        """
        job = self._job or Job(partial(self._carrying_out, request, now))
        self._job = None
        try:
            answer = job.run(until)
        except Unfinished:
            self._job = job
            raise
        except WatcherError:
            raise
        except Exception as error:
            # The request lies there until it is answered, and would end each daemon that reads it.
            _log.exception("a request failed", verb=request.verb)
            answer = Answer(refused=(f"a fault of checkpoint-watcher: {error!r}",))
        for line in answer.done:
            _log.info(request.verb, done=line)
        for line in answer.refused:
            _log.warning(request.verb, refused=line)
        return answer

    def _carrying_out(self, request: Request, now: float, _: Progress) -> Work[Answer]:
        match request.verb:
            case "keep":
                return (yield from self._keep(request.checkpoints, now))
            case "let_go":
                return self._let_go(request.checkpoints, now)
            case "requeue":
                return (yield from self._requeue(request, now))
            case "average":
                return (yield from self._average(request, now))
            case "resume":
                ledger = self._store.ledger
                # Of a rebuilt database it is not known what was decided before.
                if ledger.settings() and not ledger.last_stop():
                    return Answer(done=("nothing to resume: no early stop of this run stands",))
                step = ledger.resume(now)
                return Answer(done=(f"no decision to stop up to step {step} counts any more",))

    def _keep(self, names: Iterable[str], now: float) -> Work[Answer]:
        done, refused = [], []
        found = {name: self._store.ledger.find(name) for name in names}
        for one in filter(None, found.values()):
            self._take_hold(one)
        for name, checkpoint in found.items():
            if checkpoint is None:
                refused.append(self._unknown(name))
                continue
            self._look_again(checkpoint)
            if not (yield from self._has_files(checkpoint)):
                said = self._why_not(checkpoint)
                refused.append(f"{checkpoint['name']} is {checkpoint['state']}: {said}")
            else:
                self._store.queue.keep(checkpoint, True, now)
                done.append(f"{_shown(checkpoint)} is kept")
        return Answer(done=tuple(done), refused=tuple(refused))

    def _let_go(self, names: Iterable[str], now: float) -> Answer:
        done, refused = [], []
        # Before any is let go: one may be named twice.
        for name, checkpoint in [(name, self._store.ledger.find(name)) for name in names]:
            if checkpoint is None:
                refused.append(self._unknown(name))
            elif not checkpoint["kept"]:
                refused.append(f"{_shown(checkpoint)} is not kept by hand: nothing to undo")
            else:
                self._store.queue.keep(checkpoint, False, now)
                done.append(f"{_shown(checkpoint)} is no longer kept by hand")
        return Answer(done=tuple(done), refused=tuple(refused))

    def _requeue(self, request: Request, now: float) -> Work[Answer]:
        done, refused = [], []
        chosen: list[dict[str, Any]] = []
        if request.every == "pinned":
            chosen = self._store.queue.evaluated_pins()
        elif request.every == "failed":
            chosen = self._store.queue.failed()
        for name in request.checkpoints:
            checkpoint = self._store.ledger.find(name)
            if checkpoint is None:
                refused.append(self._unknown(name))
            else:
                chosen.append(checkpoint)
        for checkpoint in chosen:
            self._take_hold(checkpoint)
        for checkpoint in chosen:
            self._look_again(checkpoint)
            if checkpoint["state"] in ("pending", "leased"):
                done.append(f"{_shown(checkpoint)} is waiting already")
            elif checkpoint["state"] in _REFUSED:
                refused.append(f"{checkpoint['name']} is {checkpoint['state']}")
            elif not (yield from self._has_files(checkpoint)):
                refused.append(f"{_shown(checkpoint)}: {self._why_not(checkpoint)}")
            else:
                self._store.queue.requeue(checkpoint, now)
                done.append(f"{_shown(checkpoint)} waits to be evaluated anew")
        return Answer(done=tuple(done), refused=tuple(refused))

    def _average(self, request: Request, now: float) -> Work[Answer]:
        """Ask for an average; what is chosen keeps its pin until that is evaluated."""
        ledger, mode = self._store.ledger, self._store.ledger.mode()
        named = {name: ledger.find(name) for name in request.checkpoints}
        scored = {row.checkpoint_id: row for row in ledger.scored()}
        refused = [self._unknown(name) for name, found in named.items() if found is None]
        for one in filter(None, named.values()):
            if one["id"] not in scored or not rankable(scored[one["id"]].score):
                what = (
                    "is an average itself" if one["kind"] != "saved" else "has no score that counts"
                )
                refused.append(f"{_shown(one)} {what}")
        if refused:
            return Answer(refused=tuple(refused))
        rows = [scored[one["id"]] for one in named.values() if one]
        if request.choice:
            choice = parse_choice(request.choice)
            rows = choose(scored.values(), choice, "min" if mode == "min" else "max")
            if len(rows) < choice.count:
                said = f"{len(rows)} checkpoints of this generation have a score"
                return Answer(refused=(f"{said}, {choice} needs {choice.count}",))
        if len({row.checkpoint_id for row in rows}) < FEWEST:
            return Answer(refused=("one checkpoint has no average: name two or more",))
        found = [checkpoint for row in rows if (checkpoint := ledger.find(row.sha256))]
        for checkpoint in found:
            self._take_hold(checkpoint)
        for checkpoint in found:
            if not (yield from self._has_files(checkpoint)):
                refused.append(f"{_shown(checkpoint)}: {self._why_not(checkpoint)}")
        for checkpoint in found if not refused else ():
            self._look_again(checkpoint)
            if not checkpoint["pin_path"]:
                refused.append(f"{_shown(checkpoint)}: its files left meanwhile; ask again")
        if refused:
            return Answer(refused=tuple(refused))
        candidates, parents = first_parents(rows, mode, greedy=request.greedy)
        asked = request.choice or ",".join(row.name for row in rows)
        asked += " greedy" * request.greedy
        name = self._store.averages.ask(
            asked,
            candidates,
            parents,
            now,
            greedy=request.greedy,
            recompute_batch_norm=request.recompute_batch_norm,
        )
        of = ", ".join(row.name for row in rows)
        return Answer(done=(f"{name}, of {of}, waits to be written and evaluated",))

    def _unknown(self, name: str) -> str:
        if name in ("best", "last"):
            what = "promoted" if name == "best" else "evaluated"
            return f"{name}: no checkpoint is {what} yet"
        return f"{name} is no checkpoint of this run{self._store.ledger.suggest(name)}"

    def _look_again(self, checkpoint: dict[str, Any]) -> None:
        """Read a row anew: turns of the loop went by since, and its pin may be released."""
        now = checkpoint["sha256"] and self._store.ledger.find(checkpoint["sha256"])
        if now and now["id"] == checkpoint["id"]:
            checkpoint.update(now)

    def _take_hold(self, checkpoint: dict[str, Any]) -> bool:
        """True when the files are there, or may be; they are linked before any is read."""
        if checkpoint["pin_path"]:
            return True
        if checkpoint["state"] in _REFUSED or not checkpoint["sha256"]:
            return False
        name, sha256 = checkpoint["name"], checkpoint["sha256"]
        return self._recall.take_hold(name, sha256, self._recall.here())

    def _why_not(self, checkpoint: dict[str, Any]) -> str:
        """Say why what was just looked for has no files."""
        if checkpoint["state"] in _REFUSED or not checkpoint["sha256"]:
            return "its files are gone"
        if self._recall.blind:
            return "it has no pin, and the trainer's folder cannot be listed now"
        return self._recall.trouble or "its files are gone"

    def _has_files(self, checkpoint: dict[str, Any]) -> Work[bool]:
        """True when there is a pin; one is made where the trainer still has the checkpoint."""
        if checkpoint["pin_path"] or not self._take_hold(checkpoint):
            return bool(checkpoint["pin_path"])
        id_, name, sha256 = (checkpoint[column] for column in ("id", "name", "sha256"))
        while True:
            try:
                return self._recall.pin(id_, name, sha256, self._recall.here(), -math.inf)
            except Unfinished:
                yield


def _shown(checkpoint: dict[str, Any]) -> str:
    step = checkpoint["global_step"]
    return checkpoint["name"] if step is None else f"{checkpoint['name']} (step {step})"
