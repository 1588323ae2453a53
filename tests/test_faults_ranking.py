"""A state machine over arrivals, scores, failures and restarts: best/ is what brute force says."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from pathlib import Path

from fake_trainer import Manager, model_tensors
from faults import EXHAUSTIVE, METRIC, Rounds, latest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from watcher.checkpoints.bundle import verify
from watcher.data import Evaluation

# Few values, so that ties are common; and what must never rank.
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
        self.fingerprint = 0
        self.store = self.rounds.open()
        self.begin()

    def begin(self) -> None:
        self.intake, self.projector = self.rounds.begin(self.store)
        self.store.ledger.set_fingerprint(f"{self.fingerprint:064d}", time.time())

    @rule()
    def arrive(self) -> None:
        number = self.manager.save_counter + 1
        self.manager.save(100 * number, model_tensors(500, number))
        self.intake.look(time.time(), time.monotonic())
        self.intake.write_down(time.time())

    @rule(score=SCORES)
    def score(self, score: float | None) -> None:
        lease = self.store.queue.lease_next(time.time(), 60)
        if lease:
            finite = score if score is not None and math.isfinite(score) else None
            measured = Evaluation(f"{self.fingerprint:064d}", 8, {METRIC: finite})
            self.store.ledger.record_score(
                lease, measured, score, started=time.time(), now=time.time()
            )
            self.model[lease.name] = finite if finite != -1.0 else None

    @rule()
    def fail(self) -> None:
        lease = self.store.queue.lease_next(time.time(), 60)
        if lease:
            self.store.queue.record_failure(lease, "it broke", time.time())

    @rule()
    def break_off(self) -> None:
        lease = self.store.queue.lease_next(time.time(), 60)
        if lease:
            self.store.queue.retry_later(lease, "a worker died", time.time(), 0.0)

    @rule(leased=st.booleans())
    def restart(self, leased: bool) -> None:
        if leased:
            self.store.queue.lease_next(time.time(), 60)
        self.store.close()
        self.store = self.rounds.open()
        self.begin()

    @rule()
    @precondition(lambda self: self.model)
    def evaluation_changes(self) -> None:
        """What is promoted is measured anew; the others have no score in this evaluation."""
        self.project()
        self.fingerprint += 1
        self.model = {}
        self.store.ledger.set_fingerprint(f"{self.fingerprint:064d}", time.time())

    def project(self) -> None:
        self.projector.update(time.time())
        assert self.projector.problem is None
        self.projector.update(time.time())  # evicts what left, at once with evict_seconds = 0

    @invariant()
    def best_is_what_brute_force_says(self) -> None:
        self.project()
        promotions = self.store.promotions
        nothing_ranks = not any(score is not None for score in self.model.values())
        if nothing_ranks and self.top_k and promotions.still_pinned("best"):
            # Under the new evaluation all failed: what was promoted is not thrown away.
            for row in promotions.present("best"):
                assert verify(Path(row["path"])).model_variables
        elif not promotions.awaiting_new_score("best"):
            ranked = sorted(
                (name for name, score in self.model.items() if score is not None),
                key=lambda name: (-(self.model[name] or 0.0), int(name.split("-")[1])),
            )
            expected = ranked if self.top_k < 0 else ranked[: self.top_k]
            board = [row["path"].rsplit("/", 1)[1] for row in self.store.promotions.present("best")]
            assert board == expected
            best = self.rounds.best_dir
            here = {file.name.split(".")[0] for file in best.glob("ckpt-*")}
            assert here == set(expected)
            assert latest(best) == (expected[0] if expected else None)
            for name in expected:
                assert verify(best / name).global_step == 100 * int(name.split("-")[1])

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
)
test_the_board_is_what_brute_force_says_after_any_sequence = Ranking.TestCase
