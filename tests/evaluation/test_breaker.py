"""When a device is at fault and when a checkpoint is: decided purely."""

from __future__ import annotations

from watcher.evaluation.breaker import HOPELESS_PROBES, Breaker, Phase


def opened() -> Breaker:
    breaker = Breaker()
    for checkpoint in (1, 2, 3):
        breaker.broke([checkpoint], f"reason {checkpoint}")
    return breaker


def test_one_checkpoint_that_breaks_off_alone_never_opens_it_and_each_attempt_counts():
    breaker = Breaker()
    assert all(breaker.broke([7], "SIGSEGV") for _ in range(50))
    assert breaker.closed


def test_two_bad_checkpoints_do_not_open_it():
    breaker = Breaker()
    assert all(breaker.broke([number % 2], "SIGSEGV") for number in range(20))
    assert breaker.closed


def test_the_third_different_one_in_a_row_opens_it_and_counts_for_none():
    breaker = Breaker()
    counts = [breaker.broke([checkpoint], "SIGSEGV") for checkpoint in (1, 1, 2, 3)]
    assert counts == [True, True, True, False]
    assert breaker.phase is Phase.OPEN
    assert breaker.take_counted() == {1: 2, 2: 1}
    assert breaker.take_counted() == {}
    assert breaker.explanation == "3 different checkpoints in a row broke off: SIGSEGV"


def test_an_answer_in_between_begins_anew():
    breaker = Breaker()
    for checkpoint in range(20):
        breaker.broke([checkpoint], "SIGSEGV")
        breaker.broke([checkpoint + 100], "SIGSEGV")
        breaker.answered()
    assert breaker.closed and not breaker.lost


def test_one_checkpoint_probes_and_an_answer_closes_it():
    breaker = opened()
    breaker.given()
    assert breaker.phase is Phase.PROBING
    breaker.answered()
    assert breaker.phase is Phase.CLOSED
    assert breaker.broke([9], "SIGSEGV")


def test_a_probe_that_fails_counts_for_none_and_doubles_the_delay():
    breaker = opened()
    doublings = [breaker.doublings]
    for checkpoint in (4, 5, 4):
        breaker.given()
        assert not breaker.broke([checkpoint], "SIGSEGV")
        doublings.append(breaker.doublings)
    assert doublings == [0, 1, 2, 3]
    # Who chooses the next probe takes another, or the one that was tried the longest ago.
    assert list(breaker.lost) == [1, 2, 3, 5, 4]


def test_a_probe_that_is_given_back_is_no_failure():
    breaker = opened()
    breaker.given()
    breaker.returned()
    assert (breaker.phase, breaker.probes) == (Phase.OPEN, 0)


def test_it_is_hopeless_after_so_many_probes_and_not_while_one_runs():
    breaker = opened()
    for _ in range(HOPELESS_PROBES):
        assert not breaker.hopeless
        breaker.given()
        breaker.broke([4], "SIGSEGV")
    assert breaker.hopeless
    breaker.given()
    assert not breaker.hopeless


def test_workers_that_had_to_be_ended_in_a_row_open_it_and_each_comes_later():
    breaker, doublings = Breaker(), []
    for _ in range(4):
        breaker.broke([], "the eval data changed")
        doublings.append(breaker.doublings)
    assert doublings == [0, 1, 2, 3] and breaker.phase is Phase.OPEN
    assert breaker.explanation == "4 workers in a row had to be ended: the eval data changed"


def test_what_no_checkpoint_is_to_blame_for_opens_it_too_and_names_which_were_tried():
    breaker = Breaker()
    assert not any(breaker.broke([7], "not there", blames=False) for _ in range(3))
    assert breaker.phase is Phase.OPEN and list(breaker.lost) == [7]
    assert breaker.take_counted() == {}
    assert breaker.explanation == "3 workers in a row had to be ended: not there"
