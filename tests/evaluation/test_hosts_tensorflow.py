"""The real evaluator on another host: what it measures is what the OD API's own loop gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hosts import MISSING, Sshd, environment_there, far, write_settings
from trained import REFERRED, Trained
from watching import Watcher, wait_until

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.remote,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=str(MISSING)),
]


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[Sshd]:
    one = Sshd(tmp_path / "sshd", environment_there())
    yield one
    one.end()


def test_checkpoints_that_are_carried_there_score_as_the_od_api_does_to_the_last_bit(
    watcher: Watcher, trained: Trained, sshd: Sshd, tmp_path: Path
):
    there = tmp_path / "there"
    there.mkdir()
    shutil.copyfile(trained.folder / "val.tfrecord", there / "val.tfrecord")
    for path in trained.first.iterdir():
        if path.name.startswith(REFERRED):
            shutil.copyfile(path, watcher.model_dir / path.name)
    table = far(sshd, "far-1", python=trained.python, path_map={str(trained.folder): str(there)})
    settings = write_settings(tmp_path / "run.toml", [table])
    watcher.start("--config", settings, "--pipeline-config", trained.pipeline)
    wait_until(lambda: list(watcher.states().values()) == ["scored"] * 2, "both are scored", 600)
    assert watcher.stop() == 0
    for name in REFERRED:
        rows = watcher.query(
            "SELECT metric, value FROM metric_values WHERE checkpoint = ? AND category IS NULL",
            name,
        )
        ours = {row["metric"]: row["value"] for row in rows}
        for metric, value in trained.reference[name].items():
            assert ours[metric] == pytest.approx(value, abs=0, rel=0), (name, metric)
