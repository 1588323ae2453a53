"""Ties by noise, with a daemon: what counts as equal to the best, while the best may be another."""

from __future__ import annotations

import json

from fake_trainer import Manager, model_tensors
from watching import Watcher, wait_until

# Each cannot be told from its neighbour, and surely is worse than what was two before.
FALLING = {f"ckpt-{number}": 0.50 - 0.01 * number for number in range(1, 6)}
RISING = {"ckpt-1": 0.499, "ckpt-2": 0.5}


def stub(scores: dict[str, float]) -> dict[str, str]:
    """Replicates that differ by 0.01 either way between two neighbours, more often one way."""
    drawn = {
        name: [score + (0.008 if (n + place) % 2 else -0.008) for n in range(40)]
        for place, (name, score) in enumerate(scores.items())
    }
    return {"STUB_SCORES": json.dumps(scores), "STUB_REPLICATES": json.dumps(drawn)}


def evaluate(watcher: Watcher, scores: dict[str, float], *flags: object, **more: object) -> None:
    """Save one checkpoint after the other, each once the one before is ranked."""
    manager = Manager(watcher.model_dir, max_to_keep=1)
    watcher.start("--ties-by", "noise", "--top-k", 1, *flags, **stub(scores), **more)
    for number, name in enumerate(scores, 1):
        manager.save(100 * number, model_tensors(1000, name))
        told = f"SELECT 1 FROM history WHERE checkpoint = '{name}' AND low NOT NULL"
        wait_until(lambda told=told: watcher.states() and watcher.query(told), name)
    assert watcher.stop() == 0


def test_the_newest_of_those_that_are_tied_never_falls_behind_the_best_of_all(watcher: Watcher):
    evaluate(watcher, FALLING, "--ties", "newest")
    assert watcher.leaderboard() == ["ckpt-2"]


def test_the_older_one_keeps_its_place_until_it_is_known_whether_a_better_score_is_noise(
    watcher: Watcher,
):
    evaluate(watcher, RISING, STUB_REPLICATES_SECONDS=1)
    assert watcher.leaderboard() == ["ckpt-1"]
    assert {path.stem for path in watcher.best_dir.glob("*.index")} == {"ckpt-1"}
    assert "checkpoint=ckpt-2" not in [
        line for line in watcher.log.read_text().splitlines() if " best " in line
    ]
