"""What counts as progress of a trainer that crashes, and so begins the count of restarts anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from fake_trainer import Manager, model_tensors
from folder_source import source_of
from launching import Launch, python

from watcher.launch.decide import Progress
from watcher.launch.saves import Checkpoints

# As model_main_tf2: what there is at step 0 is saved, and then the first step is done.
FIRST_STEP_FAILS = """
import sys
from pathlib import Path
from fake_trainer import SUFFIX, Manager, int64
Manager(Path(sys.argv[1])).save(0, {f"optimizer/iter{SUFFIX}": int64(0)})
raise SystemExit("OOM when allocating tensor")
"""
# Restores the last, saves it again under the next name, and gets no further.
SAVES_THE_SAME_AGAIN = """
import sys
from pathlib import Path
from fake_trainer import Manager, model_tensors
Manager(Path(sys.argv[1])).save(100, model_tensors(1000, 1))
sys.exit(9)
"""


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Launch]:
    run = Launch(tmp_path)
    yield run
    run.end()


@pytest.mark.slow
@pytest.mark.parametrize("program", [FIRST_STEP_FAILS, SAVES_THE_SAME_AGAIN])
def test_a_trainer_that_saves_at_each_start_and_gets_no_further_is_restarted_n_times_in_all(
    launch: Launch, program: str
):
    trainer = python(program, launch.model_dir)
    assert launch.run("--restarts", 2, trainer=trainer) == (1 if "OOM" in program else 9)
    assert len(list(launch.model_dir.glob("*.index"))) == 3
    assert [line.partition("started again ")[2] for line in launch.said().splitlines()[:2]] == [
        *("in 0.1 s (1 of 2)", "in 0.2 s (2 of 2)")
    ]
    assert "no restarts are left" in launch.said()


@pytest.mark.slow
def test_a_trainer_that_saved_nothing_trained_before_it_failed_has_failed_at_once(launch: Launch):
    trainer = python(FIRST_STEP_FAILS, launch.model_dir)
    assert launch.run(*launch.watching(), trainer=trainer) == 1
    last = launch.said().splitlines()[-1]
    assert last.endswith("before any trained checkpoint: no watcher goes on without it")


@pytest.mark.parametrize(
    ("lives", "further"),
    [
        ([[], [], []], [False, False, False]),
        ([[100], [100], [100, 200]], [True, False, True]),
        ([[500], [100], [300], [600]], [True, False, False, True]),  # it started over
        ([[0], [None], [None]], [False, True, True]),
    ],
)
def test_progress_is_a_step_that_no_life_before_has_reached(
    lives: Sequence[Sequence[int | None]], further: list[bool]
):
    progress = Progress()
    assert [progress.after(steps) for steps in lives] == further
    assert progress.made == any(further)


def test_what_is_not_trained_or_cannot_be_read_has_no_step_that_counts(tmp_path: Path):
    manager = Manager(tmp_path, max_to_keep=None)
    manager.save(0, {})
    for step in (100, 200, None):
        manager.save(step, model_tensors(1000, str(step)))
    (tmp_path / "ckpt-3.index").write_bytes(b"no index")
    checkpoints = Checkpoints(source_of(tmp_path), tmp_path)
    assert checkpoints.steps([f"ckpt-{number}" for number in range(1, 6)]) == [100, None]
