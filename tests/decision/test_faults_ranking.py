"""A state machine over arrivals, answers, failures and restarts: best/ is what brute force says.

Several workers lease at once and answer in any order, also while promoted checkpoints are measured
anew, by another evaluation or because a person asked; the trainer keeps two checkpoints.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from faults import EXHAUSTIVE, METRIC, Rounds, latest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watcher.checkpoints.bundle import verify
from watcher.types import Evaluation, Lease

pytestmark = pytest.mark.slow

# Few values, so that ties are common; and what must never rank.
WAITING = ("pending", "leased")
WHICH = st.integers(0, 5)
SCORES = st.sampled_from([0.1, 0.2, 0.5, 0.5, 0.9, None, math.nan, math.inf, -1.0])


class Ranking(RuleBasedStateMachine):
    """`model` holds what is known of each checkpoint by its name: its score in this evaluation."""

    @initialize(top_k=st.sampled_from([-1, 0, 1, 2, 3]))
    def start(self, top_k: int) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ranking-"))
        self.rounds = Rounds(self.folder, top_k=top_k)
        self.top_k = top_k
        self.manager = Manager(self.folder, max_to_keep=2)
        self.model: dict[str, float | None] = {}
        self.held: list[Lease] = []
        self.let_go: set[str] = set()
        self.fingerprint = 0
        self.store = self.rounds.open()
        self.begin()
        for score in (0.2, 0.5):
            self.arrive()
            self.score(score, which=0)

    def begin(self) -> None:
        self.intake, self.projector = self.rounds.begin(self.store)
        self.store.ledger.set_fingerprint(f"{self.fingerprint:064d}", time.time())

    @rule()
    def arrive(self) -> None:
        number = self.manager.save_counter + 1
        self.manager.save(100 * number, model_tensors(500, number))
        self.intake.look(time.time(), time.monotonic())
        self.intake.write_down(time.time())

    @rule(workers=st.integers(1, 4))
    def lease(self, workers: int) -> None:
        """Some workers take what is next; they answer at some later step."""
        for _ in range(workers):
            lease = self.store.queue.lease_next(time.time(), 60)
            if lease:
                self.held.append(lease)

    def an_answered(self, which: int) -> Lease | None:
        """Return one of the leases that are held, in any order, or a new one if none is."""
        if not self.held:
            self.lease(workers=1)
        return self.held.pop(which % len(self.held)) if self.held else None

    @rule(score=SCORES, which=WHICH)
    def score(self, score: float | None, which: int) -> None:
        lease = self.an_answered(which)
        if lease:
            finite = score if score is not None and math.isfinite(score) else None
            measured = Evaluation(f"{self.fingerprint:064d}", 8, {METRIC: finite})
            self.store.ledger.record_score(
                lease, measured, score, started=time.time(), now=time.time()
            )
            self.model[lease.name] = finite if finite != -1.0 else None

    @rule(which=WHICH)
    def fail(self, which: int) -> None:
        lease = self.an_answered(which)
        if lease:
            self.store.queue.record_failure(lease, "it broke", time.time())

    @rule(which=WHICH)
    def break_off(self, which: int) -> None:
        lease = self.an_answered(which)
        if lease:
            self.store.queue.retry_later(lease, "a worker died", time.time(), 0.0)

    @rule(which=WHICH)
    def requeue(self, which: int) -> None:
        """A person asks for one whose files are there; its score stands until there is another."""
        pinned = self.store.queue.evaluated_pins()
        if pinned:
            self.store.queue.requeue(pinned[which % len(pinned)], time.time())

    @rule(leased=st.booleans())
    def restart(self, leased: bool) -> None:
        if leased:
            self.store.queue.lease_next(time.time(), 60)
        self.held = []
        self.store.close()
        self.store = self.rounds.open()
        self.begin()

    @rule()
    @precondition(lambda self: self.model)
    def evaluation_changes(self) -> None:
        """What is promoted is measured anew; the others have no score in this evaluation."""
        self.project()
        self.fingerprint += 1
        self.model, self.held = {}, []
        self.store.queue.return_all(time.time())
        self.store.ledger.set_fingerprint(f"{self.fingerprint:064d}", time.time())

    def project(self) -> None:
        self.projector.update(time.time())
        assert self.projector.problem is None
        self.projector.update(time.time())  # evicts what left, at once with evict_seconds = 0

    def pinned(self) -> set[str]:
        return {index.stem for index in self.rounds.state_dir.glob("pins/*/*.index")}

    def first(self, without: set[str]) -> list[str]:
        """Brute force: the names with a place by all scores but those, best first."""
        ranked = sorted(
            (name for name, score in self.model.items() if score is not None),
            key=lambda name: (-(self.model[name] or 0.0), int(name.split("-")[1])),
        )
        ranked = [name for name in ranked if name not in without]
        return ranked if self.top_k < 0 else ranked[: self.top_k]

    def deserving(self) -> list[str]:
        """Who has a place, but for those that were let go of and rotated away since."""
        gone = {name for name in self.let_go if not (self.folder / f"{name}.index").exists()}
        return self.first(without=gone)

    @invariant()
    def best_is_what_brute_force_says(self) -> None:
        self.project()
        promotions = self.store.promotions
        expected = self.deserving()
        if not expected and self.top_k and promotions.still_pinned("best"):
            # Under the new evaluation all failed: what was promoted is not thrown away.
            for row in promotions.present("best"):
                assert verify(Path(row["path"])).model_variables
        elif not promotions.awaiting_new_score("best"):
            board = [row["path"].rsplit("/", 1)[1] for row in self.store.promotions.present("best")]
            assert board == expected
            best = self.rounds.best_dir
            here = {file.name.split(".")[0] for file in best.glob("ckpt-*")}
            assert here == set(expected)
            assert latest(best) == (expected[0] if expected else None)
            for name in expected:
                assert verify(best / name).global_step == 100 * int(name.split("-")[1])

    @invariant()
    def what_would_deserve_a_place_keeps_its_pin(self) -> None:
        """Whatever those that wait turn out to be worth, what comes behind them is still there."""
        self.project()
        waiting = {row["name"] for row in self.store.queue.pinned() if row["state"] in WAITING}
        pinned = self.pinned()
        for without in (set[str](), waiting):
            assert set(self.first(without | (self.let_go - pinned))) <= pinned
        self.let_go = self.model.keys() - pinned

    @invariant()
    def promotion_is_idempotent(self) -> None:
        before = self.everything()
        self.projector.update(time.time())
        assert self.everything() == before

    def everything(self) -> tuple[object, ...]:
        best = self.rounds.best_dir
        files = sorted(best.iterdir()) if best.exists() else []
        stats = [(file.name, file.stat().st_ino, file.stat().st_mtime_ns) for file in files]
        return (
            stats,
            self.store.promotions.present("best"),
            self.store.promotions.placements("best"),
        )

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)


Ranking.TestCase.settings = settings(
    max_examples=400 if EXHAUSTIVE else 20,
    stateful_step_count=25,
    deadline=None,
    derandomize=not EXHAUSTIVE,
    suppress_health_check=list(HealthCheck),
    phases=set(Phase) - {Phase.explain},
)
test_the_board_is_what_brute_force_says_after_any_sequence = Ranking.TestCase
