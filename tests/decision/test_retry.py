"""What failed is tried again later each time, and at once after it worked."""

from __future__ import annotations

from watcher.decision.retry import Retry, delay


def test_delays_double_up_to_their_limit_however_often_it_failed():
    assert [delay(failures, 5, 60) for failures in (0, 1, 2, 3, 4, 5)] == [5, 5, 10, 20, 40, 60]
    assert delay(10_000, 1, 300) == 300
    assert delay(10_000, 1) == 2**30


def test_what_works_again_begins_anew():
    retry = Retry(first_seconds=0.5, limit_seconds=2)
    assert retry.at < 0
    for steady, due in [(10, 10.5), (11, 12), (12, 14), (14, 16)]:
        retry.failed(steady)
        assert retry.at == due
    retry.worked()
    assert retry.at < 0
    retry.failed(20)
    assert retry.at == 20.5
