"""The states of a run, its settings and its work that is put off: each table, and what it means."""

from __future__ import annotations

import math
from itertools import product

import pytest

from watcher.runtime.acceptance import Standing, standing_after
from watcher.runtime.phases import Event, RunPhase, after
from watcher.runtime.task import Task

STARTING, RUNNING, FINISHING, DRAINING, DONE, STOPPED = RunPhase
BEGUN, FINISH_ASKED, LOOKED, NOTHING_LEFT, STOP_ASKED = Event
PENDING, DECIDING, ACCEPTED = Standing

TABLE = {
    STARTING: [RUNNING, STARTING, STARTING, DONE, STOPPED],
    RUNNING: [RUNNING, FINISHING, RUNNING, DONE, STOPPED],
    FINISHING: [FINISHING, FINISHING, DRAINING, DONE, STOPPED],
    DRAINING: [DRAINING, DRAINING, DRAINING, DONE, STOPPED],
    DONE: [DONE] * 5,
    STOPPED: [STOPPED] * 5,
}


def test_each_event_leads_from_each_phase_to_the_one_in_the_table():
    assert {one: [after(one, event) for event in Event] for one in RunPhase} == TABLE


def test_only_what_is_done_or_stopped_is_over():
    assert [phase for phase in RunPhase if phase.is_over] == [DONE, STOPPED]


@pytest.mark.parametrize("order", [(FINISH_ASKED, BEGUN), (BEGUN, FINISH_ASKED)])
def test_an_end_that_is_asked_for_before_the_start_is_heeded_when_it_is_asked_for_again(
    order: tuple[Event, ...],
):
    phase = STARTING
    for event in (*order, FINISH_ASKED, LOOKED):
        phase = after(phase, event)
    assert phase is DRAINING


@pytest.mark.parametrize(
    ("able", "same", "standing"), list(product([False, True], [False, True], Standing))
)
def test_settings_count_once_they_decide_as_before_or_can_be_evaluated_by(
    able: bool, same: bool, standing: Standing
):
    expected = ACCEPTED if able else DECIDING if same else standing
    assert standing_after(standing, able=able, same=same) is expected


def test_a_task_is_due_at_once_when_it_is_new_or_asked_for_and_else_at_its_time():
    task = Task()
    assert task.take(5.0) and task.due == math.inf
    task.at(7.0)
    assert not task.take(6.9) and task.take(7.0)
    task.at(9.0)
    task.now()
    assert task.is_wanted and task.take(8.0) and not task.take(99.0)


def test_a_task_that_is_held_is_not_done_before_however_often_it_is_asked_for():
    task = Task()
    task.hold_until(10.0)
    task.now()
    assert task.due == 10.0 and task.is_wanted and not task.take(9.9) and task.take(10.0)
