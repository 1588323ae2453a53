"""What is kept for another reason than its score is a pure function of what is pinned."""

from __future__ import annotations

import random

from watcher.decision.retain import Pinned, RetainPolicy, retain


def pinned(*steps: int, state: str = "scored") -> list[Pinned]:
    return [Pinned(step, step, state) for step in steps]


def test_the_last_n_steps_stay_newest_first():
    assert list(retain(pinned(100, 300, 200), RetainPolicy(last=2))) == [300, 200]


def test_of_each_n_steps_the_first_checkpoint_stays():
    rows = pinned(90, 110, 190, 250, 310, 390, 800)
    kept = retain(rows, RetainPolicy(every_steps=100))
    assert list(kept) == [800, 310, 250, 110]
    assert kept[250] == "the first from step 200 on"


def test_what_is_kept_does_not_depend_on_the_order_of_arrival():
    rows = pinned(*range(50, 2000, 70))
    shuffled = rows[:]
    random.Random(3).shuffle(shuffled)
    policy = RetainPolicy(every_steps=300, last=2)
    assert retain(shuffled, policy) == retain(rows, policy)


def test_a_later_release_of_others_does_not_change_what_is_kept():
    rows = pinned(*range(50, 2000, 70))
    policy = RetainPolicy(every_steps=300, last=2)
    kept = retain(rows, policy)
    left = [row for row in rows if row.checkpoint_id in kept]
    assert retain(left, policy) == kept


def test_what_waits_or_was_skipped_counts_and_what_failed_stays_by_hand_only():
    rows = [
        *pinned(100, state="failed"),
        *pinned(150, state="skipped"),
        *pinned(200, state="pending"),
        Pinned(300, 300, "failed", kept=True),
    ]
    kept = retain(rows, RetainPolicy(last=5))
    assert kept == {300: "kept by hand", 200: "one of the last 5", 150: "one of the last 5"}


def test_what_waits_pushes_nothing_out_before_it_is_settled():
    waiting = [*pinned(100, 200, 300), *pinned(400, state="leased"), *pinned(500, state="pending")]
    assert list(retain(waiting, RetainPolicy(last=2))) == [500, 400, 300, 200]
    kept = retain(waiting, RetainPolicy(every_steps=400))
    assert kept == {400: "the first from step 400 on"}
    late = [*pinned(350, state="pending"), *pinned(360, 390)]
    first = "the first from step 300 on"
    assert retain(late, RetainPolicy(every_steps=300)) == {360: first, 350: first}


def test_several_reasons_are_all_told():
    (reason,) = retain([Pinned(1, 500, "scored", kept=True)], RetainPolicy(500, 1)).values()
    assert reason == "one of the last 1, the first from step 500 on, kept by hand"
