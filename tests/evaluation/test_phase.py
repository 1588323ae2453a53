"""A worker's life is one table: every phase, and what each step makes of it."""

from __future__ import annotations

import pytest

from watcher.evaluation.phase import WorkerPhase, WorkerStep, after

P, S = WorkerPhase, WorkerStep
# A row a phase, a column a step, in the order of the enums.
STEPS = (S.SPAWNED, S.GOT_READY, S.DEVICE_WANTED, S.DEVICE_KEPT, S.GREW, S.DEVICE_BROKE, S.ENDED)
TABLE = {
    P.ABSENT: (P.STARTING, *[P.ABSENT] * 6),
    P.STARTING: (P.STARTING, P.READY, *[P.STARTING] * 4, P.ABSENT),
    P.READY: (P.READY, P.READY, P.GIVING_WAY, P.READY, P.OUTGROWN, P.SPENT, P.ABSENT),
    P.GIVING_WAY: (*[P.GIVING_WAY] * 3, P.READY, P.OUTGROWN, P.SPENT, P.ABSENT),
    P.OUTGROWN: (*[P.OUTGROWN] * 5, P.SPENT, P.ABSENT),
    P.SPENT: (*[P.SPENT] * 6, P.ABSENT),
}


@pytest.mark.parametrize("phase", P)
def test_each_step_leads_from_a_phase_to_the_one_that_the_table_says(phase: P):
    assert tuple(S) == STEPS
    assert tuple(after(phase, step) for step in S) == TABLE[phase]


def test_only_a_ready_worker_that_nothing_speaks_against_gets_ready_again():
    back = {(phase, step) for phase in P for step in S if after(phase, step) is P.READY}
    assert {pair for pair in back if pair[0] is not P.READY} == {
        (P.STARTING, S.GOT_READY),
        (P.GIVING_WAY, S.DEVICE_KEPT),
    }
